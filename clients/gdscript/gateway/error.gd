# Why there is no tunnel. status is what the gateway answered, 0 for no answer; advice is what
# the player can do: "reconnect"; "new line", from the login server; "new line or later"; "start
# anew", at the login.

const KINDS = {
	0: ["no_answer", "reconnect", "the gateway gave no answer: connect again"],
	400: ["bad_request", "reconnect", "the gateway could not read the line (400): connect again"],
	401: ["unauthorized", "new line", "the line does not open (401): get a new line"],
	410: ["gone", "start anew", "the session is gone (410): start anew"],
	502: ["bad_gateway", "new line or later", "the game server cannot be connected (502): get a new line, or try later"],
	504: ["gateway_timeout", "new line or later", "connecting the game server took too long (504): get a new line, or try later"],
}

var status
var name
var advice
var message

func _init(number, text = ""):
	status = number
	name = KINDS[number][0]
	advice = KINDS[number][1]
	message = text if text != "" else KINDS[number][2]

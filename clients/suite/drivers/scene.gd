# The scene of the chat client of the Godot kit's README: its argument is the line, and what is
# said is on the standard input, which run.sh has put into the file IN.
extends SceneTree

var _chat
var _says = []
var _until

func _initialize():
	var file = File.new()
	file.open(OS.get_environment("IN"), File.READ)
	_says = Array(file.get_as_text().split("\n", false))
	_until = OS.get_ticks_msec() + 10000
	_chat = Control.new()
	_chat.set_script(load("res://chat.gd"))
	_chat.line = OS.get_cmdline_args()[2]
	for child in [[LineEdit.new(), "Input"], [TextEdit.new(), "Chat"]]:
		child[0].name = child[1]
		_chat.add_child(child[0])
	get_root().add_child(_chat)

func _idle(_delta):
	var text = _chat.get_node("Chat").text
	if not _says.empty():
		_chat.get_node("Input").emit_signal("text_entered", _says.pop_front())
	elif text != "" or OS.get_ticks_msec() > _until:
		for line in text.split("\n"):
			print("> ", line)
		quit()

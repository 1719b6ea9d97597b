"""Why there is no tunnel, and what the player can do about it."""

# What to do, as GatewayError.advice.
RECONNECT = "reconnect"  # a bad network: connect again
NEW_LINE = "new line"  # ask the login server for a new line
NEW_LINE_OR_LATER = "new line or later"  # the same, or wait
START_ANEW = "start anew"  # the session is gone: log in again


class GatewayError(ConnectionError):
    """status is what the gateway answered; 0 is no answer."""

    status, advice, text = 0, RECONNECT, "the gateway gave no answer: connect again"

    def __init__(self, text=None):
        super().__init__(text or self.text)


class NoAnswer(GatewayError):
    pass


class BadRequest(GatewayError):
    status, text = 400, "the gateway could not read the line (400): connect again"


class Unauthorized(GatewayError):
    status, advice, text = 401, NEW_LINE, "the line does not open (401): get a new line"


class Gone(GatewayError):
    status, advice, text = 410, START_ANEW, "the session is gone (410): start anew"


class BadGateway(GatewayError):
    status, advice = 502, NEW_LINE_OR_LATER
    text = "the game server cannot be connected (502): get a new line, or try later"


class GatewayTimeout(GatewayError):
    status, advice = 504, NEW_LINE_OR_LATER
    text = "connecting the game server took too long (504): get a new line, or try later"


BY_STATUS = {str(e.status).encode(): e for e in (BadRequest, Unauthorized, Gone, BadGateway, GatewayTimeout)}


def check(status):
    """Raises the error of a status, three bytes, unless it is 200."""
    if status != b"200":
        raise BY_STATUS.get(status, NoAnswer)(
            None if status in BY_STATUS else "the answer is no status: is this the gateway's address?")

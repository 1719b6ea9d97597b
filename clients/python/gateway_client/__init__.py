"""Connects to game servers through a gateway. README.md has an example."""

from .errors import (NEW_LINE, NEW_LINE_OR_LATER, RECONNECT, START_ANEW, BadGateway, BadRequest,
                     GatewayError, GatewayTimeout, Gone, NoAnswer, Unauthorized)
from .tunnel import Dialer, Tunnel

__all__ = ["BadGateway", "BadRequest", "Dialer", "GatewayError", "GatewayTimeout", "Gone", "NEW_LINE",
           "NEW_LINE_OR_LATER", "NoAnswer", "RECONNECT", "START_ANEW", "Tunnel", "Unauthorized"]

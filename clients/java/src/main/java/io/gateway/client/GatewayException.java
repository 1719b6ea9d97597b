package io.gateway.client;

import java.io.IOException;

/** Why there is no tunnel. */
public class GatewayException extends IOException {
    private static final long serialVersionUID = 1;
    /** What the gateway answered; 0 is no answer. */
    public final int status;
    public final Advice advice;

    GatewayException(int status, Advice advice, String message) {
        super(message);
        this.status = status;
        this.advice = advice;
    }

    static GatewayException of(String status) {
        switch (status) {
            case "400": return new BadRequest();
            case "401": return new Unauthorized();
            case "410": return new Gone("the session is gone (410): start anew");
            case "502": return new BadGateway();
            case "504": return new GatewayTimeout();
            default: return new NoAnswer("the answer is no status: is this the gateway's address?");
        }
    }

    public static final class NoAnswer extends GatewayException {
        private static final long serialVersionUID = 1;
        NoAnswer(String message) { super(0, Advice.RECONNECT, message); }
    }

    public static final class BadRequest extends GatewayException {
        private static final long serialVersionUID = 1;
        BadRequest() { super(400, Advice.RECONNECT, "the gateway could not read the line (400): connect again"); }
    }

    public static final class Unauthorized extends GatewayException {
        private static final long serialVersionUID = 1;
        Unauthorized() { super(401, Advice.NEW_LINE, "the line does not open (401): get a new line"); }
    }

    public static final class Gone extends GatewayException {
        private static final long serialVersionUID = 1;
        Gone(String message) { super(410, Advice.START_ANEW, message); }
    }

    public static final class BadGateway extends GatewayException {
        private static final long serialVersionUID = 1;
        BadGateway() {
            super(502, Advice.NEW_LINE_OR_LATER, "the game server cannot be connected (502): get a new line, or try later");
        }
    }

    public static final class GatewayTimeout extends GatewayException {
        private static final long serialVersionUID = 1;
        GatewayTimeout() {
            super(504, Advice.NEW_LINE_OR_LATER, "connecting the game server took too long (504): get a new line, or try later");
        }
    }
}

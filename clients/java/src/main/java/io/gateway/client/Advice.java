package io.gateway.client;

/** What the player can do. */
public enum Advice {
    /** A bad network: connect again. */
    RECONNECT,
    /** Get a new line from the login server. */
    NEW_LINE,
    /** The same, or wait. */
    NEW_LINE_OR_LATER,
    /** The session is gone: log in again. */
    START_ANEW
}

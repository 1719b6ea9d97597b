// Why there is no tunnel, and what the player can do about it.

/** What to do: connect again; get a new line from the login server; the same, or wait;
 * log in again. */
export type Advice = "reconnect" | "new line" | "new line or later" | "start anew";

/** The statuses of a gateway; 0 is no answer. */
export type Status = 0 | 400 | 401 | 410 | 502 | 504;

const known: Record<number, [Advice, string]> = {
  0: ["reconnect", "the gateway gave no answer: connect again"],
  400: ["reconnect", "the gateway could not read the line (400): connect again"],
  401: ["new line", "the line does not open (401): get a new line"],
  410: ["start anew", "the session is gone (410): start anew"],
  502: ["new line or later", "the game server cannot be connected (502): get a new line, or try later"],
  504: ["new line or later", "connecting the game server took too long (504): get a new line, or try later"],
};

export class GatewayError extends Error {
  readonly advice: Advice;

  constructor(readonly status: Status = 0, message?: string) {
    super(message || known[status][1]);
    Object.setPrototypeOf(this, new.target.prototype);
    this.name = new.target.name;
    this.advice = known[status][0];
  }
}

export class NoAnswer extends GatewayError {
  constructor(message?: string) { super(0, message); }
}
export class BadRequest extends GatewayError {
  constructor(message?: string) { super(400, message); }
}
export class Unauthorized extends GatewayError {
  constructor(message?: string) { super(401, message); }
}
export class Gone extends GatewayError {
  constructor(message?: string) { super(410, message); }
}
export class BadGateway extends GatewayError {
  constructor(message?: string) { super(502, message); }
}
export class GatewayTimeout extends GatewayError {
  constructor(message?: string) { super(504, message); }
}

const classes: Record<string, new () => GatewayError> = {
  400: BadRequest, 401: Unauthorized, 410: Gone, 502: BadGateway, 504: GatewayTimeout,
};

/** The error of a status that is not 200. */
export function errorOf(status: string): GatewayError {
  const known = classes[status];
  return known ? new known() : new NoAnswer("the answer is no status: is this the gateway's address?");
}

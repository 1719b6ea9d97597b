// Connects to game servers through a gateway. README.md has an example.

export { BadGateway, BadRequest, GatewayError, GatewayTimeout, Gone, NoAnswer, Unauthorized } from "./errors.js";
export type { Advice, Status } from "./errors.js";
export { byMiniGame, byNode, byWebSocket } from "./sockets.js";
export type { Connect, Events, Socket } from "./sockets.js";
export { Dialer, Tunnel } from "./tunnel.js";
export type { DialerOptions, TunnelEvent } from "./tunnel.js";

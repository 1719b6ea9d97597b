// What tunnels go by. A Connect function makes a Socket, so that other platforms can
// bring theirs: one that is given to Dialer as connect.

/** A connection of bytes. Its callbacks are set before connecting has begun. */
export interface Socket {
  send(data: Uint8Array): void;
  /** Ends it; closed is not called any more. */
  close(): void;
  /** Finishes sending, where the socket can. */
  closeWrite?(): void;
}

export interface Events {
  opened(): void;
  received(data: Uint8Array): void;
  /** There is no more to come: clean is the end of what the other side had to say. */
  closed(reason: string, clean: boolean): void;
}

export interface Connect {
  (gateway: string, events: Events): Socket;
  /** Requests are messages of their own, without a newline. */
  messages: boolean;
}

interface WebSocketLike {
  binaryType: string;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(data: any): void;
  close(code?: number, reason?: string): void;
}

/** By a WebSocket's constructor: the browser's, Cocos Creator's, Node's, the ws of npm. */
export function byWebSocket(constructor?: new (url: string) => WebSocketLike): Connect {
  const connect = (gateway: string, events: Events): Socket => {
    const make = constructor || (globalThis as any).WebSocket;
    if (!make) throw new TypeError("there is no WebSocket here: give one to byWebSocket");
    const socket: WebSocketLike = new make(gateway);
    let over = false, reason = "";
    const end = (why: string, clean: boolean) => {
      if (over) return;
      over = true;
      events.closed(why, clean);
    };
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { if (!over) events.opened(); };
    socket.onmessage = ({ data }) => {
      if (!over) events.received(typeof data === "string" ? bytesOf(data) : new Uint8Array(data));
    };
    // Some mini-games close nothing behind an error.
    socket.onerror = (event) => {
      reason = event?.message || event?.error?.message || event?.errMsg || "the connection broke";
      setTimeout(() => end(reason, false), 0);
    };
    socket.onclose = ({ code }) => end(reason || `closed with code ${code}`, code === 1000);
    return {
      send: (data) => socket.send(data),
      close: () => {
        over = true;
        socket.close(1000);
      },
    };
  };
  return Object.assign(connect, { messages: true });
}

/** By WeChat's wx.connectSocket, and the mini-games that have the same: give their wx,
 * tt, qq or swan. */
export function byMiniGame(wx: any): Connect {
  const connect = (gateway: string, events: Events): Socket => {
    let over = false;
    const end = (why: string, clean: boolean) => {
      if (over) return;
      over = true;
      events.closed(why, clean);
    };
    const task = wx.connectSocket({ url: gateway, fail: (e: any) => end(e?.errMsg || "connectSocket failed", false) });
    task.onOpen(() => { if (!over) events.opened(); });
    task.onMessage(({ data }: any) => {
      if (!over) events.received(typeof data === "string" ? bytesOf(data) : new Uint8Array(data));
    });
    task.onError((e: any) => end(e?.errMsg || "the connection broke", false));
    task.onClose((e: any) => end(e?.reason || `closed with code ${e?.code}`, e?.code === 1000));
    return {
      // It takes whole ArrayBuffers.
      send: (data) => task.send({ data: data.slice().buffer }),
      close: () => {
        over = true;
        task.close({ code: 1000 });
      },
    };
  };
  return Object.assign(connect, { messages: true });
}

/** By TCP in Node: give require("net"), and for tls:// require("tls"). */
export function byNode(net: any, tls?: any, options: object = {}): Connect {
  const connect = (gateway: string, events: Events): Socket => {
    const [, scheme, host, port] = /^(?:(\w+):\/\/)?\[?([^\]/]+?)\]?:(\d+)\/?$/.exec(gateway) || [];
    if (!port) throw new TypeError(`no host:port: ${gateway}`);
    const secure = scheme === "tls";
    if (secure && !tls) throw new TypeError("no tls: give it to byNode");
    const to = { host, port: Number(port), allowHalfOpen: true, ...options };
    const socket = secure ? tls.connect({ servername: host, ...to }) : net.connect(to);
    let over = false;
    const leave = () => { // what was written still goes out
      socket.end();
      const timer: any = setTimeout(() => socket.destroy(), 1000);
      timer.unref();
    };
    const end = (why: string, clean: boolean) => {
      if (over) return;
      over = true;
      leave();
      events.closed(why, clean);
    };
    socket.setNoDelay(true);
    socket.on(secure ? "secureConnect" : "connect", () => { if (!over) events.opened(); });
    socket.on("data", (data: Uint8Array) => { if (!over) events.received(new Uint8Array(data)); });
    socket.on("error", (e: Error) => end(e.message, false));
    socket.on("end", () => end("the gateway closed", true));
    socket.on("close", () => end("closed", false));
    return {
      send: (data) => { socket.write(data); },
      closeWrite: () => { socket.end(); },
      close: () => {
        over = true;
        leave();
      },
    };
  };
  return Object.assign(connect, { messages: false });
}

function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(text, (c) => c.charCodeAt(0));
}

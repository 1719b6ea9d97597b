// Tunnels to game servers, and how they are opened and resumed.

import { concat, utf8 } from "./crypto.js";
import { BadRequest, errorOf, GatewayError, Gone, NoAnswer, Unauthorized } from "./errors.js";
import { openLine, Session } from "./session.js";
import { byWebSocket, Connect, Socket } from "./sockets.js";

export type TunnelEvent = "reconnecting" | "back" | "failed" | "ended";

export interface DialerOptions {
  /** Tried in turn: ws:// or wss:// URLs, or host:port with byNode. */
  gateways: string | string[];
  /** What tunnels go by; byWebSocket() unless given. */
  connect?: Connect;
  /** Called with the error where a new line may help; returns one, or nothing. */
  newLine?: (error: GatewayError) => string | null | undefined | Promise<string | null | undefined>;
  /** Asks for no more than a plain tunnel. */
  plain?: boolean;
  /** Milliseconds for one gateway to be reached and to answer; 5000. */
  timeout?: number;
  /** Milliseconds that a lost tunnel is tried to be resumed; 30000. */
  hold?: number;
  /** Milliseconds after which a silent gateway is asked whether it is there, 5000, and
   * then has to answer, 3000. */
  silence?: number;
  patience?: number;
  /** Told what becomes of a tunnel. */
  onEvent?: (event: TunnelEvent, error?: Error) => void;
  /** 32 random bytes, where there is no crypto.getRandomValues. */
  random?: () => Uint8Array;
}

type Options = Required<Omit<DialerOptions, "gateways">> & { gateways: string[] };

/** An open connection behind the gateway's 200. */
interface Line {
  socket: Socket;
  received: (data: Uint8Array) => void;
  closed: (reason: string, clean: boolean) => void;
}

export class Dialer {
  private options: Options;

  constructor(options: DialerOptions) {
    const gateways = typeof options.gateways === "string" ? [options.gateways] : options.gateways.slice();
    if (gateways.length === 0) throw new TypeError("no gateway to dial");
    this.options = {
      connect: options.connect || byWebSocket(),
      newLine: () => null, plain: false, timeout: 5000, hold: 30000, silence: 5000, patience: 3000,
      onEvent: () => {}, random,
      ...Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined)),
      gateways,
    } as Options;
  }

  /** Opens a tunnel to the game server whose sealed line, or token, is given. Rejected
   * with a GatewayError. */
  async dial(line: string): Promise<Tunnel> {
    for (let again = true; ; again = false) {
      let error = new NoAnswer() as GatewayError;
      for (let at = 0; at < this.options.gateways.length; at++) {
        try {
          return await this.open(at, line.trim());
        } catch (e) {
          if (!(e instanceof GatewayError)) throw e;
          error = e;
          if (e instanceof Unauthorized) break; // the next gateway would say the same
        }
      }
      const fresh = again && error.status ? await this.options.newLine(error) : null;
      if (!fresh) throw error;
      line = fresh;
    }
  }

  private async open(at: number, line: string): Promise<Tunnel> {
    const o = this.options;
    if (!o.plain) {
      const session = new Session(o.random());
      try {
        const l = await ask(o, at, openLine(session.publicKey, line), null, session);
        return new Tunnel(o, at, l, session);
      } catch (e) { // what knows of no sessions calls them a bad address
        if (!(e instanceof BadRequest) && !(e instanceof Unauthorized)) throw e;
      }
    }
    return new Tunnel(o, at, await ask(o, at, line + "\n", null, null), null);
  }
}

function random(): Uint8Array {
  const crypto = (globalThis as any).crypto;
  if (!crypto?.getRandomValues) throw new TypeError("no crypto.getRandomValues here: give random, or plain: true");
  return crypto.getRandomValues(new Uint8Array(32));
}

/** Sends a request, and what follows it, and waits for 200; with a session that begins
 * for its HELLO too. What comes behind is kept until received is set. */
function ask(o: Options, at: number, request: string, then: Uint8Array | null, hello: Session | null): Promise<Line> {
  return new Promise((resolve, reject) => {
    let got: Uint8Array = new Uint8Array(0), answered = false, done = false;
    const early: Uint8Array[] = [];
    let ended: [string, boolean] | null = null;
    const timer = setTimeout(() => fail(new NoAnswer("the gateway did not answer in time: connect again")), o.timeout);
    const fail = (error: Error) => {
      if (done) return;
      done = true;
      clearTimeout(timer);
      line.socket?.close();
      reject(error);
    };
    const succeed = () => {
      done = true;
      clearTimeout(timer);
      resolve(line);
      // The promise's owner sets its callbacks first.
      setTimeout(() => {
        for (const data of early.splice(0)) line.received(data);
        if (ended) line.closed(...ended);
      }, 0);
      line.received = (data) => { early.push(data); };
      line.closed = (reason, clean) => { ended = [reason, clean]; };
    };
    const take = (data: Uint8Array) => {
      if (!answered) {
        got = concat(got, data);
        if (got.length < 3) return;
        const status = String.fromCharCode(...got.subarray(0, 3));
        if (status !== "200") return fail(errorOf(status));
        answered = true;
        data = got.subarray(3);
      }
      if (hello) {
        try {
          hello.input(data);
        } catch (e) {
          return fail(new NoAnswer((e as Error).message));
        }
        if (hello.key) succeed();
        return;
      }
      succeed();
      if (data.length > 0) early.push(data);
    };
    const line: Line = {
      socket: null as unknown as Socket,
      received: take,
      closed: (reason) => fail(new NoAnswer(`${o.gateways[at]}: ${reason}: connect again`)),
    };
    const held = (data: Uint8Array) => { early.length > 0 && done ? early.push(data) : line.received(data); };
    line.socket = o.connect(o.gateways[at], {
      opened: () => {
        if (done) return;
        line.socket.send(utf8(o.connect.messages ? request.replace(/\n$/, "") : request));
        if (then && then.length > 0) line.socket.send(then);
      },
      received: held,
      closed: (reason, clean) => { early.length > 0 && done ? ended = [reason, clean] : line.closed(reason, clean); },
    });
  });
}

/** Milliseconds between attempts to resume that bring nothing: at first, and at most. */
const pause = 50, longest = 1000;

/** A connection with a game server, which Dialer opens. */
export class Tunnel {
  /** How often it has been resumed. */
  resumes = 0;

  private waiting: Uint8Array[] = [];
  private queued: Uint8Array[] = []; // beyond the session's window
  private finishing = false;
  private ended = false;
  private end: { error: Error | null } | null = null; // of which nobody has been told yet
  private recovering = false;
  private hurry: (() => void) | null = null; // ends the pause between two attempts
  // Of attempts to resume since bytes got through: how many, since when, what there was then.
  private tries = 0;
  private pause = pause;
  private since = 0;
  private before = 0;
  private back = 0;
  private timer: ReturnType<typeof setInterval> | null = null;
  private heard = Date.now();
  private asked = 0;
  private messageHandler: ((bytes: Uint8Array) => void) | null = null;
  private closeHandler: ((error: Error | null) => void) | null = null;

  constructor(private options: Options, private at: number, private line: Line, private session: Session | null) {
    this.attach(line);
    if (session) {
      this.timer = setInterval(() => this.watch(), Math.max(10, Math.min(options.silence, options.patience, 1000) / 2));
      this.pump();
    }
  }

  /** Whether it outlives its connection. */
  get resumable(): boolean { return this.session !== null; }

  /** Bytes that were given to send and have not reached the gateway, as far as is known. */
  get bufferedAmount(): number {
    return this.queued.reduce((n, b) => n + b.length, 0) + (this.session ? this.session.unacked() : 0);
  }

  /** Called with what the game server sends, part by part; what came before is kept. */
  get onmessage() { return this.messageHandler; }
  set onmessage(f) {
    this.messageHandler = f;
    Promise.resolve().then(() => this.deliver());
  }

  /** Called once at the end: with null if the game server or this side has ended the
   * tunnel, else with the reason. */
  get onclose() { return this.closeHandler; }
  set onclose(f) {
    this.closeHandler = f;
    Promise.resolve().then(() => this.deliver());
  }

  /** Sends bytes, or a text as UTF-8. It does not wait. */
  send(data: string | Uint8Array | ArrayBuffer): void {
    if (this.ended || this.finishing) return;
    const bytes = typeof data === "string" ? utf8(data) : new Uint8Array(data as ArrayBuffer).slice();
    if (!this.session) return this.line.socket.send(bytes);
    this.queued.push(bytes);
    this.pump();
  }

  /** Finishes sending; what the game server sends still comes. Not by a plain WebSocket. */
  closeWrite(): void {
    if (this.ended || this.finishing) return;
    this.finishing = true;
    if (this.session) return this.pump();
    if (!this.line.socket.closeWrite) throw new Error("a WebSocket has no half-close: use close");
    this.line.socket.closeWrite();
  }

  /** Ends the tunnel; what was sent still arrives. */
  close(): void {
    if (this.ended) return;
    if (!this.session) return this.finish(null);
    this.messageHandler = () => {};
    this.closeWrite();
    setTimeout(() => this.finish(null), 2000);
    this.pump();
  }

  /** Ends the tunnel at once: the game server of a resumable one sees a reset. */
  abort(): void {
    if (!this.ended && this.session && !this.recovering) this.line.socket.send(Uint8Array.of(0, 0, 3, 0));
    this.finish(null);
  }

  /** Goes on by another connection: for when the system tells of a change of networks. */
  reconnect(): void {
    if (this.hurry) return this.hurry();
    if (!this.session || this.recovering) return;
    this.tries = 0;
    void this.lost(new NoAnswer("reconnect was called"));
  }

  private attach(line: Line): void {
    this.line = line;
    // What came to a line before it was given up counts no more: the request to resume
    // says what had been received.
    const over = () => line !== this.line || this.recovering || this.ended;
    line.received = (data) => {
      if (over()) return;
      this.heard = Date.now();
      this.asked = 0;
      if (this.session) {
        try {
          this.session.input(data);
        } catch (e) {
          return this.finish(e as Error);
        }
        this.pump();
      } else {
        this.waiting.push(data);
        this.deliver();
      }
    };
    line.closed = (reason, clean) => {
      if (over()) return;
      if (this.session) this.lost(new NoAnswer(reason));
      else this.finish(clean ? null : new Error(reason));
    };
  }

  /** Moves what there is to move, both ways. */
  private pump(): void {
    const s = this.session as Session;
    if (this.ended) return;
    for (let room = s.room(); room > 0 && this.queued.length > 0; room = s.room()) {
      const part = this.queued[0].subarray(0, room);
      s.send(part);
      if (part.length < this.queued[0].length) this.queued[0] = this.queued[0].subarray(part.length);
      else this.queued.shift();
    }
    if (this.finishing && this.queued.length === 0) s.finish();
    // Without a handler nothing is taken: the window holds the game server back.
    if (this.messageHandler) {
      const data = s.take(Date.now());
      if (data.length > 0) this.messageHandler(data);
    }
    if (!this.recovering && !this.ended) {
      const data = s.output(Date.now());
      if (data.length > 0) this.line.socket.send(data);
    }
    if (s.closed !== null) this.finish(new Gone("the game server or the gateway has ended the tunnel"));
    else if (s.complete()) this.finish(null);
    else if (s.ended && !this.finishing) this.closeWrite();
  }

  private watch(): void {
    if (this.recovering || this.ended) return;
    const now = Date.now();
    if (this.asked === 0) {
      if (now - this.heard >= this.options.silence) {
        this.asked = now;
        (this.session as Session).ping = true;
      }
    } else if (now - this.asked >= this.options.patience) {
      void this.lost(new NoAnswer("the gateway is silent"));
      return;
    }
    this.pump();
  }

  /** Looks for a connection that carries the tunnel on. */
  private async lost(error: Error): Promise<void> {
    if (this.recovering || this.ended) return;
    const o = this.options, s = this.session as Session;
    this.recovering = true;
    this.line.socket.close();
    o.onEvent("reconnecting", error);
    while (!this.ended) {
      if (!await this.prepare()) return this.finish(error);
      if (this.ended) return;
      try {
        const request = s.reattach();
        const line = await ask(o, this.at, request, s.output(Date.now()), null);
        if (this.ended) return line.socket.close();
        this.recovering = false;
        this.attach(line);
        this.heard = this.back = Date.now();
        this.asked = 0;
        this.resumes++;
        o.onEvent("back");
        return this.pump();
      } catch (e) {
        error = e as Error;
      }
      if (error instanceof Unauthorized || error instanceof Gone) return this.finish(error);
      o.onEvent("failed", error);
    }
  }

  /** Waits where the last attempt has brought nothing, and chooses the gateway; false: it was
   * tried for long enough. A gateway that answers 200 and ends the connection again and again
   * brings nothing. */
  private async prepare(): Promise<boolean> {
    const o = this.options, now = Date.now(), progress = (this.session as Session).progress();
    if (this.tries === 0 || progress !== this.before || this.back > 0 && now - this.back >= 2 * longest) {
      this.tries = 0;
      this.pause = pause;
      this.since = now;
    } else if (now - this.since >= o.hold) {
      return false;
    } else {
      this.at = (this.at + 1) % o.gateways.length;
    }
    this.back = 0;
    this.before = progress;
    if (this.tries++ > 0 && (this.tries - 1) % o.gateways.length === 0) {
      await new Promise<void>((resolve) => {
        this.hurry = resolve;
        setTimeout(resolve, this.pause * (1 + Math.random()));
      });
      this.hurry = null;
      this.pause = Math.min(2 * this.pause, longest);
    }
    return true;
  }

  private finish(error: Error | null): void {
    if (this.ended) return;
    this.ended = true;
    if (this.timer) clearInterval(this.timer);
    this.line.socket.close();
    this.end = { error };
    if (this.session) {
      const data = this.session.take(Date.now());
      if (data.length > 0) this.waiting.push(data);
    }
    this.options.onEvent("ended", error || undefined);
    this.deliver();
  }

  private deliver(): void {
    if (this.session && !this.ended) this.pump();
    while (this.messageHandler && this.waiting.length > 0) this.messageHandler(this.waiting.shift() as Uint8Array);
    if (this.closeHandler && this.end && this.waiting.length === 0) {
      const { error } = this.end;
      this.end = null;
      this.closeHandler(error);
    }
  }
}

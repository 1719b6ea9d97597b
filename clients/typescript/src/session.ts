// The client's end of a resumable tunnel: offsets, frames and keys, without a socket
// or a clock. docs/roaming.md describes the protocol; clients/testdata has its vectors.

import { base64url, basePoint, concat, hmac, utf8, x25519 } from "./crypto.js";

const ACK = 1, FIN = 2, CLOSE = 3, PING = 4, PONG = 5, HELLO = 6, SKIPPED = 128;
const maxData = 16384;
const ackWithData = 4 << 10, ackAlone = 32 << 10, ackDelay = 1000; // bytes, bytes, milliseconds

/** What was received is not the protocol. */
export class Violation extends Error {}

/** Returns K; throws Violation where the gateway's key is none. */
export function sessionKey(secret: Uint8Array, own: Uint8Array, gateway: Uint8Array): Uint8Array {
  const shared = x25519(secret, gateway);
  if (shared.every((b) => b === 0)) throw new Violation("the gateway's key is none");
  // HKDF-SHA256 (RFC 5869), of which one block is enough.
  return hmac(hmac(concat(own, gateway), shared), utf8("gateway resume key 1\x01"));
}

export function openLine(own: Uint8Array, sealed: string): string {
  return `~1N ${base64url(own)} ${sealed}\n`;
}

/** Numbers may come as text, where they have more than 53 bits. */
export function resumeLine(key: Uint8Array, ticket: string, seq: number | string, from: number | string,
  recv: number | string): string {
  const mac = hmac(key, utf8(`resume 1\n${ticket}\n${seq}\n${from}\n${recv}`));
  return `~1R ${ticket} ${seq} ${from} ${recv} ${base64url(mac)}\n`;
}

/** A queue of bytes. */
class Queue {
  private parts: Uint8Array[] = [];
  length = 0;

  add(b: Uint8Array): void {
    if (b.length === 0) return;
    this.parts.push(b);
    this.length += b.length;
  }

  /** Copies n bytes from offset at on. */
  peek(at: number, n: number): Uint8Array {
    const out = new Uint8Array(n);
    let done = 0;
    for (const p of this.parts) {
      if (done === n) break;
      if (at >= p.length) {
        at -= p.length;
        continue;
      }
      const part = p.subarray(at, at + n - done);
      out.set(part, done);
      done += part.length;
      at = 0;
    }
    return out;
  }

  drop(n: number): void {
    this.length -= n;
    while (n > 0) {
      const p = this.parts[0];
      if (p.length > n) {
        this.parts[0] = p.subarray(n);
        return;
      }
      n -= p.length;
      this.parts.shift();
    }
  }

  takeAll(): Uint8Array {
    const all = this.peek(0, this.length);
    this.drop(this.length);
    return all;
  }
}

/** All offsets count from 0, and the end of a direction as one more byte. */
export class Session {
  readonly publicKey: Uint8Array;
  key: Uint8Array | null = null;
  ticket = "";
  /** The reason of the gateway's CLOSE. */
  closed: number | null = null;
  finished = false;
  ended = false;
  ping = false;

  private window = 0;
  private seq = 0;
  // What is sent. out holds the bytes from base on: the lowest that was not
  // acknowledged, or that this connection has yet to carry.
  private out = new Queue();
  private base = 0;
  private end = 0;
  private acked = 0;
  private next = 0;
  private sent = 0;
  // What is received.
  private inbox = new Queue();
  private received = 0;
  private passed = 0;
  private reported = 0;
  private since = 0;
  // The frame at hand.
  private head: number[] = [];
  private left = 0;
  private skipping = false;
  private ackNow = false;
  private pong = false;

  /** @param secret 32 random bytes */
  constructor(private secret: Uint8Array) {
    this.publicKey = x25519(secret, basePoint);
  }

  /** How many bytes may be sent now. */
  room(): number {
    return this.finished || this.closed !== null ? 0 : Math.max(0, this.window - this.out.length);
  }

  send(data: Uint8Array): void {
    this.out.add(data);
    this.end += data.length;
  }

  finish(): void {
    this.finished = true;
  }

  /** Both directions have ended, and both sides know. */
  complete(): boolean {
    return this.finished && this.acked === this.end + 1 && this.ended &&
      this.passed === this.received && this.reported === this.passed;
  }

  over(): boolean {
    return this.closed !== null || this.complete();
  }

  /** Bytes that the gateway has not acknowledged. */
  /** Grows with each byte that is acknowledged or received. */
  progress(): number {
    return this.acked + this.received;
  }

  unacked(): number {
    return this.end - this.acked;
  }

  /** Returns all that was received and not taken: the application has it now. */
  take(now: number): Uint8Array {
    const data = this.inbox.takeAll();
    if (this.received > this.passed) {
      if (this.passed === this.reported) this.since = now;
      this.passed = this.received;
      if (this.ended) this.ackNow = true;
    }
    return data;
  }

  /** Returns the bytes that are to be written to the connection. */
  output(now: number): Uint8Array {
    const parts: Uint8Array[] = [];
    const unreported = this.passed - this.reported;
    if (this.pong) parts.push(Uint8Array.of(0, 0, PONG));
    if (this.ackNow || unreported >= ackAlone || (unreported >= ackWithData && this.next < this.end) ||
      (unreported > 0 && now - this.since >= ackDelay)) {
      const ack = Uint8Array.of(0, 0, ACK, 0, 0, 0, 0);
      new DataView(ack.buffer).setUint32(3, this.passed % 0x100000000);
      parts.push(ack);
      this.reported = this.passed;
    }
    if (this.ping) parts.push(Uint8Array.of(0, 0, PING));
    this.pong = this.ackNow = this.ping = false;
    while (this.next < this.end) {
      const n = Math.min(this.end - this.next, maxData);
      parts.push(Uint8Array.of(n >> 8, n & 255), this.out.peek(this.next - this.base, n));
      this.next += n;
    }
    if (this.finished && this.next === this.end) {
      parts.push(Uint8Array.of(0, 0, FIN));
      this.next++;
    }
    this.sent = Math.max(this.sent, this.next);
    this.drop();
    return concat(...parts);
  }

  private drop(): void {
    const kept = Math.min(this.acked, this.next, this.end);
    this.out.drop(kept - this.base);
    this.base = kept;
  }

  /** Takes what was read from the connection, cut anywhere; throws Violation. */
  input(data: Uint8Array): void {
    while (data.length > 0 && this.closed === null) {
      if (this.left > 0) { // of a frame of data, or of one to be skipped
        const part = data.subarray(0, this.left);
        data = data.subarray(part.length);
        this.left -= part.length;
        if (!this.skipping) this.takeData(part);
        continue;
      }
      const n = Math.min(data.length, this.size() - this.head.length);
      for (let i = 0; i < n; i++) this.head.push(data[i]);
      data = data.subarray(n);
      if (this.head.length === this.size()) {
        const head = Uint8Array.from(this.head);
        this.head = [];
        this.takeHead(head);
      }
    }
  }

  /** How long the head at hand is at least, by what there is of it. */
  private size(): number {
    const h = this.head;
    if (h.length < 2 || h[0] || h[1]) return 2;
    if (h.length < 3) return 3;
    if (h[2] === ACK) return 7;
    if (h[2] === CLOSE) return 4;
    if (h[2] === HELLO && h.length >= 5) return 5 + h[3] * 256 + h[4];
    return h[2] === HELLO || h[2] >= SKIPPED ? 5 : 3;
  }

  private takeHead(head: Uint8Array): void {
    const kind = head.length > 2 ? head[2] : 0;
    if ((kind === HELLO) !== (this.key === null)) throw new Violation("HELLO comes once, and first");
    if (head.length === 2) {
      this.left = head[0] * 256 + head[1];
      this.skipping = false;
    } else if (kind === ACK) {
      this.takeAck(new DataView(head.buffer).getUint32(3));
    } else if (kind === FIN) {
      if (this.ended) throw new Violation("a second end");
      this.ended = true;
      this.received++;
    } else if (kind === CLOSE) {
      this.closed = head[3];
    } else if (kind === PING) {
      this.pong = true;
    } else if (kind === HELLO) {
      this.takeHello(head.slice(5));
    } else if (kind >= SKIPPED) {
      this.left = head[3] * 256 + head[4];
      this.skipping = true;
    } else if (kind !== PONG) {
      throw new Violation(`there is no frame of type ${kind}`);
    }
  }

  private takeHello(body: Uint8Array): void {
    const window = body.length > 36 && body.length <= 36 + 256 ? new DataView(body.buffer).getUint32(0) : 0;
    if (window < 64 << 10 || window > 1 << 30) throw new Violation("a HELLO that is none");
    this.ticket = String.fromCharCode(...body.subarray(4, -32));
    this.key = sessionKey(this.secret, this.publicKey, body.slice(-32));
    this.window = window;
  }

  private takeData(data: Uint8Array): void {
    if (this.ended) throw new Violation("data behind the end");
    if (this.received - this.reported + data.length > this.window) throw new Violation("more than the window");
    this.inbox.add(data.slice());
    this.received += data.length;
  }

  private takeAck(low: number): void {
    const acked = this.acked + ((low - (this.acked % 0x100000000) + 0x100000000) % 0x100000000);
    if (acked > this.sent) throw new Violation("an ACK beyond what was sent");
    this.acked = acked;
    this.drop();
  }

  /** Begins with a new connection, and returns the line to send on it. What is sent
   * behind it starts at the lowest byte that is not acknowledged. */
  reattach(): string {
    this.seq++;
    this.head = [];
    this.left = 0;
    this.pong = this.ping = false;
    this.ackNow = true;
    this.next = this.acked;
    this.drop();
    return resumeLine(this.key as Uint8Array, this.ticket, this.seq, this.acked, this.received);
  }
}

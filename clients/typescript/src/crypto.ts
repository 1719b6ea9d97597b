// X25519 (RFC 7748), SHA-256 and HMAC, for mini-games and browsers that lack them.
// The arithmetic is BigInt's, whose time depends on the values: for keys that live as
// long as one tunnel, and for nothing that is kept.

const K = new Uint32Array(64);
const H0 = new Uint32Array(8);
{
  // The first 32 bits of the fractions of cube and square roots of primes.
  let n = 0;
  for (let p = 2; n < 64; p++) {
    let prime = true;
    for (let d = 2; d * d <= p; d++) if (p % d === 0) prime = false;
    if (!prime) continue;
    if (n < 8) H0[n] = (Math.sqrt(p) % 1) * 0x100000000;
    K[n++] = (Math.cbrt(p) % 1) * 0x100000000;
  }
}

export function sha256(message: Uint8Array): Uint8Array {
  const blocks = ((message.length + 8) >> 6) + 1;
  const padded = new Uint8Array(blocks * 64);
  padded.set(message);
  padded[message.length] = 128;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(message.length / 0x20000000));
  view.setUint32(padded.length - 4, message.length << 3);
  const h = H0.slice();
  const w = new Uint32Array(64);
  const rotate = (x: number, n: number) => (x >>> n) | (x << (32 - n));
  for (let at = 0; at < padded.length; at += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ (a >>> 3)) +
        (rotate(b, 17) ^ rotate(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, z] = h as unknown as number[];
    for (let i = 0; i < 64; i++) {
      const t1 = (z + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const t2 = ((rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      z = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, z].forEach((x, i) => { h[i] += x; });
  }
  const sum = new Uint8Array(32);
  h.forEach((x, i) => new DataView(sum.buffer).setUint32(4 * i, x));
  return sum;
}

export function hmac(key: Uint8Array, message: Uint8Array): Uint8Array {
  const block = new Uint8Array(64);
  block.set(key.length > 64 ? sha256(key) : key);
  const inner = sha256(concat(block.map((b) => b ^ 0x36), message));
  return sha256(concat(block.map((b) => b ^ 0x5c), inner));
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

export function hex(b: Uint8Array): string {
  return Array.from(b, (x) => (x + 256).toString(16).slice(1)).join("");
}

export function utf8(text: string): Uint8Array {
  return Uint8Array.from(unescape(encodeURIComponent(text)), (c) => c.charCodeAt(0));
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

export function base64url(b: Uint8Array): string {
  let text = "", bits = 0, n = 0;
  for (const x of b) {
    bits = ((bits << 8) | x) & 0xffff;
    for (n += 8; n >= 6; ) text += alphabet[(bits >> (n -= 6)) & 63];
  }
  return n ? text + alphabet[(bits << (6 - n)) & 63] : text;
}

/** Returns what both sides get, 32 bytes; all zeros is a public key that is none. */
export function x25519(secret: Uint8Array, point: Uint8Array): Uint8Array {
  const big = BigInt;
  const zero = big(0), one = big(1), two = big(2);
  const prime = (one << big(255)) - big(19);
  const mod = (x: bigint) => ((x %= prime) < zero ? x + prime : x);
  const number = (b: Uint8Array) => big("0x" + hex(b.slice().reverse()));
  const clamped = secret.slice();
  clamped[0] &= 248;
  clamped[31] = (clamped[31] & 127) | 64;
  const k = number(clamped);
  const x1 = number(point) & ((one << big(255)) - one);
  let x2 = one, z2 = zero, x3 = x1, z3 = one, swap = zero;
  for (let t = 254; t >= 0; t--) {
    const bit = (k >> big(t)) & one;
    if (swap !== bit) [x2, x3, z2, z3] = [x3, x2, z3, z2];
    swap = bit;
    const a = x2 + z2, b = x2 - z2, c = x3 + z3, d = x3 - z3;
    const aa = mod(a * a), bb = mod(b * b), da = mod(d * a), cb = mod(c * b), e = aa - bb;
    x3 = mod((da + cb) * (da + cb));
    z3 = mod(x1 * mod((da - cb) * (da - cb)));
    x2 = mod(aa * bb);
    z2 = mod(e * (aa + big(121665) * e));
  }
  if (swap) [x2, z2] = [x3, z3];
  let inverse = one;
  for (let e = prime - two, b = z2; e > zero; e >>= one, b = mod(b * b)) {
    if (e & one) inverse = mod(inverse * b);
  }
  let x = mod(x2 * inverse);
  const out = new Uint8Array(32);
  for (let i = 0; i < 32; i++, x >>= big(8)) out[i] = Number(x & big(255));
  return out;
}

export const basePoint = Uint8Array.from({ length: 32 }, (_, i) => (i ? 0 : 9));

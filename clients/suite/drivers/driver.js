// node driver.js DIST MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go.

const [dist, mode, gateways, given, milliseconds, text] = process.argv.slice(2);
const { Dialer, GatewayError, byNode, byWebSocket, byMiniGame } = require(dist + "/cjs/index.js");
const { Session, Violation, openLine, resumeLine, sessionKey } = require(dist + "/cjs/session.js");
const { base64url, basePoint, hex, x25519 } = require(dist + "/cjs/crypto.js");

const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));

const vector = {
  key(secret, gateway) {
    const own = x25519(bytes(secret), basePoint);
    return base64url(own) + " " + hex(sessionKey(bytes(secret), own, bytes(gateway)));
  },
  open: (own, sealed) => openLine(bytes(own), sealed).trimEnd(),
  resume: (key, ...rest) => resumeLine(bytes(key), ...rest).trimEnd(),
  session(key, ...steps) {
    const s = new Session(bytes("01".repeat(32)));
    let reads = "";
    for (const step of steps) {
      const [what, value] = step.split(":");
      if (what === "receive") {
        for (const b of bytes(value)) s.input(Uint8Array.of(b));
        if (s.key) s.key = bytes(key);
      } else if (what === "write") {
        s.send(bytes(value));
        s.output(0);
      } else if (what === "finish") {
        s.finish();
        s.output(0);
      } else {
        s.reattach();
      }
      reads += hex(s.take(0));
    }
    const line = s.reattach().trimEnd();
    return `${line} ${hex(s.output(0))} ${reads}`;
  },
};

function vectors() {
  for (const request of require("fs").readFileSync(0, "utf8").trim().split("\n")) {
    const [word, ...rest] = request.split(" ");
    try {
      console.log(vector[word](...rest));
    } catch (e) {
      if (!(e instanceof Violation)) throw e;
      console.log("refused");
    }
  }
}

// A wx that behaves as WeChat documents it: callbacks of a task, whole ArrayBuffers.
const WebSocket = globalThis.WebSocket || webSocket();
const wx = {
  connectSocket({ url, fail }) {
    const on = {};
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => on.open({ header: {} });
    socket.onmessage = ({ data }) => on.message({ data });
    socket.onerror = () => on.error({ errMsg: "connectSocket:fail" });
    socket.onclose = ({ code, reason }) => on.close({ code, reason });
    return {
      onOpen: (f) => { on.open = f; },
      onMessage: (f) => { on.message = f; },
      onError: (f) => { on.error = f; },
      onClose: (f) => { on.close = f; },
      send({ data }) {
        if (!(data instanceof ArrayBuffer) && typeof data !== "string") throw new TypeError("data");
        socket.send(data);
      },
      close: ({ code }) => socket.close(code),
    };
  },
};

// As much of a WebSocket as Node 20 lacks.
function webSocket() {
  const net = require("net");
  return class {
    constructor(url) {
      const { hostname, port } = new URL(url);
      let raw = Buffer.alloc(0), opened = false;
      this.socket = net.connect({ host: hostname, port });
      this.socket.on("connect", () => this.socket.write(`GET / HTTP/1.1\r\nHost: ${hostname}\r\nUpgrade: websocket\r\n` +
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"));
      this.socket.on("error", (error) => this.onerror({ error }));
      this.socket.on("close", () => this.onclose({ code: this.code || 1006, reason: "" }));
      this.socket.on("data", (data) => {
        raw = Buffer.concat([raw, data]);
        if (!opened) {
          const at = raw.indexOf("\r\n\r\n");
          if (at < 0) return;
          raw = raw.subarray(at + 4);
          opened = true;
          this.onopen({});
        }
        for (;;) {
          if (raw.length < 2) return;
          let n = raw[1], at = 2;
          if (n === 126) [n, at] = [raw.length < 4 ? Infinity : raw.readUInt16BE(2), 4];
          else if (n === 127) [n, at] = [raw.length < 10 ? Infinity : Number(raw.readBigUInt64BE(2)), 10];
          if (raw.length < at + n) return;
          const body = raw.subarray(at, at + n), opcode = raw[0] & 15;
          raw = raw.subarray(at + n);
          if (opcode === 8) {
            this.code = body.length >= 2 ? body.readUInt16BE(0) : 1005;
            this.frame(8, body);
            this.socket.end();
          } else if (opcode === 9) this.frame(10, body);
          else if (opcode <= 2) this.onmessage({ data: new Uint8Array(body).buffer });
        }
      });
    }
    frame(opcode, body) {
      const n = body.length;
      const head = n < 126 ? [n | 128] : n < 65536 ? [254, n >> 8, n & 255] : [255, 0, 0, 0, 0, ...[24, 16, 8, 0].map((s) => (n >>> s) & 255)];
      this.socket.write(Buffer.concat([Buffer.from([opcode | 128, ...head, 0, 0, 0, 0]), Buffer.from(body)]));
    }
    send(data) { this.frame(2, typeof data === "string" ? Buffer.from(data) : Buffer.from(data.buffer ? data.slice() : new Uint8Array(data))); }
    close(code) { this.frame(8, Buffer.from([code >> 8, code & 255])); this.code = code; this.socket.end(); }
  };
}

async function run() {
  const lines = given.split(",");
  const messages = gateways.includes("://") && !gateways.startsWith("tls");
  const ca = process.env.CA && require("fs").readFileSync(process.env.CA);
  const connect = !messages ? byNode(require("net"), require("tls"), ca ? { ca } : {}) : gateways.startsWith("wx") ? byMiniGame(wx) : byWebSocket(WebSocket);
  const stuck = ["told", "silent", "leave"].includes(mode);
  const bulk = mode === "bulk" || mode === "again" || stuck;
  const patience = !stuck ? undefined : mode === "silent" ? 500 : 60000;
  let backs = 0, tunnel = null;
  const dialer = new Dialer({
    gateways: gateways.replace("wx:", "ws:").split(","), connect, plain: mode === "talk", timeout: stuck ? 60000 : Number(milliseconds), hold: 10000,
    silence: patience, patience,
    newLine: () => lines[1],
    onEvent: (event) => {
      if (event === "back") backs++;
      if (mode === "again" && event !== "ended" && backs <= 20) tunnel.reconnect();
    },
  });
  tunnel = await dialer.dial(lines[0]);
  if (mode === "again") {
    tunnel.reconnect();
    let times = 50;
    const often = setInterval(() => {
      tunnel.reconnect();
      if (--times === 0) clearInterval(often);
    }, 1);
  }
  const want = bulk ? Buffer.from(Array.from({ length: Number(text) }, (_, i) => (i * 7 + Math.floor(i / 251)) & 255)) : Buffer.from(text);
  let got = Buffer.alloc(0);
  if (stuck) {
    dialer.options.timeout = Number(milliseconds); // dialling is not what is tested
    return stick(tunnel, want);
  }
  const error = await new Promise((resolve) => {
    let sent = 0;
    const more = () => {
      if (sent < want.length) tunnel.send(want.subarray(sent, sent += 4096));
      else if (bulk) tunnel.close(), resolve(null);
    };
    tunnel.onmessage = (data) => {
      got = Buffer.concat([got, data]);
      if (bulk && got.length === Math.min(sent, want.length)) more();
      if (messages && got.length === "welcome".length + want.length) tunnel.close(), resolve(null);
    };
    tunnel.onclose = resolve;
    more();
    if (!bulk && !messages) tunnel.closeWrite();
  });
  if (error) throw error;
  if (!bulk) return `ok ${tunnel.resumable ? "resumable" : "plain"} ${got}`;
  return got.equals(want) ? `ok ${got.length} ${tunnel.resumes ? "resumed" : "not resumed"}` : "other bytes";
}

// Sends all at once, into a connection that takes nothing more.
async function stick(tunnel, want) {
  const parts = [];
  const all = new Promise((resolve, reject) => {
    tunnel.onmessage = (data) => {
      parts.push(data);
      if (parts.reduce((n, part) => n + part.length, 0) >= want.length) resolve();
    };
    tunnel.onclose = reject;
  });
  all.catch(() => {});
  for (let at = 0; at < want.length; at += 4096) tunnel.send(want.subarray(at, at + 4096));
  if (mode !== "silent") {
    for (let last = -1, rests = 0; rests < 100; last = tunnel.bufferedAmount) {
      rests = tunnel.bufferedAmount === last ? rests + 1 : 0;
      await new Promise((resolve) => { setTimeout(resolve, 10); });
    }
    if (tunnel.bufferedAmount === 0) return "not stuck";
  }
  if (mode === "told") tunnel.reconnect();
  if (mode === "leave") {
    const began = Date.now();
    tunnel.close();
    const took = Date.now() - began;
    return took < 1000 ? "closed in time" : `closed after ${took} ms`;
  }
  await all;
  tunnel.close();
  const got = Buffer.concat(parts);
  return got.equals(want) ? `ok ${got.length} ${tunnel.resumes ? "resumed" : "not resumed"}` : "other bytes";
}

if (mode === "vectors") vectors();
else {
  run().catch((e) => {
    if (!(e instanceof GatewayError)) throw e;
    return `error ${e.status} ${e.advice}`;
  }).then((line) => {
    console.log(line);
    process.exit();
  });
}

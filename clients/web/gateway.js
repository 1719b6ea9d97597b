// A tunnel through the gateway to a TCP game server, for web pages and whatever
// else has WebSockets. It needs no other file: copy it into your game.
//
//     import { connect } from "./gateway.js";
//
//     const tunnel = await connect("wss://play.example.com/", line);
//     tunnel.onmessage = (bytes) => { ... };    // a Uint8Array
//     tunnel.onclose = ({ code }) => { ... };
//     tunnel.send("hello\n");
//
// Where there is no WebSocket by that name, or another one is wanted, give its
// constructor: connect(url, line, { WebSocket }).
//
// The game server speaks TCP, which knows no messages but a stream of bytes. On
// its way through the gateway what is sent may be cut and joined anywhere, so
// mark where your messages end: by a newline, say, or a length before each.

/** @type {Record<string, string>} */
const reasons = {
  400: "the gateway could not read the line (400): it is too long, or came too late",
  401: "the line does not open (401): get a new one",
  502: "the game server cannot be connected (502): get a new line, or try later",
  504: "connecting the game server took too long (504): get a new line, or try later",
};

/** Why there is no tunnel. */
export class GatewayError extends Error {
  /**
   * @param {number} status
   * @param {string} [message]
   */
  constructor(status, message = reasons[status]) {
    super(message);
    this.name = "GatewayError";
    /**
     * What the gateway answered: 400, 401, 502 or 504; or 0 if it gave no
     * answer, or none that a page can see.
     * @type {number}
     */
    this.status = status;
  }
}

/**
 * @typedef {object} Options
 * @property {number} [timeout] how long to wait for the gateway's answer, in
 *   milliseconds; 10,000 unless given
 * @property {new (url: string) => WebSocket} [WebSocket] what to connect with: a
 *   mini-game's adapter, or the ws of npm; the global WebSocket unless given
 */

/**
 * Connects to the game server that is sealed in a line. The line is the first
 * message of the WebSocket, and the gateway's status is the answer, so that a
 * failure has its reason.
 *
 * @param {string} url of the gateway: ws://host:port/ or wss://host:port/
 * @param {string} line the sealed address
 * @param {Options} [options]
 * @returns {Promise<Tunnel>} rejected with a GatewayError, or with what WebSocket
 *   itself throws: at ws: from a page that came by https:, for one
 */
export function connect(url, line, options) {
  return open(url, line.trim(), options);
}

/**
 * Does the same with the line in the URL, which saves a round trip. What it
 * costs: browsers don't tell pages the status of a failed handshake, so the
 * GatewayError has status 0 whatever the reason; and proxies on the way may
 * log the line.
 *
 * @param {string} url of the gateway: ws://host:port/ or wss://host:port/
 * @param {string} line the sealed address
 * @param {Options} [options]
 * @returns {Promise<Tunnel>} rejected in the same way
 */
export function connectByQuery(url, line, options) {
  const parameter = "x-cipher-origin=" + encodeURIComponent(line.trim());
  return open(url + (url.includes("?") ? "&" : "?") + parameter, null, options);
}

/**
 * What an error event says of its reason, behind a colon, or another text: browsers
 * say nothing, so that no page can look round in a private network.
 *
 * @param {{ message?: string, error?: { message?: string }, errMsg?: string }} event
 *   errMsg is that of mini-games
 * @param {string} [silence]
 */
function reasonIn(event, silence = "") {
  const reason = event?.message || event?.error?.message || event?.errMsg;
  return reason ? ": " + reason : silence;
}

/**
 * @param {string} url
 * @param {string | null} line the first message, or null if the URL says it all
 * @param {Options} [options]
 * @returns {Promise<Tunnel>}
 */
function open(url, line, { timeout = 10000, WebSocket = globalThis.WebSocket } = {}) {
  return new Promise((resolve, reject) => {
    if (!WebSocket) {
      throw new TypeError("there is no WebSocket here: give one in the options, as { WebSocket }");
    }
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    let opened = false;
    const timer = setTimeout(() => {
      fail(new GatewayError(0, `no answer from the gateway within ${timeout} ms`));
    }, timeout);

    /** @param {GatewayError} error */
    function fail(error) {
      clearTimeout(timer);
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {}; // of the close; in Node an error that nobody takes ends the process
      socket.close();
      reject(error);
    }
    function succeed() {
      clearTimeout(timer);
      socket.onopen = null;
      resolve(new Tunnel(socket));
    }

    socket.onopen = () => {
      opened = true;
      if (line === null) {
        succeed();
      } else {
        socket.send(line);
      }
    };
    socket.onmessage = ({ data }) => {
      // The answer is a message of its own: three bytes.
      const status = String.fromCharCode(...new Uint8Array(data).subarray(0, 4));
      if (status === "200") {
        succeed();
      } else if (reasons[status]) {
        fail(new GatewayError(Number(status)));
      } else {
        fail(new GatewayError(0, "the answer is no status: is this the gateway's URL?"));
      }
    };
    // Some mini-games close nothing behind an error.
    socket.onerror = (event) => {
      fail(new GatewayError(0, opened
        ? "the connection broke before the gateway answered" + reasonIn(event)
        : "the gateway is not there or refuses" + reasonIn(event, "; a browser does not tell pages which")));
    };
    socket.onclose = ({ code }) => {
      fail(new GatewayError(0, opened
        ? `the gateway closed without an answer (close code ${code})`
        : "the gateway is not there or refuses; a browser does not tell pages which"));
    };
  });
}

/**
 * A connection with a game server. connect makes it.
 */
export class Tunnel {
  #socket;
  /** @type {Uint8Array[]} what has come and nobody has taken yet */
  #waiting = [];
  #broken = false;
  /** @type {Error | null} of which nobody has been told yet */
  #failed = null;
  /** @type {CloseEvent | null} of which nobody has been told yet */
  #closed = null;
  /** @type {((bytes: Uint8Array) => void) | null} */
  #onmessage = null;
  /** @type {((error: Error) => void) | null} */
  #onerror = null;
  /** @type {((event: CloseEvent) => void) | null} */
  #onclose = null;

  /** @param {WebSocket} socket an open one, of which the status has been read */
  constructor(socket) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => {
      this.#waiting.push(new Uint8Array(data));
      this.#deliver();
    };
    socket.onerror = (event) => {
      this.#fail(event);
      this.#deliver();
    };
    socket.onclose = (event) => {
      if (event.code === 1006) this.#fail(event); // browsers have no error for a reset
      this.#closed = event;
      this.#deliver();
    };
  }

  /**
   * Sends bytes, or a text as UTF-8, of at most 16 MiB at a time. After the end
   * of the tunnel it does nothing.
   * @param {string | ArrayBuffer | ArrayBufferView<ArrayBuffer>} data
   */
  send(data) {
    this.#socket.send(data);
  }

  /** How many bytes have been given to send and are still on this machine. */
  get bufferedAmount() {
    return this.#socket.bufferedAmount;
  }

  /**
   * Called with what the game server sends, part by part. What came before it
   * was set is kept for it.
   */
  get onmessage() {
    return this.#onmessage;
  }
  set onmessage(f) {
    this.#onmessage = f;
    Promise.resolve().then(() => this.#deliver());
  }

  /**
   * Called before onclose if the network broke the connection, with an Error
   * whose message is for people. It has the reason where the WebSocket tells it.
   */
  get onerror() {
    return this.#onerror;
  }
  set onerror(f) {
    this.#onerror = f;
    Promise.resolve().then(() => this.#deliver());
  }

  /**
   * Called once, at the end of the tunnel. The event's code is 1000 if the game
   * server or the page has closed, 1001 if the gateway leaves, 1011 if the game
   * server broke the connection, 1006 if the network did.
   */
  get onclose() {
    return this.#onclose;
  }
  set onclose(f) {
    this.#onclose = f;
    Promise.resolve().then(() => this.#deliver());
  }

  /**
   * Ends the tunnel, both ways at once: a WebSocket has no half-close. What was
   * sent still reaches the game server.
   * @param {number} [code] 1000, or one of your own from 3000 to 4999
   * @param {string} [reason] goes no further than the gateway
   */
  close(code = 1000, reason = "") {
    this.#socket.close(code, reason);
  }

  /** @param {object} event the first one that tells of it */
  #fail(event) {
    if (this.#broken) return;
    this.#broken = true;
    this.#failed = new Error("the connection broke" + reasonIn(event, "; a browser does not tell pages why"));
  }

  #deliver() {
    while (this.#onmessage && this.#waiting.length > 0) {
      const bytes = /** @type {Uint8Array} */ (this.#waiting.shift());
      this.#onmessage(bytes);
    }
    if (this.#onerror && this.#failed) {
      const error = this.#failed;
      this.#failed = null;
      this.#onerror(error);
    }
    if (this.#onclose && this.#closed) {
      const event = this.#closed;
      this.#closed = null;
      this.#onclose(event);
    }
  }
}

package io.gateway.client;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.util.Arrays;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * The client's end of a resumable tunnel: offsets, frames and keys, without a socket or a clock.
 * docs/roaming.md describes the protocol; clients/testdata has its vectors. All offsets count from
 * 0, and the end of a direction as one more byte. Times are milliseconds.
 */
final class Session {
    /** What was received is not the protocol. */
    static final class Violation extends Exception {
        private static final long serialVersionUID = 1;
        Violation(String message) { super(message); }
    }

    private static final int ACK = 1, FIN = 2, CLOSE = 3, PING = 4, PONG = 5, HELLO = 6, SKIPPED = 128;
    private static final char[] ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".toCharArray();

    private final byte[] secret;
    final byte[] publicKey;
    byte[] key;
    String ticket;
    /** The reason of the gateway's CLOSE, or -1. */
    int closed = -1;
    boolean finished, ended, ping;

    private int window;
    private long seq;
    // What is sent. out holds the bytes from base on: the lowest that was not acknowledged, or
    // that this connection has yet to carry.
    private final Queue out = new Queue();
    private long base, end, acked, next, sent;
    // What is received.
    private final Queue in = new Queue();
    private long received, passed, reported, since;
    // The frame at hand.
    private byte[] head = new byte[512];
    private int headSize, left;
    private boolean skipping, ackNow, pong;

    /** secret: 32 random bytes. */
    Session(byte[] secret) {
        this.secret = secret;
        publicKey = X25519.publicKey(secret);
    }

    /** Returns K. */
    static byte[] sessionKey(byte[] secret, byte[] own, byte[] gateway) throws Violation {
        byte[] shared = X25519.agree(secret, gateway);
        if (Arrays.equals(shared, new byte[32])) throw new Violation("the gateway's key is none");
        byte[] salt = Arrays.copyOf(own, 64);
        System.arraycopy(gateway, 0, salt, 32, 32);
        // HKDF-SHA256 (RFC 5869), of which one block is enough.
        return hmac(hmac(salt, shared), ascii("gateway resume key 1\u0001"));
    }

    static byte[] ascii(String text) { return text.getBytes(StandardCharsets.US_ASCII); }

    private static byte[] hmac(byte[] key, byte[] message) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(key, "HmacSHA256"));
            return mac.doFinal(message);
        } catch (GeneralSecurityException e) {
            throw new IllegalStateException(e); // every Java has it
        }
    }

    /** java.util.Base64 needs Android 26. */
    static String base64url(byte[] b) {
        StringBuilder text = new StringBuilder();
        int bits = 0, n = 0;
        for (byte x : b) {
            bits = (bits << 8 | x & 255) & 0xffff;
            for (n += 8; n >= 6; ) text.append(ALPHABET[bits >> (n -= 6) & 63]);
        }
        if (n > 0) text.append(ALPHABET[bits << (6 - n) & 63]);
        return text.toString();
    }

    static String openLine(byte[] own, String sealed) { return "~1N " + base64url(own) + " " + sealed + "\n"; }

    /** Numbers are unsigned. */
    static String resumeLine(byte[] key, String ticket, long seq, long from, long recv) {
        String s = Long.toUnsignedString(seq), f = Long.toUnsignedString(from), r = Long.toUnsignedString(recv);
        byte[] mac = hmac(key, ascii("resume 1\n" + ticket + "\n" + s + "\n" + f + "\n" + r));
        return "~1R " + ticket + " " + s + " " + f + " " + r + " " + base64url(mac) + "\n";
    }

    /** How many bytes may be sent now. */
    int room() { return finished || closed >= 0 ? 0 : Math.max(0, window - out.size); }

    void send(byte[] data, int offset, int count) {
        out.add(data, offset, count);
        end += count;
    }

    /** Both directions have ended, and both sides know. */
    boolean complete() {
        return finished && acked == end + 1 && ended && passed == received && reported == passed;
    }

    boolean over() { return closed >= 0 || complete(); }

    boolean atEnd() { return ended && in.size == 0; }

    /** Moves received bytes: the application has them now. */
    int take(byte[] data, int offset, int count, long now) {
        count = Math.min(count, in.size);
        in.copy(0, data, offset, count);
        in.drop(count);
        long to = received - in.size - (ended && in.size > 0 ? 1 : 0);
        if (to > passed) {
            if (passed == reported) since = now;
            passed = to;
            ackNow |= atEnd();
        }
        return count;
    }

    /** Grows with each byte that is acknowledged or received. */
    long progress() { return acked + received; }

    /** Returns what is to be written next to the connection: at most one frame of data. */
    byte[] output(long now) {
        ByteArrayOutputStream b = new ByteArrayOutputStream();
        long unreported = passed - reported;
        if (pong) b.write(new byte[] {0, 0, PONG}, 0, 3);
        if (ackNow || unreported >= 32 << 10 || unreported >= 4 << 10 && next < end || unreported > 0 && now - since >= 1000) {
            b.write(new byte[] {0, 0, ACK, (byte) (passed >> 24), (byte) (passed >> 16), (byte) (passed >> 8), (byte) passed}, 0, 7);
            reported = passed;
        }
        if (ping) b.write(new byte[] {0, 0, PING}, 0, 3);
        pong = ackNow = ping = false;
        if (next < end) {
            int n = (int) Math.min(end - next, 16384);
            byte[] part = new byte[2 + n];
            part[0] = (byte) (n >> 8);
            part[1] = (byte) n;
            out.copy((int) (next - base), part, 2, n);
            b.write(part, 0, part.length);
            next += n;
        }
        if (finished && next == end) {
            b.write(new byte[] {0, 0, FIN}, 0, 3);
            next++;
        }
        sent = Math.max(sent, next);
        drop();
        return b.toByteArray();
    }

    private void drop() {
        long kept = Math.min(Math.min(acked, next), end);
        out.drop((int) (kept - base));
        base = kept;
    }

    /** Takes what was read from the connection, cut anywhere. */
    void input(byte[] data, int offset, int count) throws Violation {
        while (count > 0 && closed < 0) {
            int used;
            if (left > 0) { // of a frame of data, or of one to be skipped
                used = Math.min(count, left);
                left -= used;
                if (!skipping) takeData(data, offset, used);
            } else {
                if (size() > head.length) throw new Violation("a HELLO that is none");
                used = Math.min(count, size() - headSize);
                System.arraycopy(data, offset, head, headSize, used);
                headSize += used;
                if (headSize == size()) {
                    byte[] whole = Arrays.copyOf(head, headSize);
                    headSize = 0;
                    takeHead(whole);
                }
            }
            offset += used;
            count -= used;
        }
    }

    /** How long the head at hand is at least, by what there is of it. */
    private int size() {
        if (headSize < 2 || head[0] != 0 || head[1] != 0) return 2;
        if (headSize < 3) return 3;
        int kind = head[2] & 255;
        if (kind == ACK) return 7;
        if (kind == CLOSE) return 4;
        if (kind == HELLO && headSize >= 5) return 5 + u16(head, 3);
        return kind == HELLO || kind >= SKIPPED ? 5 : 3;
    }

    private static int u16(byte[] b, int at) { return (b[at] & 255) << 8 | b[at + 1] & 255; }

    private static long u32(byte[] b, int at) { return (long) u16(b, at) << 16 | u16(b, at + 2); }

    private void takeHead(byte[] h) throws Violation {
        int kind = h.length > 2 ? h[2] & 255 : 0;
        if ((kind == HELLO) != (key == null)) throw new Violation("HELLO comes once, and first");
        if (h.length == 2) {
            left = u16(h, 0);
            skipping = false;
        } else if (kind == ACK) {
            long to = acked + (u32(h, 3) - acked & 0xffffffffL);
            if (to > sent) throw new Violation("an ACK beyond what was sent");
            acked = to;
            drop();
        } else if (kind == FIN) {
            if (ended) throw new Violation("a second end");
            ended = true;
            received++;
        } else if (kind == CLOSE) {
            closed = h[3] & 255;
        } else if (kind == PING) {
            pong = true;
        } else if (kind == HELLO) {
            takeHello(h);
        } else if (kind >= SKIPPED) {
            left = u16(h, 3);
            skipping = true;
        } else if (kind != PONG) {
            throw new Violation("there is no frame of type " + kind);
        }
    }

    private void takeHello(byte[] h) throws Violation {
        long w = h.length > 5 + 36 && h.length <= 5 + 36 + 256 ? u32(h, 5) : 0;
        if (w < 64 << 10 || w > 1 << 30) throw new Violation("a HELLO that is none");
        ticket = new String(h, 9, h.length - 9 - 32, StandardCharsets.US_ASCII);
        key = sessionKey(secret, publicKey, Arrays.copyOfRange(h, h.length - 32, h.length));
        window = (int) w;
    }

    private void takeData(byte[] data, int offset, int count) throws Violation {
        if (ended) throw new Violation("data behind the end");
        if (received - reported + count > window) throw new Violation("more than the window");
        in.add(data, offset, count);
        received += count;
    }

    /**
     * Begins with a new connection, and returns the line to send on it. What is sent behind it
     * starts at the lowest byte that is not acknowledged.
     */
    String reattach() {
        seq++;
        headSize = left = 0;
        pong = ping = false;
        ackNow = true;
        next = acked;
        drop();
        return resumeLine(key, ticket, seq, acked, received);
    }

    /** A ring of bytes. */
    private static final class Queue {
        private byte[] ring = new byte[1024];
        private int first;
        int size;

        void add(byte[] data, int offset, int count) {
            if (size + count > ring.length) {
                byte[] larger = new byte[Math.max(2 * ring.length, size + count)];
                copy(0, larger, 0, size);
                ring = larger;
                first = 0;
            }
            int at = (first + size) % ring.length, part = Math.min(count, ring.length - at);
            System.arraycopy(data, offset, ring, at, part);
            System.arraycopy(data, offset + part, ring, 0, count - part);
            size += count;
        }

        void copy(int from, byte[] data, int offset, int count) {
            int at = (first + from) % ring.length, part = Math.min(count, ring.length - at);
            System.arraycopy(ring, at, data, offset, part);
            System.arraycopy(ring, 0, data, offset + part, count - part);
        }

        void drop(int count) {
            first = (first + count) % ring.length;
            size -= count;
        }
    }
}

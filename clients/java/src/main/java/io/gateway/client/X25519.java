package io.gateway.client;

/**
 * X25519 (RFC 7748), which Java has from 11 on and Android from 33 on. After TweetNaCl (public
 * domain): the field of 2^255-19 as 16 limbs of 16 bits. Its time does not depend on the values.
 */
final class X25519 {
    private X25519() {}

    /** Returns the public key of 32 secret bytes. */
    static byte[] publicKey(byte[] secret) {
        byte[] point = new byte[32];
        point[0] = 9;
        return agree(secret, point);
    }

    /** Returns what both sides get; all zeros is a public key that is none. */
    static byte[] agree(byte[] secret, byte[] point) {
        byte[] z = secret.clone();
        z[31] = (byte) ((z[31] & 127) | 64);
        z[0] &= (byte) 248;
        long[] x = new long[16];
        for (int i = 0; i < 16; i++) x[i] = (point[2 * i] & 255) + ((long) (point[2 * i + 1] & 255) << 8);
        x[15] &= 0x7fff;
        long[] a = new long[16], b = x.clone(), c = new long[16], d = new long[16];
        long[] e = new long[16], f = new long[16], s = new long[16];
        a[0] = d[0] = 1;
        s[0] = 0xDB41;
        s[1] = 1;
        for (int i = 254; i >= 0; i--) {
            int r = (z[i >> 3] & 255) >> (i & 7) & 1;
            swap(a, b, r); swap(c, d, r);
            add(e, a, c); sub(a, a, c); add(c, b, d); sub(b, b, d);
            multiply(d, e, e); multiply(f, a, a); multiply(a, c, a); multiply(c, b, e);
            add(e, a, c); sub(a, a, c);
            multiply(b, a, a); sub(c, d, f);
            multiply(a, c, s); add(a, a, d); multiply(c, c, a);
            multiply(a, d, f); multiply(d, b, x); multiply(b, e, e);
            swap(a, b, r); swap(c, d, r);
        }
        long[] inverse = c.clone();
        for (int i = 253; i >= 0; i--) {
            multiply(inverse, inverse, inverse);
            if (i != 2 && i != 4) multiply(inverse, inverse, c);
        }
        long[] t = new long[16], m = new long[16];
        multiply(t, a, inverse);
        carry(t); carry(t); carry(t);
        for (int j = 0; j < 2; j++) {
            m[0] = t[0] - 0xffed;
            for (int i = 1; i < 15; i++) {
                m[i] = t[i] - 0xffff - (m[i - 1] >> 16 & 1);
                m[i - 1] &= 0xffff;
            }
            m[15] = t[15] - 0x7fff - (m[14] >> 16 & 1);
            int borrow = (int) (m[15] >> 16 & 1);
            m[14] &= 0xffff;
            swap(t, m, 1 - borrow);
        }
        byte[] out = new byte[32];
        for (int i = 0; i < 16; i++) {
            out[2 * i] = (byte) t[i];
            out[2 * i + 1] = (byte) (t[i] >> 8);
        }
        return out;
    }

    private static void carry(long[] o) {
        for (int i = 0; i < 16; i++) {
            o[i] += 1 << 16;
            long c = o[i] >> 16;
            if (i < 15) o[i + 1] += c - 1; else o[0] += 38 * (c - 1);
            o[i] -= c << 16;
        }
    }

    private static void add(long[] o, long[] a, long[] b) { for (int i = 0; i < 16; i++) o[i] = a[i] + b[i]; }

    private static void sub(long[] o, long[] a, long[] b) { for (int i = 0; i < 16; i++) o[i] = a[i] - b[i]; }

    private static void multiply(long[] o, long[] a, long[] b) {
        long[] t = new long[31];
        for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) t[i + j] += a[i] * b[j];
        for (int i = 0; i < 15; i++) t[i] += 38 * t[i + 16];
        System.arraycopy(t, 0, o, 0, 16);
        carry(o);
        carry(o);
    }

    private static void swap(long[] p, long[] q, int b) {
        long c = ~((long) b - 1);
        for (int i = 0; i < 16; i++) {
            long t = c & (p[i] ^ q[i]);
            p[i] ^= t;
            q[i] ^= t;
        }
    }
}

using System;

namespace Gateway.Client
{
    /// <summary>X25519 (RFC 7748), after TweetNaCl (public domain): the field of 2^255-19 as 16 limbs
    /// of 16 bits. Its time does not depend on the values.</summary>
    public static class X25519
    {
        /// <summary>Returns the public key of 32 secret bytes.</summary>
        public static byte[] PublicKey(byte[] secret)
        {
            var point = new byte[32];
            point[0] = 9;
            return Agree(secret, point);
        }

        /// <summary>Returns what both sides get; all zeros is a public key that is none.</summary>
        public static byte[] Agree(byte[] secret, byte[] point)
        {
            var z = (byte[])secret.Clone();
            z[31] = (byte)((z[31] & 127) | 64);
            z[0] &= 248;
            var x = new long[16];
            for (int i = 0; i < 16; i++) x[i] = point[2 * i] + ((long)point[2 * i + 1] << 8);
            x[15] &= 0x7fff;
            long[] a = new long[16], b = (long[])x.Clone(), c = new long[16], d = new long[16];
            long[] e = new long[16], f = new long[16], s = new long[16];
            a[0] = d[0] = 1;
            s[0] = 0xDB41;
            s[1] = 1;
            for (int i = 254; i >= 0; i--)
            {
                int r = z[i >> 3] >> (i & 7) & 1;
                Swap(a, b, r); Swap(c, d, r);
                Add(e, a, c); Sub(a, a, c); Add(c, b, d); Sub(b, b, d);
                Multiply(d, e, e); Multiply(f, a, a); Multiply(a, c, a); Multiply(c, b, e);
                Add(e, a, c); Sub(a, a, c);
                Multiply(b, a, a); Sub(c, d, f);
                Multiply(a, c, s); Add(a, a, d); Multiply(c, c, a);
                Multiply(a, d, f); Multiply(d, b, x); Multiply(b, e, e);
                Swap(a, b, r); Swap(c, d, r);
            }
            var inverse = (long[])c.Clone();
            for (int i = 253; i >= 0; i--)
            {
                Multiply(inverse, inverse, inverse);
                if (i != 2 && i != 4) Multiply(inverse, inverse, c);
            }
            long[] t = new long[16], m = new long[16];
            Multiply(t, a, inverse);
            Carry(t); Carry(t); Carry(t);
            for (int j = 0; j < 2; j++)
            {
                m[0] = t[0] - 0xffed;
                for (int i = 1; i < 15; i++)
                {
                    m[i] = t[i] - 0xffff - (m[i - 1] >> 16 & 1);
                    m[i - 1] &= 0xffff;
                }
                m[15] = t[15] - 0x7fff - (m[14] >> 16 & 1);
                int borrow = (int)(m[15] >> 16 & 1);
                m[14] &= 0xffff;
                Swap(t, m, 1 - borrow);
            }
            var result = new byte[32];
            for (int i = 0; i < 16; i++)
            {
                result[2 * i] = (byte)t[i];
                result[2 * i + 1] = (byte)(t[i] >> 8);
            }
            return result;
        }

        static void Carry(long[] o)
        {
            for (int i = 0; i < 16; i++)
            {
                o[i] += 1 << 16;
                long c = o[i] >> 16;
                if (i < 15) o[i + 1] += c - 1; else o[0] += 38 * (c - 1);
                o[i] -= c << 16;
            }
        }
        static void Add(long[] o, long[] a, long[] b) { for (int i = 0; i < 16; i++) o[i] = a[i] + b[i]; }
        static void Sub(long[] o, long[] a, long[] b) { for (int i = 0; i < 16; i++) o[i] = a[i] - b[i]; }
        static void Multiply(long[] o, long[] a, long[] b)
        {
            var t = new long[31];
            for (int i = 0; i < 16; i++)
                for (int j = 0; j < 16; j++) t[i + j] += a[i] * b[j];
            for (int i = 0; i < 15; i++) t[i] += 38 * t[i + 16];
            Array.Copy(t, o, 16);
            Carry(o);
            Carry(o);
        }
        static void Swap(long[] p, long[] q, int b)
        {
            long c = ~((long)b - 1);
            for (int i = 0; i < 16; i++)
            {
                long t = c & (p[i] ^ q[i]);
                p[i] ^= t;
                q[i] ^= t;
            }
        }
    }
}

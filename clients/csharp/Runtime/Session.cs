using System;
using System.Collections.Generic;
using System.IO;
using System.Security.Cryptography;
using System.Text;

namespace Gateway.Client
{
    /// <summary>What was received is not the protocol.</summary>
    public sealed class ViolationException : Exception
    {
        public ViolationException(string message) : base(message) { }
    }

    /// <summary>The client's end of a resumable tunnel: offsets, frames and keys, without a socket or a
    /// clock. docs/roaming.md describes the protocol; clients/testdata has its vectors. All offsets
    /// count from 0, and the end of a direction as one more byte. Times are milliseconds.</summary>
    public sealed class Session
    {
        const int Ack = 1, Fin = 2, Close = 3, PingType = 4, Pong = 5, Hello = 6, Skipped = 128;

        readonly byte[] secret;
        public byte[] PublicKey { get; }
        public byte[] Key;
        public string Ticket { get; private set; }
        /// <summary>The reason of the gateway's CLOSE, or -1.</summary>
        public int Closed { get; private set; } = -1;
        public bool Finished { get; private set; }
        public bool Ended { get; private set; }
        public bool Ping;

        int window;
        long seq;
        // What is sent. output holds the bytes from start on: the lowest that was not
        // acknowledged, or that this connection has yet to carry.
        readonly Queue output = new Queue();
        long start, end, acked, next, sent;
        // What is received.
        readonly Queue input = new Queue();
        long received, passed, reported, since;
        // The frame at hand.
        readonly List<byte> head = new List<byte>();
        int left;
        bool skipping, ackNow, pong;

        /// <param name="secret">32 random bytes</param>
        public Session(byte[] secret)
        {
            this.secret = secret;
            PublicKey = X25519.PublicKey(secret);
        }

        /// <summary>Returns K; throws where the gateway's key is none.</summary>
        public static byte[] SessionKey(byte[] secret, byte[] own, byte[] gateway)
        {
            var shared = X25519.Agree(secret, gateway);
            if (Array.TrueForAll(shared, b => b == 0)) throw new ViolationException("the gateway's key is none");
            var salt = new byte[64];
            own.CopyTo(salt, 0);
            gateway.CopyTo(salt, 32);
            // HKDF-SHA256 (RFC 5869), of which one block is enough.
            return Hmac(Hmac(salt, shared), Encoding.ASCII.GetBytes("gateway resume key 1\u0001"));
        }

        static byte[] Hmac(byte[] key, byte[] message)
        {
            using (var h = new HMACSHA256(key)) return h.ComputeHash(message);
        }

        public static string Base64Url(byte[] b) =>
            Convert.ToBase64String(b).TrimEnd('=').Replace('+', '-').Replace('/', '_');

        public static string OpenLine(byte[] own, string sealedLine) => "~1N " + Base64Url(own) + " " + sealedLine + "\n";

        public static string ResumeLine(byte[] key, string ticket, ulong seq, ulong from, ulong recv)
        {
            var mac = Hmac(key, Encoding.ASCII.GetBytes($"resume 1\n{ticket}\n{seq}\n{from}\n{recv}"));
            return $"~1R {ticket} {seq} {from} {recv} {Base64Url(mac)}\n";
        }

        /// <summary>How many bytes may be sent now.</summary>
        public int Room => Finished || Closed >= 0 ? 0 : Math.Max(0, window - output.Count);

        public void Send(byte[] data, int offset, int count)
        {
            output.Add(data, offset, count);
            end += count;
        }

        public void Finish() => Finished = true;

        /// <summary>Both directions have ended, and both sides know.</summary>
        public bool Complete => Finished && acked == end + 1 && Ended && passed == received && reported == passed;
        public bool Over => Closed >= 0 || Complete;
        public bool AtEnd => Ended && input.Count == 0;

        /// <summary>Moves received bytes: the application has them now.</summary>
        public int Take(byte[] data, int offset, int count, long now)
        {
            count = Math.Min(count, input.Count);
            input.Copy(0, data, offset, count);
            input.Drop(count);
            long to = received - input.Count - (Ended && input.Count > 0 ? 1 : 0);
            if (to > passed)
            {
                if (passed == reported) since = now;
                passed = to;
                ackNow |= AtEnd;
            }
            return count;
        }

        /// <summary>Grows with each byte that is acknowledged or received.</summary>
        public long Progress => acked + received;

        /// <summary>Returns what is to be written next to the connection: at most one frame of data.</summary>
        public byte[] Output(long now)
        {
            var b = new MemoryStream();
            long unreported = passed - reported;
            if (pong) b.Write(new byte[] { 0, 0, Pong }, 0, 3);
            if (ackNow || unreported >= 32 << 10 || unreported >= 4 << 10 && next < end || unreported > 0 && now - since >= 1000)
            {
                b.Write(new byte[] { 0, 0, Ack, (byte)(passed >> 24), (byte)(passed >> 16), (byte)(passed >> 8), (byte)passed }, 0, 7);
                reported = passed;
            }
            if (Ping) b.Write(new byte[] { 0, 0, PingType }, 0, 3);
            pong = ackNow = Ping = false;
            if (next < end)
            {
                int n = (int)Math.Min(end - next, 16384);
                var part = new byte[2 + n];
                part[0] = (byte)(n >> 8);
                part[1] = (byte)n;
                output.Copy((int)(next - start), part, 2, n);
                b.Write(part, 0, part.Length);
                next += n;
            }
            if (Finished && next == end)
            {
                b.Write(new byte[] { 0, 0, Fin }, 0, 3);
                next++;
            }
            sent = Math.Max(sent, next);
            Drop();
            return b.ToArray();
        }

        void Drop()
        {
            long kept = Math.Min(Math.Min(acked, next), end);
            output.Drop((int)(kept - start));
            start = kept;
        }

        /// <summary>Takes what was read from the connection, cut anywhere.</summary>
        public void Input(byte[] data, int offset, int count)
        {
            while (count > 0 && Closed < 0)
            {
                int used;
                if (left > 0) // of a frame of data, or of one to be skipped
                {
                    used = Math.Min(count, left);
                    left -= used;
                    if (!skipping) TakeData(data, offset, used);
                }
                else
                {
                    used = Math.Min(count, Size() - head.Count);
                    for (int i = 0; i < used; i++) head.Add(data[offset + i]);
                    if (head.Count == Size())
                    {
                        var whole = head.ToArray();
                        head.Clear();
                        TakeHead(whole);
                    }
                }
                offset += used;
                count -= used;
            }
        }

        /// <summary>How long the head at hand is at least, by what there is of it.</summary>
        int Size()
        {
            if (head.Count < 2 || head[0] != 0 || head[1] != 0) return 2;
            if (head.Count < 3) return 3;
            int kind = head[2];
            if (kind == Ack) return 7;
            if (kind == Close) return 4;
            if (kind == Hello && head.Count >= 5) return 5 + head[3] * 256 + head[4];
            return kind == Hello || kind >= Skipped ? 5 : 3;
        }

        static uint U32(byte[] b, int at) => (uint)(b[at] << 24 | b[at + 1] << 16 | b[at + 2] << 8 | b[at + 3]);

        void TakeHead(byte[] h)
        {
            int kind = h.Length > 2 ? h[2] : 0;
            if ((kind == Hello) != (Key == null)) throw new ViolationException("HELLO comes once, and first");
            if (h.Length == 2)
            {
                left = h[0] * 256 + h[1];
                skipping = false;
            }
            else if (kind == Ack)
            {
                long to = acked + unchecked((uint)(U32(h, 3) - (uint)acked));
                if (to > sent) throw new ViolationException("an ACK beyond what was sent");
                acked = to;
                Drop();
            }
            else if (kind == Fin)
            {
                if (Ended) throw new ViolationException("a second end");
                Ended = true;
                received++;
            }
            else if (kind == Close) Closed = h[3];
            else if (kind == PingType) pong = true;
            else if (kind == Hello) TakeHello(h);
            else if (kind >= Skipped)
            {
                left = h[3] * 256 + h[4];
                skipping = true;
            }
            else if (kind != Pong) throw new ViolationException("there is no frame of type " + kind);
        }

        void TakeHello(byte[] h)
        {
            uint w = h.Length > 5 + 36 && h.Length <= 5 + 36 + 256 ? U32(h, 5) : 0;
            if (w < 64 << 10 || w > 1 << 30) throw new ViolationException("a HELLO that is none");
            Ticket = Encoding.ASCII.GetString(h, 9, h.Length - 9 - 32);
            var gateway = new byte[32];
            Array.Copy(h, h.Length - 32, gateway, 0, 32);
            Key = SessionKey(secret, PublicKey, gateway);
            window = (int)w;
        }

        void TakeData(byte[] data, int offset, int count)
        {
            if (Ended) throw new ViolationException("data behind the end");
            if (received - reported + count > window) throw new ViolationException("more than the window");
            input.Add(data, offset, count);
            received += count;
        }

        /// <summary>Begins with a new connection, and returns the line to send on it. What is sent behind
        /// it starts at the lowest byte that is not acknowledged.</summary>
        public string Reattach()
        {
            seq++;
            head.Clear();
            left = 0;
            pong = Ping = false;
            ackNow = true;
            next = acked;
            Drop();
            return ResumeLine(Key, Ticket, (ulong)seq, (ulong)acked, (ulong)received);
        }

        /// <summary>A ring of bytes.</summary>
        sealed class Queue
        {
            byte[] ring = new byte[1024];
            int first;
            public int Count { get; private set; }

            public void Add(byte[] data, int offset, int count)
            {
                if (Count + count > ring.Length)
                {
                    var larger = new byte[Math.Max(2 * ring.Length, Count + count)];
                    Copy(0, larger, 0, Count);
                    ring = larger;
                    first = 0;
                }
                int at = (first + Count) % ring.Length, part = Math.Min(count, ring.Length - at);
                Buffer.BlockCopy(data, offset, ring, at, part);
                Buffer.BlockCopy(data, offset + part, ring, 0, count - part);
                Count += count;
            }

            public void Copy(int from, byte[] data, int offset, int count)
            {
                int at = (first + from) % ring.Length, part = Math.Min(count, ring.Length - at);
                Buffer.BlockCopy(ring, at, data, offset, part);
                Buffer.BlockCopy(ring, 0, data, offset + part, count - part);
            }

            public void Drop(int count)
            {
                first = (first + count) % ring.Length;
                Count -= count;
            }
        }
    }
}

using System;
using System.Diagnostics;
using System.IO;
using System.Net.Sockets;
using System.Reflection;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace Gateway.Client
{
    /// <summary>A tunnel to a game server, which Dialer opens. One task may read while another writes.</summary>
    public sealed class Tunnel : IDisposable
    {
        readonly Dialer dialer;
        readonly Session session; // null: plain
        readonly object state = new object(); // guards the session and what is below
        readonly SemaphoreSlim pumping = new SemaphoreSlim(1, 1), flushing = new SemaphoreSlim(1, 1), recovering = new SemaphoreSlim(1, 1);
        readonly Stopwatch clock = Stopwatch.StartNew();
        readonly Timer timer;
        byte[] buffer; // of reading
        Stream stream;
        Task<int> reading; // the one of readFrom that has not ended
        Stream readFrom;
        int at, generation;
        bool ended;
        Exception why;
        long heard, asked;

        /// <summary>How often it has been resumed.</summary>
        public int Resumes { get; private set; }
        /// <summary>Whether it outlives its connection.</summary>
        public bool Resumable => session != null;

        internal Tunnel(Dialer dialer, int at, Stream stream, Session session)
        {
            this.dialer = dialer;
            this.at = at;
            this.stream = stream;
            this.session = session;
            if (session != null) timer = new Timer(_ => Ignore(FlushAsync()), null, 1000, 1000);
        }

        static void Ignore(Task task) => task.ContinueWith(t => { _ = t.Exception; });

        /// <summary>Reads at most count bytes; 0 at the end.</summary>
        public async Task<int> ReadAsync(byte[] data, int offset, int count)
        {
            if (session == null)
            {
                try { return await stream.ReadAsync(data, offset, count).ConfigureAwait(false); }
                catch (Exception e) when (e is IOException || e is SocketException) { throw new NoAnswerException(e.Message, e); }
            }
            while (true)
            {
                int n;
                bool end;
                lock (state)
                {
                    n = session.Take(data, offset, count, clock.ElapsedMilliseconds);
                    end = session.AtEnd;
                }
                if (n > 0 || end)
                {
                    await FlushAsync().ConfigureAwait(false);
                    return n;
                }
                await PumpAsync(-1).ConfigureAwait(false);
            }
        }

        /// <summary>Sends all, and waits where the game server does not read.</summary>
        public async Task WriteAsync(byte[] data, int offset, int count)
        {
            if (session == null)
            {
                try { await stream.WriteAsync(data, offset, count).ConfigureAwait(false); }
                catch (Exception e) when (e is IOException || e is SocketException) { throw new NoAnswerException(e.Message, e); }
                return;
            }
            while (true)
            {
                int n;
                lock (state)
                {
                    Check();
                    n = Math.Min(count, session.Room);
                    session.Send(data, offset, n);
                }
                offset += n;
                count -= n;
                await FlushAsync().ConfigureAwait(false);
                if (count == 0) return;
                if (n == 0) await PumpAsync(50).ConfigureAwait(false);
            }
        }

        public Task WriteAsync(string text)
        {
            var data = Encoding.UTF8.GetBytes(text);
            return WriteAsync(data, 0, data.Length);
        }

        /// <summary>Finishes writing; reading goes on. Not by plain TLS.</summary>
        public async Task CloseWriteAsync()
        {
            if (session == null)
            {
                SocketOf(stream).Shutdown(SocketShutdown.Send);
                return;
            }
            lock (state) session.Finish();
            await FlushAsync().ConfigureAwait(false);
        }

        // NetworkStream shows its socket to nobody but those who inherit from it, before .NET 5.
        static Socket SocketOf(Stream s)
        {
            var socket = typeof(NetworkStream).GetProperty("Socket", BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic);
            return s is NetworkStream ? (Socket)socket.GetValue(s) : throw new NotSupportedException("no half-close here: use CloseAsync");
        }

        /// <summary>Ends the tunnel. What was written still arrives, for which it waits a little.</summary>
        public async Task CloseAsync()
        {
            if (session != null && !ended)
            {
                try
                {
                    await CloseWriteAsync().ConfigureAwait(false);
                    var rest = new byte[4096];
                    for (long deadline = clock.ElapsedMilliseconds + 2000; clock.ElapsedMilliseconds < deadline;)
                    {
                        int n;
                        lock (state)
                        {
                            n = session.Take(rest, 0, rest.Length, clock.ElapsedMilliseconds);
                            if (session.Over) break;
                        }
                        await FlushAsync().ConfigureAwait(false);
                        lock (state) if (session.Over) break;
                        if (n == 0) await PumpAsync(50).ConfigureAwait(false);
                    }
                }
                catch (GatewayException) { }
            }
            End(null);
        }

        /// <summary>Ends the tunnel at once: the game server sees a reset.</summary>
        public async Task AbortAsync()
        {
            if (session != null && !ended)
            {
                await flushing.WaitAsync().ConfigureAwait(false);
                try { await stream.WriteAsync(new byte[] { 0, 0, 3, 0 }, 0, 4).ConfigureAwait(false); }
                catch (Exception e) when (e is IOException || e is ObjectDisposedException) { }
                finally { flushing.Release(); }
            }
            End(null);
        }

        /// <summary>Goes on by another connection: for when the system tells of a change of networks.</summary>
        public Task ReconnectAsync()
        {
            int now;
            lock (state) now = generation;
            return session == null ? Task.CompletedTask : RecoverAsync(now, new NoAnswerException("Reconnect was called"));
        }

        public void Dispose() => End(null);

        void Check()
        {
            if (ended) throw why ?? new NoAnswerException("the tunnel is closed");
        }

        void End(Exception error)
        {
            lock (state)
            {
                if (ended) return;
                ended = true;
                why = error;
            }
            timer?.Dispose();
            stream.Dispose();
            dialer.Tell(TunnelEvent.Ended, error);
        }

        async Task FlushAsync()
        {
            Exception error = null;
            int now;
            await flushing.WaitAsync().ConfigureAwait(false);
            try
            {
                Stream s;
                byte[] data;
                lock (state)
                {
                    if (ended) return;
                    s = stream;
                    now = generation;
                    data = session.Output(clock.ElapsedMilliseconds);
                }
                if (data.Length == 0) return;
                try { await s.WriteAsync(data, 0, data.Length).ConfigureAwait(false); }
                catch (Exception e) { error = e; }
            }
            finally { flushing.Release(); }
            if (error != null && !session.Over) await RecoverAsync(now, error).ConfigureAwait(false);
        }

        /// <summary>Reads once, within so many milliseconds; -1: a second or so, for the sake of silence.</summary>
        async Task PumpAsync(int wait)
        {
            if (!await pumping.WaitAsync(wait).ConfigureAwait(false)) return;
            Exception error = null;
            int now;
            try
            {
                Stream s;
                lock (state)
                {
                    Check();
                    s = stream;
                    now = generation;
                }
                if (session.Closed >= 0)
                {
                    var gone = new GoneException("the game server or the gateway has ended the tunnel");
                    End(gone);
                    throw gone;
                }
                var most = Math.Min(1000, Math.Min(dialer.Silence.TotalMilliseconds, dialer.Patience.TotalMilliseconds));
                try
                {
                    if (reading == null || readFrom != s)
                    {
                        if (reading != null) Ignore(reading); // of a connection that was lost
                        buffer = new byte[16384];
                        readFrom = s;
                        reading = s.ReadAsync(buffer, 0, buffer.Length);
                    }
                    var first = await Task.WhenAny(reading, Task.Delay(wait < 0 ? (int)most : Math.Min(wait, (int)most))).ConfigureAwait(false);
                    if (first == reading)
                    {
                        int n = await reading.ConfigureAwait(false);
                        reading = null;
                        if (n == 0) throw new IOException("the connection ended");
                        lock (state)
                        {
                            if (now == generation) session.Input(buffer, 0, n);
                            heard = clock.ElapsedMilliseconds;
                            asked = 0;
                        }
                    }
                    else error = Silent();
                }
                catch (ViolationException e)
                {
                    var broken = new NoAnswerException("the gateway breaks the protocol: " + e.Message, e);
                    End(broken);
                    throw broken;
                }
                catch (Exception e) when (!(e is GatewayException))
                {
                    reading = null;
                    error = e;
                }
            }
            finally { pumping.Release(); }
            if (error != null && !session.Over) await RecoverAsync(now, error).ConfigureAwait(false);
            await FlushAsync().ConfigureAwait(false);
        }

        Exception Silent()
        {
            lock (state)
            {
                long now = clock.ElapsedMilliseconds;
                if (asked == 0 && now - heard >= dialer.Silence.TotalMilliseconds)
                {
                    asked = now;
                    session.Ping = true;
                }
                else if (asked != 0 && now - asked >= dialer.Patience.TotalMilliseconds) return new NoAnswerException("the gateway is silent");
            }
            return null;
        }

        /// <summary>Looks for a connection that carries the tunnel on, unless somebody has found one.</summary>
        async Task RecoverAsync(int lost, Exception error)
        {
            await recovering.WaitAsync().ConfigureAwait(false);
            await flushing.WaitAsync().ConfigureAwait(false);
            try
            {
                lock (state)
                {
                    Check();
                    if (lost != generation) return;
                }
                dialer.Tell(TunnelEvent.Reconnecting, error);
                stream.Dispose();
                long since = clock.ElapsedMilliseconds;
                int pause = 50, failed = 0;
                var dice = new Random();
                while (true)
                {
                    byte[] request;
                    lock (state)
                    {
                        Check();
                        generation++;
                        var line = Encoding.ASCII.GetBytes(session.Reattach());
                        var first = session.Output(clock.ElapsedMilliseconds);
                        request = new byte[line.Length + first.Length];
                        line.CopyTo(request, 0);
                        first.CopyTo(request, line.Length);
                    }
                    try
                    {
                        var s = await dialer.AskAsync(at, request, null).ConfigureAwait(false);
                        lock (state)
                        {
                            stream = s;
                            generation++;
                            heard = clock.ElapsedMilliseconds;
                            asked = 0;
                            Resumes++;
                        }
                        if (ended) s.Dispose();
                        dialer.Tell(TunnelEvent.Back);
                        return;
                    }
                    catch (GatewayException e)
                    {
                        if (e is UnauthorizedException || e is GoneException || clock.ElapsedMilliseconds - since >= dialer.Hold.TotalMilliseconds)
                        {
                            End(e);
                            throw;
                        }
                        dialer.Tell(TunnelEvent.Failed, e);
                    }
                    at = (at + 1) % dialer.Gateways.Count;
                    if (++failed % dialer.Gateways.Count == 0)
                    {
                        await Task.Delay(pause + dice.Next(pause)).ConfigureAwait(false);
                        pause = Math.Min(2 * pause, 1000);
                    }
                }
            }
            finally
            {
                flushing.Release();
                recovering.Release();
            }
        }
    }
}

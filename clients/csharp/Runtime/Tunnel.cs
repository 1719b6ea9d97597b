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
        readonly SemaphoreSlim pumping = new SemaphoreSlim(1, 1), recovering = new SemaphoreSlim(1, 1);
        readonly Stopwatch clock = Stopwatch.StartNew();
        readonly Timer timer;
        readonly Random dice = new Random();
        byte[] buffer; // of reading
        Link link;
        Task<int> reading; // the one of readFrom that has not ended
        Stream readFrom;
        int at, generation;
        bool ended, attempting, closing;
        TaskCompletionSource<bool> hurry; // ends the pause between two attempts
        Exception why;
        long heard, asked;
        // Of attempts to resume since bytes got through: how many, since when, and what there was then.
        int tries, pause;
        long since, before, back = -1;

        /// <summary>How often it has been resumed.</summary>
        public int Resumes { get; private set; }
        /// <summary>Whether it outlives its connection.</summary>
        public bool Resumable => session != null;

        // Milliseconds that closing gives a connection which takes nothing, and what was written in all;
        // and between attempts to resume that bring nothing: at first, and at most.
        const int Stuck = 500, Farewell = 2000, Pause = 50, Longest = 1000;

        /// <summary>A connection that carries, or has carried, the tunnel.</summary>
        sealed class Link
        {
            public readonly Stream Stream;
            public readonly int Generation;
            public bool Writing; // somebody does; guarded by state
            public long Moved; // when it took something last, while somebody writes
            readonly TaskCompletionSource<bool> gone = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);

            public Link(Stream stream, int generation)
            {
                Stream = stream;
                Generation = generation;
            }

            public void Cut()
            {
                gone.TrySetResult(true);
                Dialer.Cut(Stream);
            }

            /// <summary>Writes within so many milliseconds; returns what went wrong.</summary>
            public async Task<Exception> WriteAsync(byte[] data, int within)
            {
                try
                {
                    var writing = Stream.WriteAsync(data, 0, data.Length);
                    if (!writing.IsCompleted)
                    {
                        using (var early = new CancellationTokenSource())
                        {
                            var first = await Task.WhenAny(writing, gone.Task, Task.Delay(within, early.Token)).ConfigureAwait(false);
                            early.Cancel();
                            if (first != writing)
                            {
                                Dialer.Forget(writing);
                                Cut();
                                return new NoAnswerException("the gateway takes nothing");
                            }
                        }
                    }
                    await writing.ConfigureAwait(false);
                    return null;
                }
                catch (Exception e) { return e; }
            }
        }

        internal Tunnel(Dialer dialer, int at, Stream stream, Session session)
        {
            this.dialer = dialer;
            this.at = at;
            link = new Link(stream, 0);
            this.session = session;
            if (session != null) timer = new Timer(_ => Dialer.Forget(FlushAsync()), null, 1000, 1000);
        }

        /// <summary>Reads at most count bytes; 0 at the end.</summary>
        public async Task<int> ReadAsync(byte[] data, int offset, int count)
        {
            if (session == null)
            {
                try { return await link.Stream.ReadAsync(data, offset, count).ConfigureAwait(false); }
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
                    try { await FlushAsync().ConfigureAwait(false); }
                    catch (GatewayException) { } // what is read next tells
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
                try { await link.Stream.WriteAsync(data, offset, count).ConfigureAwait(false); }
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
                SocketOf(link.Stream).Shutdown(SocketShutdown.Send);
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

        /// <summary>Ends the tunnel. What was written still arrives, for which it waits a little: 2 s at
        /// most, half a second where the connection takes nothing.</summary>
        public async Task CloseAsync()
        {
            if (session != null && !ended)
            {
                closing = true;
                var all = FarewellAsync();
                Dialer.Forget(all);
                for (long until = clock.ElapsedMilliseconds + Farewell; clock.ElapsedMilliseconds < until;)
                {
                    if (await Task.WhenAny(all, Task.Delay(50)).ConfigureAwait(false) == all) break;
                    lock (state) if (link.Writing && clock.ElapsedMilliseconds - link.Moved >= Stuck) break;
                }
            }
            End(null);
        }

        async Task FarewellAsync()
        {
            await CloseWriteAsync().ConfigureAwait(false);
            for (var rest = new byte[4096]; ;)
            {
                int n;
                lock (state)
                {
                    n = session.Take(rest, 0, rest.Length, clock.ElapsedMilliseconds);
                    if (ended || session.Over) return;
                }
                await FlushAsync().ConfigureAwait(false);
                lock (state) if (session.Over) return;
                if (n == 0) await PumpAsync(50).ConfigureAwait(false);
            }
        }

        /// <summary>Ends the tunnel at once: the game server of a resumable one sees a reset.</summary>
        public async Task AbortAsync()
        {
            Link l = null;
            lock (state)
            {
                if (session != null && !ended && !attempting && !link.Writing)
                {
                    l = link;
                    l.Writing = true;
                }
            }
            if (l != null) // else the gateway finds out in time
            {
                await l.WriteAsync(new byte[] { 0, 0, 3, 0 }, Stuck / 2).ConfigureAwait(false);
                lock (state) l.Writing = false;
            }
            End(null);
        }

        /// <summary>Goes on by another connection: for when the system tells of a change of networks.</summary>
        public async Task ReconnectAsync()
        {
            if (session == null) return;
            int now;
            lock (state)
            {
                now = generation;
                if (hurry != null) hurry.TrySetResult(true);
                else if (!attempting) tries = 0;
            }
            await RecoverAsync(now, new NoAnswerException("Reconnect was called")).ConfigureAwait(false);
            await FlushAsync().ConfigureAwait(false);
        }

        public void Dispose() => End(null);

        void Check()
        {
            if (ended) throw why ?? new NoAnswerException("the tunnel is closed");
        }

        void End(Exception error)
        {
            Link l;
            bool writing;
            lock (state)
            {
                if (ended) return;
                ended = true;
                why = error;
                l = link;
                writing = l.Writing;
                hurry?.TrySetResult(true);
            }
            timer?.Dispose();
            if (writing) l.Cut();
            else Dialer.Leave(l.Stream);
            dialer.Tell(TunnelEvent.Ended, error);
        }

        /// <summary>Writes what is to be written, unless somebody does already, or resumes: who does looks
        /// again.</summary>
        async Task FlushAsync()
        {
            while (true)
            {
                Link l;
                byte[] data;
                lock (state)
                {
                    l = link;
                    if (ended || attempting || l.Writing) return;
                    data = session.Output(clock.ElapsedMilliseconds);
                    if (data.Length == 0) return;
                    l.Writing = true;
                    l.Moved = clock.ElapsedMilliseconds;
                }
                var within = closing ? Stuck : (dialer.Silence + dialer.Patience).TotalMilliseconds;
                var error = await l.WriteAsync(data, (int)within).ConfigureAwait(false);
                lock (state)
                {
                    l.Writing = false;
                    if (ended || error != null && session.Over) return;
                }
                if (error != null) await RecoverAsync(l.Generation, error).ConfigureAwait(false);
            }
        }

        /// <summary>Reads once, within so many milliseconds; -1: a second or so, for the sake of silence.</summary>
        async Task PumpAsync(int wait)
        {
            if (!await pumping.WaitAsync(wait).ConfigureAwait(false)) return;
            Exception error = null;
            Link l;
            try
            {
                lock (state)
                {
                    Check();
                    l = link;
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
                    if (reading == null || readFrom != l.Stream)
                    {
                        if (reading != null) Dialer.Forget(reading); // of a connection that was lost
                        buffer = new byte[16384];
                        readFrom = l.Stream;
                        reading = readFrom.ReadAsync(buffer, 0, buffer.Length);
                    }
                    var first = await Task.WhenAny(reading, Task.Delay(wait < 0 ? (int)most : Math.Min(wait, (int)most))).ConfigureAwait(false);
                    if (first == reading)
                    {
                        int n = await reading.ConfigureAwait(false);
                        reading = null;
                        if (n == 0) throw new IOException("the connection ended");
                        lock (state)
                        {
                            if (l.Generation == generation) session.Input(buffer, 0, n);
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
            if (error != null && !session.Over) await RecoverAsync(l.Generation, error).ConfigureAwait(false);
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
            while (!await recovering.WaitAsync(50).ConfigureAwait(false))
            {
                lock (state) Check();
            }
            bool ours = false;
            try
            {
                lock (state)
                {
                    Check();
                    if (lost != generation) return;
                    attempting = ours = true;
                }
                dialer.Tell(TunnelEvent.Reconnecting, error);
                link.Cut();
                while (true)
                {
                    if (!await PrepareAsync().ConfigureAwait(false))
                    {
                        if (!(error is GatewayException)) error = new NoAnswerException(error.Message, error);
                        End(error);
                        throw error;
                    }
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
                            link = new Link(s, ++generation);
                            heard = back = clock.ElapsedMilliseconds;
                            asked = 0;
                            Resumes++;
                            attempting = false;
                        }
                        if (ended) link.Cut();
                        else dialer.Tell(TunnelEvent.Back);
                        return;
                    }
                    catch (GatewayException e)
                    {
                        if (e is UnauthorizedException || e is GoneException)
                        {
                            End(e);
                            throw;
                        }
                        error = e;
                        dialer.Tell(TunnelEvent.Failed, e);
                    }
                }
            }
            finally
            {
                if (ours) lock (state) attempting = false;
                recovering.Release();
            }
        }

        /// <summary>Waits where the last attempt has brought nothing, and chooses the gateway; false: it was
        /// tried for long enough. A gateway that answers 200 and ends the connection again and again brings
        /// nothing.</summary>
        async Task<bool> PrepareAsync()
        {
            Task wait = null;
            lock (state)
            {
                long now = clock.ElapsedMilliseconds;
                if (tries == 0 || session.Progress != before || back >= 0 && now - back >= 2 * Longest)
                {
                    tries = 0;
                    pause = Pause;
                    since = now;
                }
                else if (now - since >= dialer.Hold.TotalMilliseconds) return false;
                else at = (at + 1) % dialer.Gateways.Count;
                if (tries > 0 && tries % dialer.Gateways.Count == 0 && !ended)
                {
                    hurry = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
                    wait = Task.WhenAny(hurry.Task, Task.Delay(pause + dice.Next(pause)));
                    pause = Math.Min(2 * pause, Longest);
                }
                tries++;
                back = -1;
                before = session.Progress;
            }
            if (wait != null) await wait.ConfigureAwait(false);
            lock (state) hurry = null;
            return true;
        }
    }
}

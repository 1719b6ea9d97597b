using System;
using System.Collections.Generic;
using System.IO;
using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace Gateway.Client
{
    /// <summary>What becomes of a tunnel.</summary>
    public enum TunnelEvent { Reconnecting, Back, Failed, Ended }

    /// <summary>Says how tunnels are opened and resumed. It must not change while one is open.</summary>
    public sealed class Dialer
    {
        /// <summary>host:port, or tls://host:port; tried in turn.</summary>
        public IReadOnlyList<string> Gateways { get; }
        /// <summary>Called with the error where a new line may help; returns one, or null.</summary>
        public Func<GatewayException, Task<string>> NewLine;
        /// <summary>Asks for no more than a plain tunnel.</summary>
        public bool Plain;
        /// <summary>For one gateway to be reached and to answer.</summary>
        public TimeSpan Timeout = TimeSpan.FromSeconds(5);
        /// <summary>For which a lost tunnel is tried to be resumed.</summary>
        public TimeSpan Hold = TimeSpan.FromSeconds(30);
        /// <summary>After which a silent gateway is asked whether it is there, and then has to answer.</summary>
        public TimeSpan Silence = TimeSpan.FromSeconds(5), Patience = TimeSpan.FromSeconds(3);
        /// <summary>Told what becomes of a tunnel, on any thread.</summary>
        public Action<TunnelEvent, Exception> OnEvent;
        /// <summary>Connects to a gateway; TCP, or TLS, unless given.</summary>
        public Func<string, Task<Stream>> Connect;

        /// <summary>Checks a gateway's certificate for tls://, in place of the system: for an authority
        /// of your own. The name in the certificate has to be the gateway's (ServerName) in any case.</summary>
        public RemoteCertificateValidationCallback CheckCertificate;

        public Dialer(params string[] gateways)
        {
            if (gateways.Length == 0) throw new ArgumentException("no gateway to dial");
            Gateways = gateways;
            Connect = ConnectTcp;
        }

        /// <summary>Opens a tunnel to the game server whose sealed line, or token, is given; throws a
        /// GatewayException.</summary>
        public async Task<Tunnel> DialAsync(string line)
        {
            for (bool again = true; ; again = false)
            {
                GatewayException error = null;
                for (int at = 0; at < Gateways.Count; at++)
                {
                    try { return await OpenAsync(at, line.Trim()).ConfigureAwait(false); }
                    catch (GatewayException e) { error = e; }
                    if (error is UnauthorizedException) break; // the next gateway would say the same
                }
                line = again && NewLine != null && error.Status != 0 ? await NewLine(error).ConfigureAwait(false) : null;
                if (line == null) throw error;
            }
        }

        async Task<Tunnel> OpenAsync(int at, string line)
        {
            if (!Plain)
            {
                var secret = new byte[32];
                using (var random = RandomNumberGenerator.Create()) random.GetBytes(secret);
                var session = new Session(secret);
                try
                {
                    var s = await AskAsync(at, Encoding.ASCII.GetBytes(Session.OpenLine(session.PublicKey, line)), session).ConfigureAwait(false);
                    return new Tunnel(this, at, s, session);
                }
                catch (BadRequestException) { } // what knows of no sessions calls them a bad address
                catch (UnauthorizedException) { }
            }
            return new Tunnel(this, at, await AskAsync(at, Encoding.ASCII.GetBytes(line + "\n"), null).ConfigureAwait(false), null);
        }

        /// <summary>Sends a request and waits for 200; with a session that begins, for its HELLO too.</summary>
        internal async Task<Stream> AskAsync(int at, byte[] request, Session hello)
        {
            Stream stream = null;
            var late = Task.Delay(Timeout);
            try
            {
                stream = await InTime(Connect(Gateways[at]), late).ConfigureAwait(false);
                await InTime(Written(stream, request), late).ConfigureAwait(false);
                var buffer = new byte[4096];
                for (int n = 0; n < 3;) // a fourth byte would be the game server's
                {
                    int got = await InTime(stream.ReadAsync(buffer, n, 3 - n), late).ConfigureAwait(false);
                    if (got == 0) throw new NoAnswerException("the gateway closed without a status: connect again");
                    n += got;
                }
                var status = Encoding.ASCII.GetString(buffer, 0, 3);
                if (status != "200") throw GatewayException.Of(status);
                while (hello != null && hello.Key == null)
                {
                    int got = await InTime(stream.ReadAsync(buffer, 0, buffer.Length), late).ConfigureAwait(false);
                    if (got == 0) throw new NoAnswerException();
                    hello.Input(buffer, 0, got);
                }
                return stream;
            }
            catch (Exception e)
            {
                if (stream != null) Cut(stream);
                if (e is GatewayException) throw;
                if (e is ArgumentException) throw;
                throw new NoAnswerException(Gateways[at] + ": " + e.Message + ": connect again", e);
            }
        }

        static async Task<T> InTime<T>(Task<T> task, Task late)
        {
            if (await Task.WhenAny(task, late).ConfigureAwait(false) == task) return await task.ConfigureAwait(false);
            // What comes too late is not kept.
            Forget(task.ContinueWith(t =>
            {
                if (t.Exception == null && t.Result is Stream s) Cut(s);
            }));
            throw new NoAnswerException("the gateway did not answer in time: connect again");
        }

        internal static void Forget(Task task) => task.ContinueWith(t => { _ = t.Exception; });

        /// <summary>Closes a connection that is given up. It does not wait, and who writes to it does no
        /// longer: TLS would wait for who writes.</summary>
        internal static void Cut(Stream s)
        {
            try { (s as Secure)?.Cut(); }
            catch (Exception) { } // it is closed
            Leave(s);
        }

        /// <summary>Closes a connection whose last bytes still arrive. It does not wait either.</summary>
        internal static void Leave(Stream s)
        {
            if (!(s is NetworkStream)) Forget(Task.Run(() => s.Dispose()));
            else s.Dispose();
        }

        sealed class Secure : SslStream
        {
            public Secure(Stream below, RemoteCertificateValidationCallback check) : base(below, false, check) { }
            public void Cut() => InnerStream.Dispose();
        }

        static async Task<bool> Written(Stream s, byte[] data)
        {
            await s.WriteAsync(data, 0, data.Length).ConfigureAwait(false);
            return true;
        }

        async Task<Stream> ConnectTcp(string gateway)
        {
            bool tls = gateway.StartsWith("tls://");
            var address = tls ? gateway.Substring(6) : gateway;
            int colon = address.LastIndexOf(':');
            if (colon < 0 || !int.TryParse(address.Substring(colon + 1), out int port)) throw new ArgumentException("no host:port: " + gateway);
            var host = address.Substring(0, colon).Trim('[', ']');
            var client = await ConnectAny(host, port).ConfigureAwait(false);
            try
            {
                var stream = client.GetStream();
                if (!tls) return stream;
                var secure = new Secure(stream, (sender, certificate, chain, errors) =>
                    certificate != null && ServerName.Matches(certificate, host) &&
                    (CheckCertificate == null ? errors == SslPolicyErrors.None : CheckCertificate(sender, certificate, chain, errors)));
                await secure.AuthenticateAsClientAsync(host).ConfigureAwait(false);
                return secure;
            }
            catch
            {
                client.Dispose();
                throw;
            }
        }

        /// <summary>Connects to the first of a host's addresses that is there, of either family: networks of
        /// phones may have IPv6 alone.</summary>
        static async Task<TcpClient> ConnectAny(string host, int port)
        {
            Exception error = null;
            foreach (var address in await Dns.GetHostAddressesAsync(host).ConfigureAwait(false))
            {
                var client = new TcpClient(address.AddressFamily) { NoDelay = true };
                try
                {
                    await client.ConnectAsync(address, port).ConfigureAwait(false);
                    return client;
                }
                catch (Exception e)
                {
                    client.Dispose();
                    error = e;
                }
            }
            throw error ?? new IOException("the name has no address");
        }

        internal void Tell(TunnelEvent e, Exception why = null) => OnEvent?.Invoke(e, why);
    }
}

// Driver MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go.
using System;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using Gateway.Client;

static class Driver
{
    static byte[] Bytes(string hex) =>
        Enumerable.Range(0, hex.Length / 2).Select(i => Convert.ToByte(hex.Substring(2 * i, 2), 16)).ToArray();
    static string Hex(byte[] b) => string.Concat(b.Select(x => x.ToString("x2")));

    static string Answer(string[] w)
    {
        switch (w[0])
        {
            case "key":
                var own = X25519.PublicKey(Bytes(w[1]));
                return Session.Base64Url(own) + " " + Hex(Session.SessionKey(Bytes(w[1]), own, Bytes(w[2])));
            case "open": return Session.OpenLine(Bytes(w[1]), w[2]).TrimEnd();
            case "resume":
                return Session.ResumeLine(Bytes(w[1]), w[2], ulong.Parse(w[3]), ulong.Parse(w[4]), ulong.Parse(w[5])).TrimEnd();
        }
        var s = new Session(Enumerable.Repeat((byte)1, 32).ToArray());
        var reads = "";
        var buffer = new byte[4096];
        foreach (var step in w.Skip(2))
        {
            var value = Bytes(step.Substring(step.IndexOf(':') + 1).Length == step.Length ? "" : step.Substring(step.IndexOf(':') + 1));
            if (step.StartsWith("receive"))
            {
                foreach (var b in value) s.Input(new[] { b }, 0, 1);
                if (s.Key != null) s.Key = Bytes(w[1]);
            }
            else if (step.StartsWith("write"))
            {
                s.Send(value, 0, value.Length);
                s.Output(0);
            }
            else if (step == "finish")
            {
                s.Finish();
                s.Output(0);
            }
            else s.Reattach();
            int n = s.Take(buffer, 0, buffer.Length, 0);
            reads += Hex(buffer.Take(n).ToArray());
        }
        var line = s.Reattach().TrimEnd();
        return line + " " + Hex(s.Output(0)) + " " + reads;
    }

    static readonly string Ca = Environment.GetEnvironmentVariable("CA");

    // Of what may end after the tunnel.
    static void Ignore(Task task) => task.ContinueWith(t => { _ = t.Exception; });

    static async Task<string> Run(string[] args)
    {
        var lines = args[2].Split(',');
        var dialer = new Dialer(args[1].Split(','))
        {
            Plain = args[0] == "talk",
            Timeout = TimeSpan.FromMilliseconds(int.Parse(args[3])),
            Hold = TimeSpan.FromSeconds(10),
            CheckCertificate = Ca == null ? null : (RemoteCertificateValidationCallback)((sender, certificate, chain, errors) =>
                certificate.GetCertHashString() == new X509Certificate(Ca).GetCertHashString()),
            NewLine = e => Task.FromResult(lines.Length > 1 ? lines[1] : null),
        };
        Tunnel t = null;
        int backs = 0;
        bool again = args[0] == "again", stuck = new[] { "told", "silent", "leave" }.Contains(args[0]);
        bool bulk = again || stuck || args[0] == "bulk";
        if (stuck) dialer.Silence = dialer.Patience = TimeSpan.FromMilliseconds(args[0] == "silent" ? 500 : 60000);
        dialer.OnEvent = (e, why) =>
        {
            if (e == TunnelEvent.Back) Interlocked.Increment(ref backs);
            if (again && e != TunnelEvent.Ended && backs <= 20) Ignore(t.ReconnectAsync());
        };
        if (stuck) dialer.Timeout = TimeSpan.FromSeconds(60); // dialling is not what is tested
        t = await dialer.DialAsync(lines[0]);
        dialer.Timeout = TimeSpan.FromMilliseconds(int.Parse(args[3]));
        if (again)
        {
            await t.ReconnectAsync();
            Ignore(Task.Run(async () =>
            {
                for (int i = 0; i < 50; i++)
                {
                    await t.ReconnectAsync();
                    await Task.Delay(1);
                }
            }));
        }
        var want = bulk ? Enumerable.Range(0, int.Parse(args[4])).Select(i => (byte)(i * 7 + i / 251)).ToArray() : Encoding.UTF8.GetBytes(args[4]);
        var got = new MemoryStream();
        var buffer = new byte[4096];
        int written = 0;
        var writing = Task.Run(async () =>
        {
            for (int i = 0; i < want.Length; i += 4096)
            {
                await t.WriteAsync(want, i, Math.Min(4096, want.Length - i));
                Volatile.Write(ref written, i);
                while (bulk && !stuck && got.Length < i) await Task.Delay(1);
            }
            await t.CloseWriteAsync();
        });
        Ignore(writing);
        var reading = Task.Run(async () =>
        {
            for (int n; (n = await t.ReadAsync(buffer, 0, buffer.Length)) > 0;) got.Write(buffer, 0, n);
        });
        Ignore(reading);
        if (stuck && args[0] != "silent")
        {
            for (int last = -1, rests = 0; rests < 100; last = Volatile.Read(ref written))
            {
                rests = Volatile.Read(ref written) == last ? rests + 1 : 0;
                await Task.Delay(10);
            }
            if (writing.IsCompleted) return "not stuck";
        }
        if (args[0] == "told") await t.ReconnectAsync();
        if (args[0] == "leave")
        {
            var took = Stopwatch.StartNew();
            await t.CloseAsync();
            return took.ElapsedMilliseconds < 1000 ? "closed in time" : $"closed after {took.ElapsedMilliseconds} ms";
        }
        await reading;
        await writing;
        await t.CloseAsync();
        if (!bulk) return "ok " + (t.Resumable ? "resumable " : "plain ") + Encoding.UTF8.GetString(got.ToArray());
        return got.ToArray().SequenceEqual(want) ? $"ok {got.Length} " + (t.Resumes > 0 ? "resumed" : "not resumed") : "other bytes";
    }

    static int Main(string[] args)
    {
        if (args[0] == "vectors")
        {
            for (string line; (line = Console.ReadLine()) != null;)
            {
                try { Console.WriteLine(Answer(line.Split(' '))); }
                catch (ViolationException) { Console.WriteLine("refused"); }
            }
            return 0;
        }
        if (args[0] == "names") // HOST CERTIFICATE, in base64: whether it is the host's
        {
            for (string line; (line = Console.ReadLine()) != null;)
            {
                var w = line.Split(' ');
                Console.WriteLine(ServerName.Matches(new X509Certificate(Convert.FromBase64String(w[1])), w[0]) ? "yes" : "no");
            }
            return 0;
        }
        try { Console.WriteLine(Run(args).GetAwaiter().GetResult()); }
        catch (GatewayException e)
        {
            var advice = string.Concat(e.Advice.ToString().Select(c => char.IsUpper(c) ? " " + char.ToLower(c) : c.ToString())).Trim();
            Console.WriteLine($"error {e.Status} {advice}");
        }
        Environment.Exit(0);
        return 0;
    }
}

using System;
using System.Globalization;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using System.Text;

namespace Gateway.Client
{
    /// <summary>Whether a certificate is that of a host, by its subjectAltName (RFC 9525). The kit looks
    /// itself: Mono, and Unity with it, may report a wrong name as an error of the chain alone, which a
    /// check that knows an authority of its own lets pass.</summary>
    public static class ServerName
    {
        const int dnsName = 0x82, ipAddress = 0x87; // GeneralName's [2] and [7] (RFC 5280, 4.2.1.6)

        /// <summary>Whether the certificate names the host: an address byte for byte, a name without
        /// regard to case, or a wildcard that is the whole first label, and stands for one. The subject's
        /// common name counts for nothing, nor does a subjectAltName that cannot be read.</summary>
        public static bool Matches(X509Certificate certificate, string host)
        {
            byte[] address = null;
            string name = null;
            if (IPAddress.TryParse(host, out var ip)) address = ip.GetAddressBytes();
            else if ((name = Ascii(host)) == null) return false;
            var extension = new X509Certificate2(certificate).Extensions["2.5.29.17"];
            if (extension == null) return false;
            var der = extension.RawData;
            int at = 0, end = der.Length;
            if (!Head(der, ref at, ref end, out int tag) || tag != 0x30 || end != der.Length) return false;
            bool found = false;
            while (at < der.Length)
            {
                end = der.Length;
                if (!Head(der, ref at, ref end, out tag)) return false;
                if (tag == dnsName && name != null) found |= Matches(der, at, end, name);
                if (tag == ipAddress && address != null) found |= Same(der, at, end, address);
                at = end;
            }
            return found;
        }

        /// <summary>Reads a tag of one byte and a length: what it is about is from at to end, which was the
        /// end of all.</summary>
        static bool Head(byte[] der, ref int at, ref int end, out int tag)
        {
            tag = 0;
            if (end - at < 2) return false;
            tag = der[at++];
            int length = der[at++];
            if (length >= 0x80)
            {
                int size = length - 0x80;
                if (size < 1 || size > 3 || end - at < size) return false;
                for (length = 0; size > 0; size--) length = length << 8 | der[at++];
            }
            if (length > end - at) return false;
            end = at + length;
            return true;
        }

        static bool Same(byte[] der, int at, int end, byte[] address)
        {
            if (end - at != address.Length) return false;
            for (int i = 0; i < address.Length; i++)
            {
                if (der[at + i] != address[i]) return false;
            }
            return true;
        }

        static bool Matches(byte[] der, int at, int end, string name)
        {
            // A letter that is none of ASCII's becomes a question mark, which no host has.
            var pattern = Encoding.ASCII.GetString(der, at, end - at);
            if (pattern.StartsWith("*.", StringComparison.Ordinal))
            {
                int dot = name.IndexOf('.');
                if (dot < 0) return false;
                pattern = pattern.Substring(2);
                name = name.Substring(dot + 1);
            }
            return string.Equals(pattern, name, StringComparison.OrdinalIgnoreCase);
        }

        /// <summary>The name as it stands in certificates (RFC 5890), without a dot at its end; null if it
        /// is none of a host.</summary>
        static string Ascii(string host)
        {
            if (host.EndsWith(".", StringComparison.Ordinal)) host = host.Substring(0, host.Length - 1);
            try { host = new IdnMapping().GetAscii(host); }
            catch (ArgumentException) { return null; } // an empty label, among others
            foreach (var c in host)
            {
                if (!(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_')) return null;
            }
            return host;
        }
    }
}

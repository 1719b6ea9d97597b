using System.Linq;

namespace System.Security.Cryptography
{
    // What .NET has and Mono has not: AES-GCM (NIST SP 800-38D) for IVs of 12
    // bytes. It is for the tests alone.
    class AesGcm : IDisposable
    {
        readonly ICryptoTransform block;

        public AesGcm(byte[] key, int tagSizeInBytes)
        {
            if (tagSizeInBytes != 16) throw new ArgumentException("tagSizeInBytes");
            var aes = Aes.Create();
            aes.Mode = CipherMode.ECB;
            aes.Padding = PaddingMode.None;
            aes.Key = key;
            block = aes.CreateEncryptor();
        }

        public void Encrypt(byte[] nonce, byte[] plaintext, byte[] ciphertext, byte[] tag, byte[] associatedData)
        {
            var h = Block(new byte[16]);
            for (int i = 0; i < plaintext.Length; i++)
                ciphertext[i] = (byte)(plaintext[i] ^ Block(Counter(nonce, i / 16 + 2))[i % 16]);
            var y = new byte[16];
            Hash(y, h, associatedData);
            Hash(y, h, ciphertext);
            Hash(y, h, Bits(associatedData).Concat(Bits(ciphertext)).ToArray());
            var mask = Block(Counter(nonce, 1));
            for (int i = 0; i < 16; i++) tag[i] = (byte)(y[i] ^ mask[i]);
        }

        byte[] Block(byte[] b) => block.TransformFinalBlock(b, 0, 16);

        static byte[] Counter(byte[] nonce, int n) => nonce.Concat(BitConverter.GetBytes(n).Reverse()).ToArray();

        static byte[] Bits(byte[] data) => BitConverter.GetBytes(8L * data.Length).Reverse().ToArray();

        static void Hash(byte[] y, byte[] h, byte[] data)
        {
            for (int i = 0; i < data.Length; i += 16)
            {
                for (int j = i; j < Math.Min(i + 16, data.Length); j++) y[j - i] ^= data[j];
                Multiply(y, h);
            }
        }

        // Multiply sets y to y times h.
        static void Multiply(byte[] y, byte[] h)
        {
            var z = new byte[16];
            var v = (byte[])h.Clone();
            for (int i = 0; i < 128; i++)
            {
                if ((y[i / 8] >> (7 - i % 8) & 1) == 1)
                    for (int j = 0; j < 16; j++) z[j] ^= v[j];
                bool odd = (v[15] & 1) == 1;
                for (int j = 15; j > 0; j--) v[j] = (byte)(v[j] >> 1 | v[j - 1] << 7);
                v[0] >>= 1;
                if (odd) v[0] ^= 0xe1;
            }
            z.CopyTo(y, 0);
        }

        public void Dispose() => block.Dispose();
    }
}

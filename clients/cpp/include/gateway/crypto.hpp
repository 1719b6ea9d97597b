// X25519 (RFC 7748), SHA-256 and HMAC for resumable tunnels, where no library has them.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

namespace gateway {

using Bytes = std::string;
using Key = std::array<std::uint8_t, 32>;

namespace crypto {

inline std::uint32_t rotate(std::uint32_t x, int n) { return x >> n | x << (32 - n); }

inline Bytes sha256(Bytes m) {
  static const std::uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  std::uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const std::uint64_t bits = std::uint64_t(m.size()) * 8;
  m += char(0x80);
  while (m.size() % 64 != 56) m += char(0);
  for (int i = 7; i >= 0; i--) m += char(bits >> 8 * i);
  for (std::size_t at = 0; at < m.size(); at += 64) {
    std::uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++) {
      w[i] = 0;
      for (int j = 0; j < 4; j++) w[i] = w[i] << 8 | std::uint8_t(m[at + 4 * i + j]);
    }
    for (int i = 16; i < 64; i++) {
      const std::uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    std::memcpy(v, h, sizeof v);
    for (int i = 0; i < 64; i++) {
      const std::uint32_t t1 = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) +
                               ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
      const std::uint32_t t2 = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) +
                               ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      std::memmove(v + 1, v, 7 * sizeof v[0]);
      v[4] += t1;
      v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
  }
  Bytes sum;
  for (std::uint32_t x : h)
    for (int i = 3; i >= 0; i--) sum += char(x >> 8 * i);
  return sum;
}

inline Bytes hmac(Bytes key, const Bytes& message) {
  if (key.size() > 64) key = sha256(key);
  key.resize(64);
  Bytes inner = key, outer = key;
  for (int i = 0; i < 64; i++) inner[i] ^= 0x36, outer[i] ^= 0x5c;
  return sha256(outer + sha256(inner + message));
}

inline Bytes base64url(const Bytes& b) {
  static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  Bytes text;
  std::uint32_t bits = 0;
  int n = 0;
  for (char c : b) {
    bits = bits << 8 | std::uint8_t(c);
    for (n += 8; n >= 6;) text += alphabet[bits >> (n -= 6) & 63];
  }
  if (n) text += alphabet[bits << (6 - n) & 63];
  return text;
}

// The field of 2^255-19 as 16 limbs of 16 bits, after TweetNaCl (public domain). Its
// time does not depend on the values.
using Field = std::int64_t[16];

inline void carry(Field o) {
  for (int i = 0; i < 16; i++) {
    o[i] += 1 << 16;
    const std::int64_t c = o[i] >> 16;
    o[(i + 1) * (i < 15)] += c - 1 + 37 * (c - 1) * (i == 15);
    o[i] -= c * 65536;
  }
}
inline void add(Field o, const Field a, const Field b) { for (int i = 0; i < 16; i++) o[i] = a[i] + b[i]; }
inline void sub(Field o, const Field a, const Field b) { for (int i = 0; i < 16; i++) o[i] = a[i] - b[i]; }
inline void multiply(Field o, const Field a, const Field b) {
  std::int64_t t[31] = {0};
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) t[i + j] += a[i] * b[j];
  for (int i = 0; i < 15; i++) t[i] += 38 * t[i + 16];
  for (int i = 0; i < 16; i++) o[i] = t[i];
  carry(o);
  carry(o);
}
inline void swapIf(Field p, Field q, int b) {
  const std::int64_t c = ~(std::int64_t(b) - 1);
  for (int i = 0; i < 16; i++) {
    const std::int64_t t = c & (p[i] ^ q[i]);
    p[i] ^= t;
    q[i] ^= t;
  }
}

// Returns what both sides get; all zeros is a public key that is none.
inline Bytes x25519(const Bytes& secret, const Bytes& point) {
  std::uint8_t z[32];
  std::memcpy(z, secret.data(), 32);
  z[31] = std::uint8_t((z[31] & 127) | 64);
  z[0] &= 248;
  Field x, a = {1}, b, c = {0}, d = {1}, e, f, s = {0xDB41, 1};
  for (int i = 0; i < 16; i++) x[i] = std::uint8_t(point[2 * i]) + (std::int64_t(std::uint8_t(point[2 * i + 1])) << 8);
  x[15] &= 0x7fff;
  std::memcpy(b, x, sizeof b);
  for (int i = 254; i >= 0; i--) {
    const int r = z[i >> 3] >> (i & 7) & 1;
    swapIf(a, b, r);
    swapIf(c, d, r);
    add(e, a, c); sub(a, a, c); add(c, b, d); sub(b, b, d);
    multiply(d, e, e); multiply(f, a, a); multiply(a, c, a); multiply(c, b, e);
    add(e, a, c); sub(a, a, c);
    multiply(b, a, a); sub(c, d, f);
    multiply(a, c, s); add(a, a, d); multiply(c, c, a);
    multiply(a, d, f); multiply(d, b, x); multiply(b, e, e);
    swapIf(a, b, r);
    swapIf(c, d, r);
  }
  Field inverse;
  std::memcpy(inverse, c, sizeof inverse);
  for (int i = 253; i >= 0; i--) {
    multiply(inverse, inverse, inverse);
    if (i != 2 && i != 4) multiply(inverse, inverse, c);
  }
  Field t, m;
  multiply(t, a, inverse);
  carry(t);
  carry(t);
  carry(t);
  for (int j = 0; j < 2; j++) {
    m[0] = t[0] - 0xffed;
    for (int i = 1; i < 15; i++) {
      m[i] = t[i] - 0xffff - (m[i - 1] >> 16 & 1);
      m[i - 1] &= 0xffff;
    }
    m[15] = t[15] - 0x7fff - (m[14] >> 16 & 1);
    const int borrow = int(m[15] >> 16 & 1);
    m[14] &= 0xffff;
    swapIf(t, m, 1 - borrow);
  }
  Bytes out;
  for (int i = 0; i < 16; i++) {
    out += char(t[i] & 0xff);
    out += char(t[i] >> 8);
  }
  return out;
}

}  // namespace crypto
}  // namespace gateway

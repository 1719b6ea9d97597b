// The client's end of a resumable tunnel: offsets, frames and keys, without a socket or
// a clock. docs/roaming.md describes the protocol; clients/testdata has its vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "crypto.hpp"

namespace gateway {

// What was received is not the protocol.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Returns K; throws Violation where the gateway's key is none.
inline Bytes sessionKey(const Bytes& secret, const Bytes& own, const Bytes& gateway) {
  const Bytes shared = crypto::x25519(secret, gateway);
  if (shared == Bytes(32, '\0')) throw Violation("the gateway's key is none");
  // HKDF-SHA256 (RFC 5869), of which one block is enough.
  return crypto::hmac(crypto::hmac(own + gateway, shared), "gateway resume key 1\x01");
}

inline Bytes openLine(const Bytes& own, const Bytes& sealed) {
  return "~1N " + crypto::base64url(own) + " " + sealed + "\n";
}

inline Bytes resumeLine(const Bytes& key, const Bytes& ticket, std::uint64_t seq, std::uint64_t from, std::uint64_t recv) {
  const Bytes s = std::to_string(seq), f = std::to_string(from), r = std::to_string(recv);
  const Bytes mac = crypto::hmac(key, "resume 1\n" + ticket + "\n" + s + "\n" + f + "\n" + r);
  return "~1R " + ticket + " " + s + " " + f + " " + r + " " + crypto::base64url(mac) + "\n";
}

// All offsets count from 0, and the end of a direction as one more byte. Times are
// milliseconds of a clock that only goes forward.
class Session {
 public:
  Bytes publicKey, key, ticket;
  int closed = -1;  // the reason of the gateway's CLOSE
  bool finished = false, ended = false, ping = false;

  // secret: 32 random bytes.
  explicit Session(Bytes secret)
      : publicKey(crypto::x25519(secret, Bytes(1, 9) + Bytes(31, '\0'))), secret_(std::move(secret)) {}

  // How many bytes may be sent now.
  std::size_t room() const {
    return finished || closed >= 0 || out_.size() >= window_ ? 0 : window_ - out_.size();
  }
  void send(const char* data, std::size_t n) {
    out_.append(data, n);
    end_ += n;
  }
  void finish() { finished = true; }
  // Both directions have ended, and both sides know.
  bool complete() const {
    return finished && acked_ == end_ + 1 && ended && passed_ == received_ && reported_ == passed_;
  }
  bool over() const { return closed >= 0 || complete(); }
  bool atEnd() const { return ended && in_.empty(); }
  std::size_t buffered() const { return in_.size(); }

  // Moves received bytes, at most n, to data: the application has them now.
  std::size_t take(char* data, std::size_t n, std::int64_t now) {
    n = in_.copy(data, n);
    in_.erase(0, n);
    const std::uint64_t passed = received_ - in_.size() - (ended && !in_.empty() ? 1 : 0);
    if (passed > passed_) {
      if (passed_ == reported_) since_ = now;
      passed_ = passed;
      ackNow_ = ackNow_ || atEnd();
    }
    return n;
  }

  // Grows with each byte that is acknowledged or received.
  std::uint64_t progress() const { return acked_ + received_; }

  // Returns what is to be written next to the connection: at most one frame of data.
  Bytes output(std::int64_t now) {
    Bytes b;
    const std::uint64_t unreported = passed_ - reported_;
    if (pong_) b.append("\0\0\5", 3);
    if (ackNow_ || unreported >= 32 << 10 || (unreported >= 4 << 10 && next_ < end_) ||
        (unreported > 0 && now - since_ >= 1000)) {
      b.append("\0\0\1", 3);
      for (int i = 3; i >= 0; i--) b += char(passed_ >> 8 * i);
      reported_ = passed_;
    }
    if (ping) b.append("\0\0\4", 3);
    pong_ = ackNow_ = ping = false;
    if (next_ < end_) {
      const std::size_t n = std::size_t(std::min<std::uint64_t>(end_ - next_, 16384));
      b += char(n >> 8);
      b += char(n & 255);
      b.append(out_, std::size_t(next_ - base_), n);
      next_ += n;
    }
    if (finished && next_ == end_) {
      b.append("\0\0\2", 3);
      next_++;
    }
    sent_ = std::max(sent_, next_);
    drop();
    return b;
  }

  // Takes what was read from the connection, cut anywhere; throws Violation.
  void input(const char* data, std::size_t n) {
    while (n > 0 && closed < 0) {
      std::size_t used;
      if (left_ > 0) {  // of a frame of data, or of one to be skipped
        used = std::min(n, left_);
        left_ -= used;
        if (!skipping_) takeData(data, used);
      } else {
        used = std::min(n, size() - head_.size());
        head_.append(data, used);
        if (head_.size() == size()) {
          Bytes head;
          head.swap(head_);
          takeHead(head);
        }
      }
      data += used;
      n -= used;
    }
  }

  // Begins with a new connection, and returns the line to send on it. What is sent
  // behind it starts at the lowest byte that is not acknowledged.
  Bytes reattach() {
    seq_++;
    head_.clear();
    left_ = 0;
    pong_ = ping = false;
    ackNow_ = true;
    next_ = acked_;
    drop();
    return resumeLine(key, ticket, seq_, acked_, received_);
  }

 private:
  enum { ACK = 1, FIN, CLOSE, PING, PONG, HELLO, SKIPPED = 128 };

  static std::size_t u8(char c) { return std::uint8_t(c); }

  // How long the head at hand is at least, by what there is of it.
  std::size_t size() const {
    const Bytes& h = head_;
    if (h.size() < 2 || h[0] || h[1]) return 2;
    if (h.size() < 3) return 3;
    const std::size_t kind = u8(h[2]);
    if (kind == ACK) return 7;
    if (kind == CLOSE) return 4;
    if (kind == HELLO && h.size() >= 5) return 5 + u8(h[3]) * 256 + u8(h[4]);
    return kind == HELLO || kind >= SKIPPED ? 5 : 3;
  }

  static std::uint32_t u32(const Bytes& b, std::size_t at) {
    return std::uint32_t(u8(b[at]) << 24 | u8(b[at + 1]) << 16 | u8(b[at + 2]) << 8 | u8(b[at + 3]));
  }

  void takeHead(const Bytes& h) {
    const std::size_t kind = h.size() > 2 ? u8(h[2]) : 0;
    if ((kind == HELLO) != key.empty()) throw Violation("HELLO comes once, and first");
    if (h.size() == 2) {
      left_ = u8(h[0]) * 256 + u8(h[1]);
      skipping_ = false;
    } else if (kind == ACK) {
      const std::uint64_t acked = acked_ + std::uint32_t(u32(h, 3) - std::uint32_t(acked_));
      if (acked > sent_) throw Violation("an ACK beyond what was sent");
      acked_ = acked;
      drop();
    } else if (kind == FIN) {
      if (ended) throw Violation("a second end");
      ended = true;
      received_++;
    } else if (kind == CLOSE) {
      closed = int(u8(h[3]));
    } else if (kind == PING) {
      pong_ = true;
    } else if (kind == HELLO) {
      if (h.size() <= 5 + 36 || h.size() > 5 + 36 + 256) throw Violation("a HELLO that is none");
      window_ = u32(h, 5);
      if (window_ < 64 << 10 || window_ > 1 << 30) throw Violation("a HELLO that is none");
      ticket = h.substr(9, h.size() - 9 - 32);
      key = sessionKey(secret_, publicKey, h.substr(h.size() - 32));
    } else if (kind >= SKIPPED) {
      left_ = u8(h[3]) * 256 + u8(h[4]);
      skipping_ = true;
    } else if (kind != PONG) {
      throw Violation("there is no frame of type " + std::to_string(kind));
    }
  }

  void takeData(const char* data, std::size_t n) {
    if (ended) throw Violation("data behind the end");
    if (received_ - reported_ + n > window_) throw Violation("more than the window");
    in_.append(data, n);
    received_ += n;
  }

  void drop() {
    const std::uint64_t kept = std::min(std::min(acked_, next_), end_);
    out_.erase(0, std::size_t(kept - base_));
    base_ = kept;
  }

  Bytes secret_;
  std::size_t window_ = 0;
  std::uint64_t seq_ = 0;
  // What is sent. out_ holds the bytes from base_ on: the lowest that was not
  // acknowledged, or that this connection has yet to carry.
  Bytes out_;
  std::uint64_t base_ = 0, end_ = 0, acked_ = 0, next_ = 0, sent_ = 0;
  // What is received.
  Bytes in_;
  std::uint64_t received_ = 0, passed_ = 0, reported_ = 0;
  std::int64_t since_ = 0;
  // The frame at hand.
  Bytes head_;
  std::size_t left_ = 0;
  bool skipping_ = false, ackNow_ = false, pong_ = false;
};

}  // namespace gateway

// KCP, by ikcp.c (skywind3000/kcp), which the game brings: its ikcp.h on the include
// path, its ikcp.c among the sources. Then dialer.connect = gateway::connectKCP.
#pragma once

#include <algorithm>
#include <random>

#include "ikcp.h"
#include "stream.hpp"

namespace gateway {

// A KCP session, which lives by being called: read once a frame does. It has no end but
// silence, which Tunnel finds out where it is resumable, or the game by its own protocol.
class KCPStream : public Stream {
 public:
  using Milliseconds = std::chrono::milliseconds;
  static constexpr int window = 1024;  // packets, each way
  static constexpr int mtu = 1350;     // bytes of a datagram

  // Takes over a UDP socket, connected and non-blocking.
  KCPStream(TCPStream::Socket s, IUINT32 conversation) : socket_(s), kcp_(ikcp_create(conversation, this), ikcp_release) {
    ikcp_setoutput(kcp_.get(), [](const char* data, int n, ikcpcb*, void* self) {
      return static_cast<KCPStream*>(self)->output(data, n);
    });
    ikcp_nodelay(kcp_.get(), 1, 10, 2, 1);  // the gateway's fast3
    ikcp_wndsize(kcp_.get(), window, window);
    ikcp_setmtu(kcp_.get(), mtu);
    kcp_->stream = 1;
  }
  ~KCPStream() override {
    kcp_.reset();
    TCPStream::closeSocket(socket_);
  }
  KCPStream(const KCPStream&) = delete;
  KCPStream& operator=(const KCPStream&) = delete;

  long read(char* data, std::size_t n, Milliseconds wait) override {
    for (const std::int64_t deadline = now() + wait.count();;) {
      pump(0);
      if (inbox_.size() == at_) fill();
      if (at_ < inbox_.size()) {
        n = std::min(n, inbox_.size() - at_);
        std::copy_n(inbox_.data() + at_, n, data);
        at_ += n;
        return long(n);
      }
      if (now() >= deadline) return Nothing;
      pump(deadline - now());
    }
  }

  void write(const char* data, std::size_t n) override {
    while (n > 0) {
      // More than 127 packets at a time are none of KCP's messages.
      const std::size_t part = std::min<std::size_t>(n, 64 * (mtu - 24));
      if (ikcp_send(kcp_.get(), data, int(part)) < 0) throw StreamError("KCP takes nothing");
      data += part;
      n -= part;
      int least = ikcp_waitsnd(kcp_.get());
      std::int64_t moved = now();
      for (pump(0); ikcp_waitsnd(kcp_.get()) > 2 * window; pump(100)) {
        if (ikcp_waitsnd(kcp_.get()) < least) {
          least = ikcp_waitsnd(kcp_.get());
          moved = now();
        }
        if (now() - moved >= stall.count()) throw Stalled();
      }
    }
    ikcp_flush(kcp_.get());
  }

  void closeWrite() override { throw std::logic_error("KCP has no half-close: use close"); }

  void drain(Milliseconds wait) override {
    for (const std::int64_t deadline = now() + wait.count(); ikcp_waitsnd(kcp_.get()) > 0 && now() < deadline;) pump(deadline - now());
  }

 private:
  static std::int64_t now() {
    return std::chrono::duration_cast<Milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  // Does what is due, waits for datagrams, but not beyond what is due next, and takes
  // all that have come.
  void pump(std::int64_t wait) {
    const auto clock = IUINT32(now());
    ikcp_update(kcp_.get(), clock);
    pollfd p{};
    p.fd = socket_;
    p.events = POLLIN;
    const std::int64_t due = ikcp_check(kcp_.get(), clock) - clock;
    if (wait > 0) TCPStream::poll(&p, int(std::max<std::int64_t>(1, std::min(wait, due))));
    char datagram[2048];
    for (;;) {
      const auto n = recv(socket_, datagram, sizeof datagram, 0);
      if (n < 0 && TCPStream::again(TCPStream::failure())) break;
      if (n < 0) throw StreamError("the connection broke: " + TCPStream::describe(TCPStream::failure()));
      ikcp_input(kcp_.get(), datagram, long(n));  // what is none of KCP's is dropped
    }
    if (refused_) throw StreamError("the connection broke: nobody has the port");
    if (kcp_->state == IUINT32(-1)) throw StreamError("the gateway is silent");
    ikcp_update(kcp_.get(), IUINT32(now()));
  }

  // What is not sent now counts as lost, and is sent again. That nobody has the port, which
  // earlier datagrams have found out, is said but once.
  int output(const char* data, int n) {
    const auto sent = send(socket_, data, n, TCPStream::sendFlags);
    if (sent < 0 && TCPStream::refused(TCPStream::failure())) refused_ = true;
    return int(sent);
  }

  void fill() {
    const int n = ikcp_peeksize(kcp_.get());
    inbox_.resize(std::size_t(std::max(0, n)));
    at_ = 0;
    if (n >= 0) ikcp_recv(kcp_.get(), &inbox_[0], n);
  }

  TCPStream::Socket socket_;
  std::unique_ptr<ikcpcb, void (*)(ikcpcb*)> kcp_;
  std::string inbox_;  // of which the bytes before at_ are read
  std::size_t at_ = 0;
  bool refused_ = false;
};

// Begins a session with host:port, or with kcp://host:port. Nobody has answered yet.
// Throws StreamError.
inline std::unique_ptr<Stream> connectKCP(const std::string& gateway, std::chrono::milliseconds) {
  static const std::string scheme = "kcp://";
  const auto found = lookUp(gateway.compare(0, scheme.size(), scheme) == 0 ? gateway.substr(scheme.size()) : gateway, SOCK_DGRAM);
  for (addrinfo* a = found.get(); a; a = a->ai_next) {
    const TCPStream::Socket s = ::socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    if (s == TCPStream::none) continue;
    unblock(s);
    if (::connect(s, a->ai_addr, socklen_t(a->ai_addrlen)) == 0) return std::unique_ptr<Stream>(new KCPStream(s, std::random_device()()));
    TCPStream::closeSocket(s);
  }
  throw StreamError("no way to the gateway");
}

}  // namespace gateway

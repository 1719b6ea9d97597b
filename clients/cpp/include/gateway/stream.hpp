// What tunnels go by: TCP here, TLS or whatever else by the caller.
#pragma once

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#pragma comment(lib, "ws2_32")
#else
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#endif

namespace gateway {

struct StreamError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A connection takes nothing of what is written.
struct Stalled : StreamError {
  Stalled() : StreamError("the gateway takes nothing") {}
};

// A connection of bytes. Its destructor closes it, and does not wait.
class Stream {
 public:
  static constexpr long Nothing = -1;
  // For which the connection may take nothing of what is written, before write throws Stalled.
  std::chrono::milliseconds stall{30000};
  virtual ~Stream() = default;
  // Reads at most n bytes; 0 at the end, Nothing if none come in time. Throws StreamError.
  virtual long read(char* data, std::size_t n, std::chrono::milliseconds wait) = 0;
  // Writes all. Throws StreamError.
  virtual void write(const char* data, std::size_t n) = 0;
  virtual void closeWrite() = 0;
  // Waits until what was written goes on its way without this stream. Throws StreamError.
  virtual void drain(std::chrono::milliseconds) {}
};

class TCPStream : public Stream {
 public:
#ifdef _WIN32
  using Socket = SOCKET;
  static constexpr Socket none = INVALID_SOCKET;
  static int poll(pollfd* p, int ms) { return WSAPoll(p, 1, ms); }
  static void closeSocket(Socket s) { closesocket(s); }
  static int failure() { return WSAGetLastError(); }
  static bool again(int e) { return e == WSAEWOULDBLOCK || e == WSAEINPROGRESS; }
  static bool refused(int e) { return e == WSAECONNREFUSED || e == WSAECONNRESET; }
  static constexpr int sendFlags = 0, shutWrite = SD_SEND;
#else
  using Socket = int;
  static constexpr Socket none = -1;
  static int poll(pollfd* p, int ms) { return ::poll(p, 1, ms); }
  static void closeSocket(Socket s) { ::close(s); }
  static int failure() { return errno; }
  static bool again(int e) { return e == EAGAIN || e == EWOULDBLOCK || e == EINPROGRESS || e == EINTR; }
  static bool refused(int e) { return e == ECONNREFUSED; }
#ifdef MSG_NOSIGNAL
  static constexpr int sendFlags = MSG_NOSIGNAL;
#else
  static constexpr int sendFlags = 0;
#endif
  static constexpr int shutWrite = SHUT_WR;
#endif

  // Takes the socket over, which must be non-blocking.
  explicit TCPStream(Socket s) : socket_(s) {
    int one = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, reinterpret_cast<const char*>(&one), sizeof one);
#ifdef SO_NOSIGPIPE
    setsockopt(s, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
  }
  ~TCPStream() override { closeSocket(socket_); }
  TCPStream(const TCPStream&) = delete;
  TCPStream& operator=(const TCPStream&) = delete;

  long read(char* data, std::size_t n, std::chrono::milliseconds wait) override {
    if (!ready(POLLIN, wait)) return Nothing;
    const auto got = recv(socket_, data, int(n), 0);
    if (got >= 0) return long(got);
    if (again(failure())) return Nothing;
    throw StreamError("the connection broke: " + describe(failure()));
  }

  void write(const char* data, std::size_t n) override {
    while (n > 0) {
      const auto sent = send(socket_, data, int(n), sendFlags);
      if (sent < 0 && !again(failure())) throw StreamError("the connection broke: " + describe(failure()));
      if (sent < 0 && !ready(POLLOUT, stall)) throw Stalled();
      if (sent > 0) {
        data += sent;
        n -= std::size_t(sent);
      }
    }
  }

  void closeWrite() override { shutdown(socket_, shutWrite); }

  static std::string describe(int e) {
#ifdef _WIN32
    return "error " + std::to_string(e);
#else
    return std::strerror(e);
#endif
  }

 private:
  bool ready(short what, std::chrono::milliseconds wait) {
    pollfd p{};
    p.fd = socket_;
    p.events = what;
    return poll(&p, int(wait.count())) > 0;
  }

  Socket socket_;
};

// The addresses of host:port, or of [host]:port for IPv6, for a type of socket. Throws
// StreamError.
inline std::unique_ptr<addrinfo, void (*)(addrinfo*)> lookUp(const std::string& gateway, int type) {
  const std::size_t colon = gateway.rfind(':');
  if (colon == std::string::npos) throw StreamError("no host:port");
  std::string host = gateway.substr(0, colon);
  if (host.size() > 1 && host.front() == '[') host = host.substr(1, host.size() - 2);
#ifdef _WIN32
  static const int started = [] { WSADATA data; return WSAStartup(MAKEWORD(2, 2), &data); }();
  if (started != 0) throw StreamError("WSAStartup failed");
#endif
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = type;
  if (getaddrinfo(host.c_str(), gateway.c_str() + colon + 1, &hints, &found) != 0) throw StreamError("no such host");
  return {found, [](addrinfo* a) { freeaddrinfo(a); }};
}

// Has a socket never block, and no program that is started inherit it.
inline void unblock(TCPStream::Socket s) {
#ifdef _WIN32
  u_long on = 1;
  ioctlsocket(s, FIONBIO, &on);
#else
  fcntl(s, F_SETFL, fcntl(s, F_GETFL, 0) | O_NONBLOCK);
  fcntl(s, F_SETFD, FD_CLOEXEC);
#endif
}

// Connects to host:port by TCP. Throws StreamError.
inline std::unique_ptr<Stream> connectTCP(const std::string& gateway, std::chrono::milliseconds timeout) {
  const auto found = lookUp(gateway, SOCK_STREAM);
  std::string why = "no address";
  for (addrinfo* a = found.get(); a; a = a->ai_next) {
    const TCPStream::Socket s = ::socket(a->ai_family, a->ai_socktype, a->ai_protocol);
    if (s == TCPStream::none) continue;
    std::unique_ptr<Stream> stream(new TCPStream(s));
    unblock(s);
    int e = 0;
    if (::connect(s, a->ai_addr, socklen_t(a->ai_addrlen)) != 0) {
      e = TCPStream::failure();
      if (TCPStream::again(e)) {
        pollfd p{};
        p.fd = s;
        p.events = POLLOUT;
        if (TCPStream::poll(&p, int(timeout.count())) <= 0) {
          why = "connecting took too long";
          continue;
        }
        socklen_t size = sizeof e;
        getsockopt(s, SOL_SOCKET, SO_ERROR, reinterpret_cast<char*>(&e), &size);
      }
    }
    if (e == 0) return stream;
    why = TCPStream::describe(e);
  }
  throw StreamError(why);
}

}  // namespace gateway

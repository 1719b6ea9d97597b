// Tunnels to game servers through a gateway, by TCP or a stream of the caller's.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "session.hpp"
#include "stream.hpp"

namespace gateway {

// What the player can do: connect again; get a new line from the login server; the
// same, or wait; log in again.
enum class Advice { Reconnect, NewLine, NewLineOrLater, StartAnew };

inline const char* text(Advice a) {
  static const char* const texts[] = {"reconnect", "new line", "new line or later", "start anew"};
  return texts[int(a)];
}

// Why there is no tunnel. status is what the gateway answered; 0 is no answer.
struct GatewayError : std::runtime_error {
  int status;
  Advice advice;
  GatewayError(int s, Advice a, const std::string& what) : std::runtime_error(what), status(s), advice(a) {}
};
struct NoAnswer : GatewayError {
  explicit NoAnswer(const std::string& why = "the gateway gave no answer: connect again") : GatewayError(0, Advice::Reconnect, why) {}
};
struct BadRequest : GatewayError {
  BadRequest() : GatewayError(400, Advice::Reconnect, "the gateway could not read the line (400): connect again") {}
};
struct Unauthorized : GatewayError {
  Unauthorized() : GatewayError(401, Advice::NewLine, "the line does not open (401): get a new line") {}
};
struct Gone : GatewayError {
  explicit Gone(const char* why = "the session is gone (410): start anew") : GatewayError(410, Advice::StartAnew, why) {}
};
struct BadGateway : GatewayError {
  BadGateway() : GatewayError(502, Advice::NewLineOrLater, "the game server cannot be connected (502): get a new line, or try later") {}
};
struct GatewayTimeout : GatewayError {
  GatewayTimeout() : GatewayError(504, Advice::NewLineOrLater, "connecting the game server took too long (504): get a new line, or try later") {}
};

enum class Event { Reconnecting, Back, Failed, Ended };

using Milliseconds = std::chrono::milliseconds;

class Tunnel;

// Says how tunnels are opened and resumed. It has to outlive its tunnels.
struct Dialer {
  std::vector<std::string> gateways;  // host:port, tried in turn
  // Called with the error where a new line may help; returns one, or nothing.
  std::function<std::string(const GatewayError&)> newLine;
  bool plain = false;           // asks for no more than a plain tunnel
  Milliseconds timeout{5000};   // for one gateway to be reached and to answer
  Milliseconds hold{30000};     // for which a lost tunnel is tried to be resumed
  Milliseconds silence{5000};   // after which a gateway is asked whether it is there,
  Milliseconds patience{3000};  // and then has to answer
  std::function<void(Event, const std::string& why)> onEvent;
  // Connects to a gateway; TCP unless given. For TLS, give one that does its handshake.
  std::function<std::unique_ptr<Stream>(const std::string& gateway, Milliseconds timeout)> connect;
  // 32 random bytes; std::random_device's unless given.
  std::function<Bytes()> random;

  // Opens a tunnel to the game server whose sealed line, or token, is given. Throws a
  // GatewayError.
  std::unique_ptr<Tunnel> dial(std::string line) const;

  // Sends a request, and what follows it, to a gateway: returns the stream behind 200.
  std::unique_ptr<Stream> ask(std::size_t at, const Bytes& request) const { return ask(at, request, timeout); }
  std::unique_ptr<Stream> ask(std::size_t at, const Bytes& request, Milliseconds within) const {
    const auto deadline = std::chrono::steady_clock::now() + within;
    try {
      std::unique_ptr<Stream> s = connect ? connect(gateways[at], within) : connectTCP(gateways[at], within);
      s->stall = within;
      s->write(request.data(), request.size());
      char status[3];
      for (std::size_t n = 0; n < 3;) {
        const auto left = std::chrono::duration_cast<Milliseconds>(deadline - std::chrono::steady_clock::now());
        const long got = left.count() > 0 ? s->read(status + n, 3 - n, left) : Stream::Nothing;
        if (got == Stream::Nothing) throw NoAnswer("the gateway did not answer in time: connect again");
        if (got == 0) throw NoAnswer("the gateway closed without a status: connect again");
        n += std::size_t(got);
      }
      const std::string answer(status, 3);
      if (answer == "200") return s;
      if (answer == "400") throw BadRequest();
      if (answer == "401") throw Unauthorized();
      if (answer == "410") throw Gone();
      if (answer == "502") throw BadGateway();
      if (answer == "504") throw GatewayTimeout();
      throw NoAnswer("the answer is no status: is this the gateway's address?");
    } catch (const StreamError& e) {
      throw NoAnswer(gateways[at] + ": " + e.what() + ": connect again");
    }
  }

 private:
  std::unique_ptr<Tunnel> open(std::size_t at, const std::string& line) const;
};

// A tunnel to a game server, for one thread: a game's, which reads once a frame. It is
// resumed within read and write.
class Tunnel {
 public:
  static constexpr long Nothing = Stream::Nothing;
  int resumes = 0;

  Tunnel(const Dialer& d, std::size_t at, std::unique_ptr<Stream> s, std::unique_ptr<Session> session)
      : dialer_(d), at_(at), stream_(std::move(s)), session_(std::move(session)), heard_(now()) {
    if (session_) stream_->stall = stall();
  }
  Tunnel(const Tunnel&) = delete;
  Tunnel& operator=(const Tunnel&) = delete;

  bool resumable() const { return bool(session_); }

  // Reads at most n bytes. Returns 0 at the end, and Nothing if none come within wait,
  // which may be 0; or throws.
  long read(char* data, std::size_t n, Milliseconds wait = Milliseconds(1 << 30)) {
    if (!session_) {
      check();
      try {
        return stream_->read(data, n, wait);
      } catch (const StreamError& e) {
        throw NoAnswer(e.what());
      }
    }
    for (const std::int64_t deadline = now() + wait.count();;) {
      const std::size_t got = session_->take(data, n, now());
      const bool end = session_->atEnd();
      if (got > 0 || end) {
        try {
          flush();
        } catch (const GatewayError&) {  // what is read next tells
        }
        return long(got);
      }
      if (!pump(deadline) && now() >= deadline) return Nothing;
    }
  }

  // Sends all of data, and waits where the game server does not read.
  void write(const char* data, std::size_t n) {
    check();
    if (!session_) {
      try {
        return stream_->write(data, n);
      } catch (const StreamError& e) {
        throw NoAnswer(e.what());
      }
    }
    for (;;) {
      const std::size_t part = std::min(n, session_->room());
      session_->send(data, part);
      data += part;
      n -= part;
      flush();
      check();
      if (n == 0) return;
      if (part == 0) pump(now() + 1000);
    }
  }
  void write(const Bytes& data) { write(data.data(), data.size()); }

  // Finishes writing; reading goes on. Not by plain KCP.
  void closeWrite() {
    check();
    if (!session_) return stream_->closeWrite();
    session_->finish();
    flush();
  }

  // Ends the tunnel. What was written still arrives, for which it waits a little: half a
  // second where the connection takes nothing.
  void close(Milliseconds wait = Milliseconds(2000)) {
    if (!ended_ && !recovering_) {
      closing_ = now() + wait.count();
      stream_->stall = Milliseconds(500);
      try {
        if (session_) {
          closeWrite();
          char buffer[4096];
          while (!ended_ && !session_->over() && now() < closing_) {
            session_->take(buffer, sizeof buffer, now());
            flush();
            if (session_->buffered() == 0 && !session_->over()) pump(closing_);
          }
        }
        if (!ended_) stream_->drain(Milliseconds(std::max<std::int64_t>(0, closing_ - now())));
      } catch (const std::exception&) {
      }
    }
    end("");
  }

  // Ends the tunnel at once: the game server of a resumable one sees a reset.
  void abort() {
    if (session_ && !ended_ && !recovering_) {
      try {
        stream_->stall = Milliseconds(250);
        stream_->write("\0\0\3\0", 4);
      } catch (const StreamError&) {
      }
    }
    end("");
  }

  // Goes on by another connection: for when the system tells of a change of networks.
  void reconnect() {
    if (!session_ || ended_ || recovering_) return;
    tries_ = 0;
    recover("reconnect was called");
    flush();
  }

 private:
  // Milliseconds between attempts to resume that bring nothing: at first, and at most.
  static constexpr std::int64_t Pause = 50, Longest = 1000;

  static std::int64_t now() {
    return std::chrono::duration_cast<Milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  // A gateway takes something in the time that it has to answer.
  Milliseconds stall() const { return closing_ != 0 ? Milliseconds(500) : dialer_.silence + dialer_.patience; }
  void tell(Event e, const std::string& why = "") const {
    if (dialer_.onEvent) dialer_.onEvent(e, why);
  }
  void check() const {
    if (ended_) throw NoAnswer("the tunnel is closed");
  }
  void end(const std::string& why) {
    if (ended_) return;
    ended_ = true;
    stream_.reset();
    tell(Event::Ended, why);
  }

  void flush() {
    while (!ended_) {
      const Bytes b = session_->output(now());
      if (b.empty()) return;
      try {
        stream_->write(b.data(), b.size());
      } catch (const StreamError& e) {
        if (session_->over()) return;
        if (closing_ != 0 && dynamic_cast<const Stalled*>(&e)) throw;
        recover(e.what());
      }
    }
  }

  // Reads once, at the latest until deadline; finds out a silent gateway.
  bool pump(std::int64_t deadline) {
    check();
    if (session_->closed >= 0) {
      end("closed");
      throw Gone("the game server or the gateway has ended the tunnel");
    }
    const std::int64_t most = std::min<std::int64_t>({1000, dialer_.silence.count(), dialer_.patience.count()});
    const std::int64_t wait = std::max<std::int64_t>(0, std::min(most, deadline - now()));
    std::string lost;
    bool some = false;
    try {
      char buffer[16384];
      const long n = stream_->read(buffer, sizeof buffer, Milliseconds(wait));
      if (n > 0) {
        some = true;
        heard_ = now();
        asked_ = 0;
        session_->input(buffer, std::size_t(n));
      } else if (n == 0) {
        lost = "the connection ended";
      } else if (asked_ == 0 && now() - heard_ >= dialer_.silence.count()) {
        asked_ = now();
        session_->ping = true;
      } else if (asked_ != 0 && now() - asked_ >= dialer_.patience.count()) {
        lost = "the gateway is silent";
      }
    } catch (const StreamError& e) {
      lost = e.what();
    } catch (const Violation& e) {
      end(e.what());
      throw NoAnswer(std::string("the gateway breaks the protocol: ") + e.what());
    }
    if (!lost.empty() && !session_->over()) recover(lost);
    flush();
    return some;
  }

  // Looks for a connection that carries the tunnel on.
  void recover(std::string why) {
    recovering_ = true;
    struct Recovers {
      bool& it;
      ~Recovers() { it = false; }
    } until{recovering_};
    tell(Event::Reconnecting, why);
    for (;;) {
      check();  // the event may end the tunnel
      if (!prepare()) {
        end(why);
        throw NoAnswer(why);
      }
      Bytes request = session_->reattach();
      request += session_->output(now());
      const std::int64_t left = closing_ != 0 ? std::max<std::int64_t>(1, closing_ - now()) : dialer_.timeout.count();
      try {
        stream_ = dialer_.ask(at_, request, std::min(dialer_.timeout, Milliseconds(left)));
      } catch (const GatewayError& e) {
        if (e.status == 401 || e.status == 410) {
          end(e.what());
          throw;
        }
        why = e.what();
        tell(Event::Failed, why);
        continue;
      }
      stream_->stall = stall();
      heard_ = back_ = now();
      asked_ = 0;
      resumes++;
      recovering_ = false;
      return tell(Event::Back);
    }
  }

  // Waits where the last attempt has brought nothing, and chooses the gateway; false: it was
  // tried for long enough. A gateway that answers 200 and ends the connection again and again
  // brings nothing.
  bool prepare() {
    if (tries_ == 0 || session_->progress() != before_ || (back_ != 0 && now() - back_ >= 2 * Longest)) {
      tries_ = 0;
      pause_ = Pause;
      since_ = now();
    } else if (now() - since_ >= dialer_.hold.count() || (closing_ != 0 && now() >= closing_)) {
      return false;
    } else {
      at_ = (at_ + 1) % dialer_.gateways.size();
    }
    if (tries_ > 0 && tries_ % dialer_.gateways.size() == 0) {
      std::int64_t wait = pause_ + std::int64_t(dice_() % std::uint32_t(pause_));
      if (closing_ != 0) wait = std::min(wait, std::max<std::int64_t>(0, closing_ - now()));
      std::this_thread::sleep_for(Milliseconds(wait));
      pause_ = std::min(2 * pause_, Longest);
    }
    tries_++;
    back_ = 0;
    before_ = session_->progress();
    return true;
  }

  const Dialer& dialer_;
  std::size_t at_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Session> session_;
  std::int64_t heard_, asked_ = 0;
  bool recovering_ = false;  // until onEvent is told Back
  bool ended_ = false;
  std::int64_t closing_ = 0;  // when close has waited for long enough; 0: it was not called
  // Of attempts to resume since bytes got through: how many, since when, and what there was then.
  std::size_t tries_ = 0;
  std::int64_t pause_ = Pause, since_ = 0, back_ = 0;
  std::uint64_t before_ = 0;
  std::minstd_rand dice_{std::uint32_t(now()) | 1};
};

inline std::unique_ptr<Tunnel> Dialer::open(std::size_t at, const std::string& line) const {
  if (!plain) {
    Bytes secret;
    if (random) {
      secret = random();
    } else {
      std::random_device device;
      while (secret.size() < 32) secret += char(device());
    }
    std::unique_ptr<Session> session(new Session(secret));
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    try {
      std::unique_ptr<Stream> s = ask(at, openLine(session->publicKey, line));
      while (session->key.empty()) {
        char buffer[4096];
        const auto left = std::chrono::duration_cast<Milliseconds>(deadline - std::chrono::steady_clock::now());
        const long n = left.count() > 0 ? s->read(buffer, sizeof buffer, left) : Stream::Nothing;
        if (n <= 0) throw NoAnswer();
        session->input(buffer, std::size_t(n));
      }
      return std::unique_ptr<Tunnel>(new Tunnel(*this, at, std::move(s), std::move(session)));
    } catch (const BadRequest&) {  // what knows of no sessions calls them a bad address
    } catch (const Unauthorized&) {
    } catch (const Violation& e) {
      throw NoAnswer(e.what());
    } catch (const StreamError& e) {
      throw NoAnswer(e.what());
    }
  }
  return std::unique_ptr<Tunnel>(new Tunnel(*this, at, ask(at, line + "\n"), nullptr));
}

inline std::unique_ptr<Tunnel> Dialer::dial(std::string line) const {
  if (gateways.empty()) throw std::invalid_argument("no gateway to dial");
  for (bool again = true;; again = false) {
    std::unique_ptr<GatewayError> error;
    for (std::size_t at = 0; at < gateways.size(); at++) {
      try {
        return open(at, line);
      } catch (const GatewayError& e) {
        error.reset(new GatewayError(e));
        if (e.status != 401) continue;
        break;  // the next gateway would say the same
      }
    }
    line = again && newLine && error->status ? newLine(*error) : "";
    if (!line.empty()) continue;
    switch (error->status) {
      case 400: throw BadRequest();
      case 401: throw Unauthorized();
      case 410: throw Gone();
      case 502: throw BadGateway();
      case 504: throw GatewayTimeout();
      default: throw NoAnswer(error->what());
    }
  }
}

}  // namespace gateway

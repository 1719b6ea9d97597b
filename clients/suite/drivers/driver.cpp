// driver MODE GATEWAYS LINES MILLISECONDS TEXT; see ../suite_test.go.
#include <cstdlib>
#include <iostream>
#include <sstream>

#ifdef WITH_KCP
#include "gateway/kcp.hpp"
#endif
#include "gateway/tunnel.hpp"

using namespace gateway;

static Bytes bytes(const std::string& hex) {
  Bytes b;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) b += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return b;
}

static std::string hex(const Bytes& b) {
  std::string text;
  for (char c : b) {
    text += "0123456789abcdef"[std::uint8_t(c) >> 4];
    text += "0123456789abcdef"[c & 15];
  }
  return text;
}

static std::vector<std::string> split(const std::string& s, char by) {
  std::vector<std::string> parts;
  std::istringstream in(s);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

static std::string answer(const std::vector<std::string>& w) {
  if (w[0] == "key") {
    const Bytes own = crypto::x25519(bytes(w[1]), Bytes(1, 9) + Bytes(31, '\0'));
    return crypto::base64url(own) + " " + hex(sessionKey(bytes(w[1]), own, bytes(w[2])));
  }
  std::string line;
  if (w[0] == "open") line = openLine(bytes(w[1]), w[2]);
  if (w[0] == "resume") line = resumeLine(bytes(w[1]), w[2], std::stoull(w[3]), std::stoull(w[4]), std::stoull(w[5]));
  if (w[0] != "session") return line.substr(0, line.size() - 1);
  Session s(Bytes(32, 1));
  Bytes reads;
  for (std::size_t i = 2; i < w.size(); i++) {
    const std::string value = w[i].substr(std::min(w[i].size(), w[i].find(':') == std::string::npos ? w[i].size() : w[i].find(':') + 1));
    if (w[i][0] == 'r' && w[i][2] == 'c') {
      for (char c : bytes(value)) s.input(&c, 1);
      if (!s.key.empty()) s.key = bytes(w[1]);
    } else if (w[i][0] == 'w') {
      s.send(bytes(value).data(), value.size() / 2);
      s.output(0);
    } else if (w[i][0] == 'f') {
      s.finish();
      s.output(0);
    } else {
      s.reattach();
    }
    char buffer[4096];
    reads.append(buffer, s.take(buffer, sizeof buffer, 0));
  }
  line = s.reattach();
  return line.substr(0, line.size() - 1) + " " + hex(s.output(0)) + " " + hex(reads);
}

int main(int argc, char** argv) {
  const std::string mode = argv[1];
  if (mode == "vectors") {
    for (std::string request; std::getline(std::cin, request);) {
      try {
        std::cout << answer(split(request, ' ')) << std::endl;
      } catch (const Violation&) {
        std::cout << "refused" << std::endl;
      }
    }
    return 0;
  }
  if (argc < 6) return 2;
  const std::vector<std::string> lines = split(argv[3], ',');
  const std::string text = argv[5];
  Dialer d;
  d.gateways = split(argv[2], ',');
  d.plain = mode == "talk";
  d.timeout = Milliseconds(std::atoi(argv[4]));
  d.hold = Milliseconds(10000);
  const bool kcp = d.gateways[0].compare(0, 6, "kcp://") == 0;
#ifdef WITH_KCP
  if (kcp) d.connect = connectKCP;
#endif
  d.newLine = [&](const GatewayError&) { return lines.size() > 1 ? lines[1] : ""; };
  const bool again = mode == "again";
  int backs = 0;
  std::unique_ptr<Tunnel> t;
  const bool leave = mode == "leave", stuck = leave || mode == "told" || mode == "silent";
  if (stuck) {
    d.silence = d.patience = Milliseconds(500);
    d.timeout = Milliseconds(60000);  // dialling is not what is tested
  }
  long took = -1;  // closing
  d.onEvent = [&](Event e, const std::string&) {
    backs += e == Event::Back;
    if (again && e != Event::Ended && backs <= 20) t->reconnect();
    if (leave && e == Event::Reconnecting) {
      const auto began = std::chrono::steady_clock::now();
      t->close();
      took = long(std::chrono::duration_cast<Milliseconds>(std::chrono::steady_clock::now() - began).count());
    }
  };
  try {
    t = d.dial(lines[0]);
    if (stuck) d.timeout = Milliseconds(std::atoi(argv[4]));
    if (again) t->reconnect();
    Bytes got;
    char buffer[4096];
    if (again || stuck || mode == "bulk") {
      Bytes want;
      for (int i = 0; i < std::stoi(text); i++) want += char(i * 7 + i / 251);
      for (std::size_t at = 0; at < want.size(); at += 4096) {
        t->write(want.substr(at, 4096));
        while (!stuck && got.size() < std::min(want.size(), at + 4096)) {
          const long n = t->read(buffer, sizeof buffer);
          if (n <= 0) return 3;
          got.append(buffer, std::size_t(n));
        }
      }
      while (got.size() < want.size()) {
        const long n = t->read(buffer, sizeof buffer);
        if (n <= 0) return 3;
        got.append(buffer, std::size_t(n));
      }
      t->close();
      std::cout << (got == want ? "ok " + std::to_string(got.size()) + (t->resumes ? " resumed" : " not resumed") : "other bytes") << std::endl;
      return 0;
    }
    t->write(text);
    if (kcp && !t->resumable()) {  // KCP has no end
      while (got.size() < text.size() + 7) {
        const long n = t->read(buffer, sizeof buffer);
        if (n <= 0) return 3;
        got.append(buffer, std::size_t(n));
      }
      t->write("bye");  // which close sees off
    } else {
      t->closeWrite();
      for (long n; (n = t->read(buffer, sizeof buffer)) > 0;) got.append(buffer, std::size_t(n));
    }
    t->close();
    std::cout << "ok " << (t->resumable() ? "resumable " : "plain ") << got << std::endl;
  } catch (const GatewayError& e) {
    if (took >= 0) {
      std::cout << (took < 1000 ? "closed in time" : "closed after " + std::to_string(took) + " ms") << std::endl;
      return 0;
    }
    std::cout << "error " << e.status << " " << gateway::text(e.advice) << std::endl;
  }
}

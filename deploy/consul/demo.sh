#!/bin/sh
# Shows gateways and game servers finding each other in Consul, on 127.0.0.1:
#
#   sh deploy/consul/demo.sh ./gateway
#
# Needs consul, curl, openssl and python3, and the ports of a development agent.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
gateway=$(cd "$(dirname "${1:-./gateway}")" && pwd)/$(basename "${1:-./gateway}")
fail() { echo "demo.sh: $*" >&2; exit 1; }
for tool in consul curl openssl python3; do
	command -v $tool >/dev/null || fail "$tool is not installed"
done
[ -x "$gateway" ] || fail "$gateway is no program; make builds the gateway"
work=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; wait 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

say() { printf '\n# %s\n' "$*"; }

# until COMMAND succeeds; the demo fails if it does not, or once a program has ended
await() {
	for _ in $(seq 150); do
		if "$@" >/dev/null 2>&1; then return; fi
		for pid in $pids; do
			kill -0 "$pid" 2>/dev/null || break 2
		done
		sleep .1
	done
	cat ./*.log >&2
	fail "in vain: $*"
}

# ended PID: a program that is meant to
ended() {
	kill "$1"
	wait "$1" || true
	pids=$(echo "$pids" | tr ' ' '\n' | grep -vx "$1") || true
}

# register NAME ID PORT WEIGHT
register() {
	curl -fsS -X PUT --data "{
		\"Name\": \"$1\", \"ID\": \"$2\", \"Address\": \"127.0.0.1\", \"Port\": $3,
		\"Weights\": {\"Passing\": $4, \"Warning\": 1},
		\"Check\": {\"TCP\": \"127.0.0.1:$3\", \"Interval\": \"1s\", \"Timeout\": \"1s\"}
	}" http://127.0.0.1:8500/v1/agent/service/register
}

# passing NAME COUNT: so many instances are healthy
passing() {
	test "$(curl -fsS "http://127.0.0.1:8500/v1/health/service/$1?passing" | grep -o '"Service": *{' | wc -l)" = "$2"
}

# play COUNT: so many clients, and how many came by which gateway to which server
play() {
	for _ in $(seq "$1"); do python3 "$here/client.py" "$line"; done | sort | uniq -c
}

# game NAME PORT: a game server, which says its name
game() {
	python3 -c '
import socketserver, sys
class Game(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write((sys.argv[1] + " says " + self.rfile.readline().decode()).encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[2])), Game).serve_forever()
' "$1" "$2" 2>"$1.log" &
	pids="$pids $!"
}

say "Consul, with the settings of dns.json"
consul agent -dev -log-level=warn -config-file="$here/dns.json" >consul.log 2>&1 &
consul=$!
pids="$pids $consul"
await sh -c 'curl -fsS http://127.0.0.1:8500/v1/status/leader | grep :'

say "Two game servers, which register themselves; the second is three times as strong"
game lobby-1 4001
first=$!
game lobby-2 4002
register lobby lobby-1 4001 1
register lobby lobby-2 4002 3
await passing lobby 2

say "Two gateways, which ask Consul where game servers are"
openssl rand -base64 24 >secret
for port in 8001 8002; do
	"$gateway" -secret-file=secret -addr=127.0.0.1:$port -resolver=127.0.0.1:8600 -pidfile= 2>gateway-$port.log &
	last=$!
	pids="$pids $last"
	register gateway gateway-$port $port 1
done
await passing gateway 2

say "The login server seals a name; no address stands anywhere"
line=$("$gateway" -secret-file=secret -seal=srv:_lobby._tcp.service.consul)
echo "$line"

say "Clients find gateways, and those find servers"
play 40

say "A game server dies. Nobody notices, not even before Consul does"
ended "$first"
play 10

say "A gateway ends. Clients take the other"
ended "$last"
play 10
await passing gateway 1

say "Consul dies too. What a gateway has found it keeps in use"
ended "$consul"
sleep 6 # longer than the time to live of dns.json
PYTHONPATH=$here python3 -c '
import client, sys
s = client.connect(("127.0.0.1", 8001), sys.argv[1])
s.sendall(b"hello\n")
print(s.makefile().read().strip())
' "$line"

#compdef gateway
# Completion of gateway for zsh.
_arguments \
	'*-secret=-[seals and opens addresses. The process list shows it, so prefer -secret-file, GATEWAY_SECRET, or systemd'\''s LoadCredential=secret\:FILE, which is read like -secret-file. Every source that is given counts, in this order; at least one is required, unless all listeners forward]:PASSPHRASE: ' \
	'*-secret-file=-[one secret a line, at most 100\: all open, the first seals; blank lines and lines that start with # are skipped]:FILE:_files' \
	'*-kdf=-[key derivations to try, in order; the first seals. md5\: OpenSSL before 1.1.0, CryptoJS. sha256\: OpenSSL since. pbkdf2\: openssl enc -pbkdf2; it costs milliseconds of CPU for each bad line, so it is tried only when named here]:LIST: ' \
	'*-token-keys=-[keys (a JWK Set, see -keygen) that open JOSE tokens, which expire, wherever a sealed line is taken. Read again when it changes]:FILE:_files' \
	'*-token-audience=-[whom a token'\''s aud must name; empty\: anybody]:NAME: ' \
	'*-legacy=-[0 refuses sealed lines\: tokens only, and no secret is needed]:0|1:(0 1)' \
	'*-addr=-[host\:port to listen on. \:port is every IPv4 and IPv6 address, 0.0.0.0\:port every IPv4 address; port 0 is a free one, which the log names]:ADDRESS: ' \
	'*-forward=-[host\:port to which every client of -addr goes\: a plain port forward, without handshake, status or secret. Like a sealed address it may be several with weights, A\:1*2,B\:1, srv\:NAME or ask\:NAME; http\://host\:port speaks HTTP]:TARGET: ' \
	'*-listen=-[one more address to listen on, for sealed lines or as a plain port forward. May be repeated (separated by spaces in GATEWAY_LISTEN). With -listen and neither -addr nor -forward, there is no -addr. Behind a semicolon each, it may have limits of its own, whose clients are counted apart\: max-conns, max-conns-per-ip, rate-per-ip, allow-clients, deny-clients]:ADDRESS=sealed|forward\:TARGET\[;LIMIT=VALUE...\]: ' \
	'*-reuse=-[1 sets SO_REUSEPORT, for several processes on one address]:0|1:(0 1)' \
	'*-mptcp=-[1 takes clients that speak MPTCP (RFC 8684), whose connection survives a change of networks; all others are served as ever (Linux). Not together with -tcp-user-timeout, and not for what -resume-peer is for]:0|1:(0 1)' \
	'*-trusted-proxies=-[peers that must send a PROXY protocol header (v1 or v2) first, whose client address is believed, separated by commas; empty\: nobody is believed]:CIDRS: ' \
	'*-tls-cert=-[certificate chain in PEM form\: clients may then speak TLS. Read again when it changes]:FILE:_files' \
	'*-tls-key=-[the certificate'\''s private key]:FILE:_files' \
	'*-max-conns=-[connections in all, KCP sessions included, at which accepting pauses until one ends; 0, and never more\: as many as the limit of descriptors is enough for]:COUNT: ' \
	'*-max-conns-per-ip=-[connections of one client address; 0\: any number]:COUNT: ' \
	'*-rate-per-ip=-[connections that one client address may open in a second (/s), minute (/m) or hour (/h), and how many at once, N where that is not said; empty\: any number]:N/s\[,BURST\]: ' \
	'*-allow-clients=-[networks of clients that are served, and no others, separated by commas; @FILE is a file with one on each line (# begins a comment), which is read again when it changes; may be repeated. It is about clients, and -allow-backends is about backends; empty\: everybody]:CIDRS: ' \
	'*-deny-clients=-[networks of clients that are not served, in the same form, whatever -allow-clients says]:CIDRS: ' \
	'*-ip-prefix6=-[of an IPv6 address that count as one client address; IPv4 addresses count whole]:BITS: ' \
	'*-ban=-[bad lines, tokens or handshakes of one client address in so long a time after which it is not served for so long\: 20/1m\:10m. Players may share an address; empty\: never]:N/TIME\:TIME: ' \
	'*-handshake-timeout=-[for the whole request, however it dribbles]:TIME: ' \
	'*-handshake-max=-[largest sealed line or token, in whatever form it comes; 2048 by default where -token-keys is set]:BYTES: ' \
	'*-max-pending=-[clients that have not said yet where they want to go, after which the oldest of them gives way to the newest; 0\: as many as an eighth of the memory that the process may use (GOMEMLIMIT, its control group) is enough for]:COUNT: ' \
	'*-health-path=-[of HTTP requests that ask for the gateway'\''s own health, wherever clients may speak HTTP\: 200, and 503 once clients should go elsewhere; logged at debug; empty\: none]:PATH: ' \
	'*-http-header-max=-[largest header of an HTTP request]:BYTES: ' \
	'*-http-host=-[the Host that a backend of HTTP is told\: the client'\''s, or its own address]:keep|backend:(keep backend)' \
	'*-http-strip-prefix=-[taken off the paths of HTTP requests that begin with it; empty\: none]:PATH: ' \
	'*-http-set=-[NAME\: VALUE of HTTP requests for the backend; response NAME\: VALUE of what it answers. It replaces what is there; no value removes it. May be repeated (one a line in GATEWAY_HTTP_SET)]:HEADER: ' \
	'*-ws-origins=-[hosts (game.example, *.example) whose web pages may open WebSockets, with https\:// or http\:// before them for that scheme alone, separated by commas]:PATTERNS: ' \
	'*-retry=-[to connect, in all; only a time-out is tried again]:ATTEMPTS: ' \
	'*-timeout=-[for each attempt, its name lookup included]:TIME: ' \
	'*-max-tunnels-per-backend=-[of one host\:port as it is sealed, dials included; then the next of several is taken, or the client gets 502; 0\: any number]:COUNT: ' \
	'*-balance=-[which of several backends a client gets, by HAProxy'\''s names\: the first in order that answers, each in turn by weight, any, the one with the fewest tunnels, or by the client'\''s address]:first|roundrobin|random|leastconn|source:(first roundrobin random leastconn source)' \
	'*-resolver=-[host\:port of the name server to ask, for srv\: and all names (Consul\: port 8600); empty\: the system'\''s]:ADDRESS: ' \
	'*-resolver-timeout=-[for one lookup by a name server, with all repetitions]:TIME: ' \
	'*-allow-backends=-[where backends may be, and nowhere else\: CIDR, CIDR\:PORT or CIDR\:FROM-TO, separated by commas; may be repeated. Link-local and metadata addresses (169.254.0.0/16, fe80\:\:/10 and the clouds'\'') need a rule within their range; empty\: everywhere else]:RULES: ' \
	'*-deny-backends=-[where backends may not be, in the same form, whatever -allow-backends says]:RULES: ' \
	'*-allow=-[the older name of -allow-backends\: it is not about clients]:RULES: ' \
	'*-deny=-[the older name of -deny-backends\: it is not about clients]:RULES: ' \
	'*-http-idle-timeout=-[for which an HTTP connection to a backend is kept between two requests, unless the backend'\''s Keep-Alive says less; below the 5 s after which Node.js closes. 0\: each request has its own]:TIME: ' \
	'*-send-proxy=-[tell backends the client'\''s address, by a PROXY protocol header before anything else; v2 carries a unique id too, which the log has]:off|v1|v2:(off v1 v2)' \
	'*-buffer=-[of the copy buffer, 64 at least. It has no effect on long runs of data on Linux, which are spliced inside the kernel; a read that fills it is what starts one]:BYTES: ' \
	'*-splice=-[0 copies everything through user space, on Linux too]:0|1:(0 1)' \
	'*-io-uring=-[1 relays the messages of many tunnels by two system calls of an io_uring, where Linux has one and no container'\''s filter refuses it; the log says which. 0 never asks for one]:0|1:(0 1)' \
	'*-loops=-[event loops, on Linux; 0 is one for each CPU the process may use, -1 serves with goroutines as other systems do]:COUNT: ' \
	'*-idle-timeout=-[after which a tunnel ends through which no byte has moved; 0\: never]:TIME: ' \
	'*-half-close-timeout=-[the same for a tunnel of which one side has finished]:TIME: ' \
	'*-keepalive=-[of silence after which TCP asks both ends, and a ping asks a WebSocket'\''s client, whether they are there; 0\: never]:TIME: ' \
	'*-tcp-user-timeout=-[after which a peer that acknowledges nothing, or takes nothing, is given up (TCP_USER_TIMEOUT, Linux); 0\: the kernel'\''s, about 15 minutes]:TIME: ' \
	'*-resume=-[1 lets clients that ask for it come back by another connection, from another address, and go on where they were]:0|1:(0 1)' \
	'*-resume-plain=-[1 takes clients that cannot exchange keys outside of TLS too, where whoever listens on the way can resume their tunnels]:0|1:(0 1)' \
	'*-resume-hold=-[for which a tunnel is held whose client is gone; then its backend is reset]:TIME: ' \
	'*-resume-buffer=-[that a tunnel may have unacknowledged in each direction\: the most that it costs in memory, twice, and the most that it moves in a round trip]:BYTES: ' \
	'*-resume-memory=-[of all such tunnels, after which the one whose client has been gone for the longest is given up; if there is none, new ones are refused]:BYTES: ' \
	'*-resume-max=-[tunnels held whose clients are gone, after which the oldest is given up]:COUNT: ' \
	'*-resume-key-file=-[secrets, one a line, that seal the tickets by which clients come back\: the first seals, all open. Without it the secrets of sealed lines do]:FILE:_files' \
	'*-resume-peer=-[ip\:port to listen on for other gateways, which pass on clients that come back there; it stands in tickets, so it is the address at which they reach this one. Keep it private; empty\: clients come back to the same gateway only]:ADDRESS: ' \
	'*-resume-peers=-[where the other gateways are, separated by commas\: only they are taken on -resume-peer, and only there a ticket may lead]:CIDRS: ' \
	'*-ask=-[http\://, https\:// or unix\:PATH of the service that a POST of JSON asks where ask\:NAME leads, which may be sealed, or stand in a token or -forward; empty\: none]:URL: ' \
	'*-ask-timeout=-[for one question]:TIME: ' \
	'*-ask-ca=-[certificates (PEM) that an https\:// service'\''s has to come from, and no others; empty\: the system'\''s]:FILE:_files' \
	'*-ask-token-file=-[holds the bearer token that the service is shown; empty\: none]:FILE:_files' \
	'*-ask-stale=-[for which the last answer for a name is used beyond its own time while the service gives none; 0\: not at all]:TIME: ' \
	'*-ask-tickets=-[1 takes ?TICKET in place of a sealed line, of which the service alone knows what it is worth. Of those that are worth nothing, a client address has 100 at once and 10 a second]:0|1:(0 1)' \
	'*-ask-headers=-[headers of HTTP requests that the service is told, separated by commas; empty\: none]:NAMES: ' \
	'*-kcp=-[host\:port to listen on for KCP clients, the same as -addr most of the time; empty\: off. Backends sealed as kcp\://host\:port are dialed in any case]:ADDRESS: ' \
	'*-kcp-mode=-[how early what may be lost is sent again, as in kcptun]:normal|fast|fast2|fast3:(normal fast fast2 fast3)' \
	'*-kcp-sndwnd=-[that a session may have in flight]:PACKETS: ' \
	'*-kcp-rcvwnd=-[that a session may have unread]:PACKETS: ' \
	'*-kcp-mtu=-[largest datagram, without the headers of IP and UDP]:BYTES: ' \
	'*-kcp-datashard=-[packets of a Reed-Solomon group, the same at both ends; 0\: no such correction]:COUNT: ' \
	'*-kcp-parityshard=-[packets added to a group, the same at both ends]:COUNT: ' \
	'*-kcp-crypt=-[AES-256 around each datagram, the same at both ends; it does not authenticate]:none|aes:(none aes)' \
	'*-kcp-key=-[of -kcp-crypt=aes, as in kcptun. The process list shows it, so prefer GATEWAY_KCP_KEY]:PASSPHRASE: ' \
	'*-kcp-idle-timeout=-[after which a session ends through which no byte has moved\: KCP has no FIN, so nothing else tells that a peer is gone]:TIME: ' \
	'*-kcp-max-sessions=-[of the listener, at which new ones are dropped; they count as connections for -max-conns too]:COUNT: ' \
	'*-config=-[settings, NAME=VALUE or GATEWAY_NAME=VALUE a line, which SIGHUP reads again, with all files that they name; blank lines and lines that start with # are skipped. A flag wins over a variable, and both over the file]:FILE:_files' \
	'*-pidfile=-[holds the process id while the gateway runs, with a line for each gateway that names the file; empty\: none]:FILE:_files' \
	'*-drain-delay=-[after SIGTERM or SIGINT in which clients are still served, and -health-path and /readyz say 503\: for balancers to notice. A second signal within a second of the first is the same one]:TIME: ' \
	'*-drain=-[that tunnels get to finish after SIGTERM or SIGINT; a second signal ends them at once]:TIME: ' \
	'*-upgrade-exec=-[program that SIGUSR2 starts in this one'\''s place, with the same flags, which takes over the listening sockets (Linux); empty\: this program'\''s path, and whatever is there by then]:FILE:_files' \
	'*-upgrade-timeout=-[after which a new program that does not serve yet is killed; the old one has gone on meanwhile]:TIME: ' \
	'*-handover=-[1 has live tunnels go on in a process that replaces this one\: those that event loops relay (Linux), WebSockets too. TLS, HTTP and KCP end in the old process]:0|1:(0 1)' \
	'*-hard-stop-after=-[that tunnels get to finish in a process that another has replaced; 0\: as long as they take]:TIME: ' \
	'*-log-format=-[of the log on standard error]:text|json:(text json)' \
	'*-log-file=-[that the log is appended to, and that SIGUSR1 opens again once it was moved away; empty\: standard error, for systemd'\''s journal with the level of each line]:FILE:_files' \
	'*-log-tunnels=-[open logs also when a tunnel begins, as -log-level=debug does anyway]:end|open:(end open)' \
	'*-log-refused-rate=-[refusals of one reason and one network of clients that get a line in a second; those beyond are counted in a line; 0\: every one gets its line]:COUNT: ' \
	'*-log-level=-[the least that is logged]:debug|info|warn|error:(debug info warn error)' \
	'*-pprof=-[host\:port of net/http/pprof; keep it private; empty\: off]:ADDRESS: ' \
	'*-admin=-[host\:port or unix\:PATH of metrics, health and live tunnels; keep it private. A Unix socket is for its owner alone, who may change things there; empty\: off]:ADDRESS: ' \
	'*-admin-token-file=-[holds the bearer token with which things may be changed where -admin is host\:port; empty\: nothing can be]:FILE:_files' \
	'*-seal=-[print the sealed line for host\:port, for several with commas between, for srv\:name or ask\:name; with -ttl, a token]:ADDRESS: ' \
	'*-ttl=-[how long the token of -seal is good, which -token-keys makes; 0\: a sealed line]:TIME: ' \
	'*-open=-[print the address in a sealed line or token; exit 1 if it does not open]:LINE: ' \
	'-keygen[print a fresh key set for -token-keys]' \
	'-check[validate the configuration, the files that it names, and for a moment the addresses to listen on; exit 0 or 2]' \
	'-status[print how the gateway at -admin is, as a table; exit 0, or 1 if it cannot be asked]' \
	'*-watch=-[after which -status prints again, until it is interrupted; 0\: it does not]:TIME: ' \
	'*-tunnels=-[print the live tunnels of the gateway at -admin\: all, or those of client=CIDR, backend=HOST\:PORT, listener=ADDRESS or id=ID, several of them with commas between; the names may be left out; exit 0 or 1]:FILTER: ' \
	'*-cut=-[cut the live tunnels of one id=, client= or backend= of the gateway at -admin; exit 1 if there are none, or it cannot be asked]:FILTER: ' \
	'*-probe=-[tell by exit code 0 or 1 and a line whether host\:port, where clients come, takes connections, or whether the gateway at admin\:host\:port or unix\:PATH, its -admin, is ready; within 3 s, whatever else is set]:ADDRESS: ' \
	'-version[print version, Go version and commit]'

# Completion of gateway for bash.
_gateway() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flag
	COMPREPLY=()
	if [[ $cur == "=" ]]; then
		flag=$prev cur=
	elif [[ $prev == "=" ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	elif [[ $cur == -*=* ]]; then
		flag=${cur%%=*} cur=${cur#*=}
	else
		COMPREPLY=($(compgen -W '-secret= -secret-file= -kdf= -token-keys= -token-audience= -legacy= -addr= -forward= -listen= -reuse= -mptcp= -trusted-proxies= -tls-cert= -tls-key= -max-conns= -max-conns-per-ip= -rate-per-ip= -allow-clients= -deny-clients= -ip-prefix6= -ban= -handshake-timeout= -handshake-max= -max-pending= -health-path= -http-header-max= -http-host= -http-strip-prefix= -http-set= -ws-origins= -retry= -timeout= -max-tunnels-per-backend= -balance= -resolver= -resolver-timeout= -allow-backends= -deny-backends= -allow= -deny= -http-idle-timeout= -send-proxy= -buffer= -splice= -io-uring= -loops= -idle-timeout= -half-close-timeout= -keepalive= -tcp-user-timeout= -resume= -resume-plain= -resume-hold= -resume-buffer= -resume-memory= -resume-max= -resume-key-file= -resume-peer= -resume-peers= -ask= -ask-timeout= -ask-ca= -ask-token-file= -ask-stale= -ask-tickets= -ask-headers= -kcp= -kcp-mode= -kcp-sndwnd= -kcp-rcvwnd= -kcp-mtu= -kcp-datashard= -kcp-parityshard= -kcp-crypt= -kcp-key= -kcp-idle-timeout= -kcp-max-sessions= -config= -pidfile= -drain-delay= -drain= -upgrade-exec= -upgrade-timeout= -handover= -hard-stop-after= -log-format= -log-file= -log-tunnels= -log-refused-rate= -log-level= -pprof= -admin= -admin-token-file= -seal= -ttl= -open= -keygen -check -status -watch= -tunnels= -cut= -probe= -version' -- "$cur"))
		[[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
		return 0
	fi
	case $flag in
	-legacy) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-reuse) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-mptcp) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-http-host) COMPREPLY=($(compgen -W 'keep backend' -- "$cur")) ;;
	-balance) COMPREPLY=($(compgen -W 'first roundrobin random leastconn source' -- "$cur")) ;;
	-send-proxy) COMPREPLY=($(compgen -W 'off v1 v2' -- "$cur")) ;;
	-splice) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-io-uring) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-resume) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-resume-plain) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-ask-tickets) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-kcp-mode) COMPREPLY=($(compgen -W 'normal fast fast2 fast3' -- "$cur")) ;;
	-kcp-crypt) COMPREPLY=($(compgen -W 'none aes' -- "$cur")) ;;
	-handover) COMPREPLY=($(compgen -W '0 1' -- "$cur")) ;;
	-log-format) COMPREPLY=($(compgen -W 'text json' -- "$cur")) ;;
	-log-tunnels) COMPREPLY=($(compgen -W 'end open' -- "$cur")) ;;
	-log-level) COMPREPLY=($(compgen -W 'debug info warn error' -- "$cur")) ;;
	-secret-file|-token-keys|-tls-cert|-tls-key|-resume-key-file|-ask-ca|-ask-token-file|-config|-pidfile|-upgrade-exec|-log-file|-admin-token-file)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
	esac
}
complete -F _gateway gateway

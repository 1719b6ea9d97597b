package flagvalue

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"strings"
)

// What Parsed, List and Sum read their words with.

// URLPath reads the path of a URL, or nothing.
func URLPath(s string) (string, error) {
	if s != "" && (s[0] != '/' || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("?#%", r) })) {
		return "", errors.New("want a path that begins with /, of plain ASCII characters")
	}
	return s, nil
}

// Network reads a network, or an address, which is one.
func Network(word string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(word)
	if addr, aerr := netip.ParseAddr(word); aerr == nil && addr.Zone() == "" {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q: want addresses or networks such as 10.0.0.0/8 and fd00::/8, without bits beyond the prefix", word)
	}
	return p, nil
}

// Origin reads a pattern as path.Match has them.
func Origin(word string) (string, error) {
	host := word
	if scheme, rest, ok := strings.Cut(word, "://"); ok {
		if host = rest; scheme != "http" && scheme != "https" {
			host = ""
		}
	}
	_, err := path.Match(word, "")
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("%q: want hosts, with http:// or https:// before them or without, and no path; * stands for anything", word)
	}
	return word, nil
}

// Reachable reads an address at which others reach this process, or nothing. It is
// written as netip.AddrPort writes it.
func Reachable(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().Zone() != "" || a.String() != s {
		return "", errors.New("want the ip:port at which other gateways reach this one, with a port from 1 to 65535")
	}
	return s, nil
}

// Level is a level of package slog, by its name.
func Level(p *slog.Level) flag.Value {
	return Parsed(p, parseLevel, func(l slog.Level) string { return strings.ToLower(l.String()) })
}

func parseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, l.String()) {
			return l, nil
		}
	}
	return 0, errors.New("want debug, info, warn or error")
}

#!/bin/sh
# dpkg says "configure VERSION-BEFORE", rpm the number of packages that are there now.
set -e
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers gateway.conf
elif ! getent passwd gateway >/dev/null; then
	useradd --system --user-group --home-dir / --shell /usr/sbin/nologin gateway
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# A service that runs starts the new program without a break. It is not started where it
# does not run: it has no secret yet.
case "$1 $2" in
"configure "?* | "2 "*)
	if systemctl is-active --quiet gateway.service; then
		systemctl kill --kill-whom=main -s USR2 gateway.service || systemctl restart gateway.service
	fi ;;
esac

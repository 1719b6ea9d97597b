#!/bin/sh
# Not at an upgrade: dpkg says "upgrade" there, and rpm 1.
set -e
case $1 in
remove | 0)
	[ ! -d /run/systemd/system ] || systemctl disable --now gateway.service || true ;;
esac

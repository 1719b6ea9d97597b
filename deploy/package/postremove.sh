#!/bin/sh
# What an operator wrote below /etc/gateway stays, the secret first of all.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload || true

#!/bin/sh
# Prints the licences of what is linked in for an operating system, and for $GOARCH:
# deploy/licences.sh OS
set -eu
cd "$(dirname "$0")/.."
echo "== Go $(go env GOVERSION)"
cat "$(go env GOROOT)/LICENSE"
echo
GOOS=$1 CGO_ENABLED=0 go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' . |
	LC_ALL=C sort -u | while read -r module v dir; do
	echo "== $module $v"
	cat "$dir"/LICENSE* # or there is none, and no archive
	echo
done

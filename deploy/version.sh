#!/bin/sh
# Prints how packages call a version of git describe: deploy/version.sh VERSION
set -eu
[ $# = 1 ] || { echo "usage: $0 VERSION" >&2; exit 2; }
# v1.2.3-4-gabc is 1.2.3+4.gabc, which is newer than 1.2.3, and v1.2.3-rc.1 is 1.2.3~rc.1,
# which is older. What is no version of a tag is older than all of those.
v=$(echo "$1" | sed -E -e 's/^v([0-9])/\1/' -e 's/-([0-9]+-g[0-9a-f]+(-dirty)?|dirty)$/+\1/' \
	-e 's/^([^+-]*)-/\1~/' -e 's/-/./g')
case $v in [0-9]*.[0-9]*) ;; *) v=0~$v ;; esac
echo "$v"

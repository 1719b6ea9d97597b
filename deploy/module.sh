#!/bin/sh
# Names the module after the place where it is published, so that go install PATH@VERSION
# works there: deploy/module.sh PATH, in a clean tree. It takes GNU sed.
set -eu
[ $# = 1 ] || { echo "usage: $0 PATH" >&2; exit 2; }
case $1 in
*.*/*) ;;
*) echo "$0: $1 is no HOST/PATH, as example.com/gateway is" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
old=$(sed -n 's/^module //p' go.mod)
find . \( -name .git -o -name bin \) -prune -o \( -name '*.go' -o -name '*.md' \) -print0 |
	xargs -0 sed -i -E "s#\"$old/(internal|clients)/#\"$1/\\1/#g"
find . \( -name .git -o -name bin \) -prune -o -name go.mod -print0 |
	xargs -0 sed -i "s|^module $old|module $1|"
# go install takes no module that replaces others. Here a workspace stands in for what
# the tests use of clients/go.
sed -i '/^\/\/ The client of our own/,$d' go.mod
cat >go.work <<END
go $(sed -n 's/^go //p' go.mod)

use (
$(find . \( -name .git -o -name bin \) -prune -o -name go.mod -print | sed 's|/go.mod$||; s|^|	|' | sort)
)
END
go list ./... >/dev/null
echo "the module is $1: commit this, and tag it"

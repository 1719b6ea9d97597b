#!/bin/sh
# Makes a deb and an rpm for each architecture in a folder, the same bytes whoever makes
# them: deploy/packages.sh FOLDER VERSION COMMIT ARCH... (make packages).
set -eu
[ $# -ge 4 ] || { echo "usage: $0 FOLDER VERSION COMMIT ARCH..." >&2; exit 2; }
cd "$(dirname "$0")/.."
# The newest whose modules all can be had from a module proxy.
nfpm=${NFPM:-github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4}
out=$1 version=$2 commit=$3
shift 3
time=$(git log -1 --format=%ct "$commit" 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH="$time"
PACKAGE_VERSION=$(sh deploy/version.sh "$version")
MAINTAINER=${MAINTAINER:-gateway <root@localhost>}
mkdir -p "$out"
out=$(cd "$out" && pwd)
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
export PACKAGE_VERSION MAINTAINER STAGE ARCH ZSH
gzip -9nc deploy/package/gateway.1 >"$STAGE/gateway.1.gz"
cp deploy/gateway.logrotate deploy/package/gateway.* "$STAGE"
for unit in gateway.service gateway@.service; do
	# A variable, which gateway.env wins over, in place of the flag, which wins over it.
	sed -e 's|/usr/local/bin/gateway|/usr/lib/gateway/gateway|g' -e 's|/usr/local/bin|/usr/lib/gateway|g' \
		-e 's|^EnvironmentFile=|Environment=GATEWAY_ADDR=:8000\n&|' \
		-e 's|^\(ExecStart=.*\) -addr=:8000$|\1|' \
		-e 's|^DynamicUser=yes|DynamicUser=no\nLogsDirectory=gateway\nLogsDirectoryMode=0750|' \
		"deploy/$unit" >"$STAGE/$unit"
done
for ARCH in "$@"; do
	GOOS=linux GOARCH=$ARCH CGO_ENABLED=0 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit" -o "$STAGE/gateway" .
	cat LICENSE >"$STAGE/LICENSES.txt"
	GOARCH=$ARCH sh deploy/licences.sh linux >>"$STAGE/LICENSES.txt"
	chmod 644 "$STAGE"/*
	touch -d "@$time" "$STAGE"/*
	for kind in deb rpm; do
		ZSH=/usr/share/zsh/vendor-completions
		[ $kind = deb ] || ZSH=/usr/share/zsh/site-functions
		case $nfpm in
		*@*) go run "$nfpm" package -f deploy/package/nfpm.yaml -p $kind -t "$out/" ;;
		*) "$nfpm" package -f deploy/package/nfpm.yaml -p $kind -t "$out/" ;;
		esac
	done
done

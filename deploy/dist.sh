#!/bin/sh
# Fills a folder with archives for each platform, what is linked in (CycloneDX), and
# SHA256SUMS, the same bytes
# whoever makes them with the same Go: deploy/dist.sh FOLDER VERSION COMMIT PLATFORM...
# (make dist). It takes GNU tar.
set -eu
[ $# -ge 4 ] || { echo "usage: $0 FOLDER VERSION COMMIT PLATFORM..." >&2; exit 2; }
cd "$(dirname "$0")/.."
out=$1 version=$2 commit=$3
shift 3
# Times in archives are those of the commit.
time=$(git log -1 --format=%ct "$commit" 2>/dev/null || echo 0)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/archive" ./deploy/archive
for platform in "$@"; do
	os=${platform%/*} arch=${platform#*/}
	name=gateway-$version-$os-$arch
	binary=gateway
	[ "$os" != windows ] || binary=gateway.exe
	mkdir -p "$work/$name"
	GOOS=$os GOARCH=$arch CGO_ENABLED=0 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit" -o "$work/$name/$binary" .
	cp LICENSE README.md README.zh-CN.md CHANGELOG.md deploy/gateway.service "$work/$name"
	# The licences of what is linked in.
	GOARCH=$arch sh deploy/licences.sh "$os" >"$work/$name/LICENSES.txt"
	chmod -R u=rwX,go=rX "$work/$name"
	tar -C "$work" --sort=name --mtime="@$time" --owner=0 --group=0 --numeric-owner --format=ustar -cf - "$name" |
		gzip -9n >"$out/$name.tar.gz"
	"$work/archive" zip "$work/$name" "$time" >"$out/$name.zip"
	"$work/archive" sbom "$work/$name/$binary" "$version" "$time" >"$out/$name.cdx.json"
	rm -r "${work:?}/$name"
done
cd "$out"
LC_ALL=C sha256sum gateway-"$version"-*.tar.gz gateway-"$version"-*.zip gateway-"$version"-*.cdx.json >SHA256SUMS

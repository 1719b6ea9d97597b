#!/bin/sh
# Installs, starts, upgrades and removes a package over a copy of this system:
# deploy/package/test.sh deb|rpm OLD NEW, in a mount namespace of its own. What it changes
# is in memory and goes with the namespace.
set -eux
kind=$1 old=$2 new=$3
ip link set lo up
layer=$(mktemp -d)
mount -t tmpfs none "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root"
mount -t overlay -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" none "$layer/root"
mount -t proc none "$layer/root/proc"
mount --bind /dev "$layer/root/dev"
mount -t tmpfs none "$layer/root/run"
mkdir "$layer/root/new"
cp "$old" "$layer/root/new/old.$kind"
cp "$new" "$layer/root/new/new.$kind"
cat >"$layer/root/new/run.sh" <<'END'
set -eux
fail() { echo "$*"; exit 1; }
case $1 in
deb)
	install() { dpkg -i "$1"; }
	remove() { dpkg -r gateway; } ;;
rpm)
	rpmdb --initdb
	install() { rpm -U --nodeps --force-debian "$1" || rpm -U --nodeps "$1"; }
	remove() { rpm -e --nodeps gateway; } ;;
esac
install /new/old.$1
# By the package's name, wherever else there is a gateway.
/usr/bin/gateway -version | grep -F v1.2.3
getent passwd gateway
for f in /etc/gateway/gateway.env /etc/logrotate.d/gateway /usr/share/man/man1/gateway.1.gz \
	/usr/share/bash-completion/completions/gateway /usr/lib/sysusers.d/gateway.conf; do
	[ -s $f ] || fail "there is no $f"
done
! grep -v '^#' /etc/gateway/gateway.env | grep . || fail "a setting is not in a comment"
systemd-analyze verify --man=no /usr/lib/systemd/system/gateway.service
# As the unit starts it, which has no systemd here.
start=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/gateway.service)
export $(sed -n 's/^Environment=//p' /usr/lib/systemd/system/gateway.service)
[ "$GATEWAY_ADDR" = :8000 ] || fail "the unit has no address"
echo secret of a test >/etc/gateway/secret
chown gateway /etc/gateway/secret
echo GATEWAY_SECRET_FILE=/etc/gateway/secret >>/etc/gateway/gateway.env
export $(grep -v '^#' /etc/gateway/gateway.env | xargs)
mkdir -p /run/gateway /var/log/gateway
chown gateway /run/gateway /var/log/gateway
cd /run/gateway
export GATEWAY_LOG_FILE=/var/log/gateway/gateway.log GATEWAY_DRAIN=1
setpriv --reuid=gateway --regid=gateway --clear-groups $start &
pid=$!
up() { n=0; until grep -q "$1" /var/log/gateway/gateway.log; do n=$((n+1)); [ $n -lt 600 ] || fail "no $1"; sleep 0.1; done; }
up 8000
install /new/new.$1
/usr/bin/gateway -version | grep -F v1.3.0
grep -q '^GATEWAY_SECRET_FILE' /etc/gateway/gateway.env || fail "the upgrade took the settings"
kill -USR2 $pid
n=0
until [ "$(cat gateway.pid)" != $pid ] && [ -n "$(cat gateway.pid)" ] && ! kill -0 $pid 2>/dev/null; do
	n=$((n+1)); [ $n -lt 600 ] || fail "the new program does not take over"; sleep 0.1
done
now=$(cat gateway.pid)
[ "$(readlink /proc/$now/exe)" = /usr/lib/gateway/gateway ] || fail "another program runs"
kill $now
n=0
while kill -0 $now 2>/dev/null; do n=$((n+1)); [ $n -lt 600 ] || fail "it does not end"; sleep 0.1; done
remove
[ ! -e /usr/bin/gateway ] && [ ! -e /usr/lib/gateway/gateway ] && [ ! -e /usr/lib/systemd/system/gateway.service ] ||
	fail "the program is left"
[ -s /etc/gateway/secret ] || fail "the secret is gone"
ls /etc/gateway
[ -e /etc/gateway/gateway.env ] || [ -e /etc/gateway/gateway.env.rpmsave ] || fail "the settings are gone"
END
chroot "$layer/root" /bin/sh /new/run.sh "$kind"
umount --recursive --lazy "$layer"
rmdir "$layer"
echo "the packages do"

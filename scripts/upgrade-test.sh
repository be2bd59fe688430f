#!/bin/bash
# Upgrades a cluster from Postgres 17 to 18 as operators of Debian do (pg_upgradecluster), with the
# packages of pg_tide for both that `make deb` made: in a bare Debian that debootstrap makes under
# target/. Once with a history that is still kept, which is to be refused before anything has moved, and
# once as docs/operation.md says. Mounts and processes are the folder's own and end with it.
# Before that, a cluster without pg_tide: where a release in the making has an older 18 than goes with its
# 17, that cannot be upgraded either.
#
# usage: upgrade-test.sh
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/debian.sh
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=CARGO_TARGET_DIR,DEB_REVISION,PATH "$0"
fi
from=17
to=18
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
release=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)
root=$PWD/target/chroot-upgrade

fail() {
    [ ! -d "$root/var/log/postgresql" ] || tail -n 20 "$root"/var/log/postgresql/*.log >&2
    echo "test-upgrade: $*" >&2
    exit 1
}

step() {
    echo "== $*"
}

deb() {
    echo "postgresql-$1-pg-tide_$release-${DEB_REVISION:-1}_$(dpkg --print-architecture).deb"
}

if [ "${TIDE_UPGRADE_TEST_INSIDE:-}" != 1 ]; then
    for version in $from $to; do
        [ -e "$target/deb/$(deb $version)" ] || fail "no $target/deb/$(deb $version): make deb PG=$version"
    done
    copy_bare_debian "$(suite_of $to)" "$PWD/target/chroot-bare-$to" "$root"
    cp "$target/deb/$(deb $from)" "$target/deb/$(deb $to)" "$root/root/"
    TIDE_UPGRADE_TEST_INSIDE=1 unshare --mount --pid --fork --kill-child --propagation private "$0"
    rm -rf --one-file-system "$root"
    exit
fi

mount_system "$root"

upgrade() {
    inside pg_upgradecluster -m upgrade -v $to $from main
}

# Called by name.
# shellcheck disable=SC2317,SC2329
nothing_is_kept() {
    [ "$(psql -c 'select history_events from tide.status()')" = 0 ]
}

# Called by name.
# shellcheck disable=SC2317,SC2329
has_published_all() {
    [ "$(psql -c "select count(*) from tide.recent() where record ->> 'item' = '$item'")" = 1 ]
}

# A row becomes an event.
row_arrives() {
    item=$1
    psql -c "insert into orders (item) values ('$item')"
    wait_for "the row was not decoded: $item" has_published_all
}

step "Postgres $from and $to with pg_tide in one Debian"
echo "deb $(mirror) $(suite_of $from) main" >"$root/etc/apt/sources.list.d/from.list"
apt update
apt install "/root/$(deb $from)" "/root/$(deb $to)"
# Which clusters the packages make depends on their order.
for version in $from $to; do
    [ ! -d "$root/etc/postgresql/$version/main" ] || inside pg_dropcluster --stop $version main
done
inside pg_createcluster $from bare
inside pg_ctlcluster $from bare start
bare=$(inside pg_lsclusters --no-header | awk '$2 == "bare" { print $3 }')
inside runuser -u postgres -- psql -Xq -p "$bare" -d postgres -c 'create table t (id int primary key)'
if ! inside pg_upgradecluster -m upgrade -v $to $from bare >"$root/root/bare" 2>&1; then
    tail -n 5 "$root/root/bare" >&2
    fail "Debian's own Postgres $from cannot be upgraded to its $to, without pg_tide: try again another day"
fi
inside pg_dropcluster --stop $to bare
inside pg_dropcluster $from bare
inside pg_createcluster $from main
inside pg_lsclusters

step "create extension"
settings=$root/etc/postgresql/$from/main/postgresql.conf
configure $from "$(free_port)" >>"$settings"
echo "tide.history_retention = 1h" >>"$settings"
inside pg_ctlcluster $from main restart
publish_orders
row_arrives 'a boat'

step "refused while something is kept"
! upgrade >"$root/root/refused" 2>&1 || fail "it was upgraded with a history that would be lost"
grep -i 'logical replication slots' "$root/root/refused" || { cat "$root/root/refused" >&2; fail "it was not said why"; }
inside pg_lsclusters
[ "$(inside pg_lsclusters --no-header | awk '{ print $1 }')" = $from ] || fail "something has moved"
inside pg_ctlcluster $from main start || true
wait_for "Postgres $from is not as it was" nothing_to_mend
row_arrives 'a ship'

step "upgraded once nothing is kept"
sed -i '/history_retention/d' "$settings"
echo "tide.history_retention = 1s" >>"$settings"
psql -c 'select pg_reload_conf()' >/dev/null
wait_for "something is kept" nothing_is_kept
slot=$(psql -c 'select slot from tide.status()')
upgrade
inside pg_lsclusters

[ "$(psql -c 'show server_version_num')" -ge ${to}0000 ] || fail "it is not Postgres $to"
wait_for "tide.check() has something to mend" nothing_to_mend
[ "$(psql -c 'select slot from tide.status()')" = "$slot" ] || fail "the slot is another"
sed -i '/history_retention/d' "$root/etc/postgresql/$to/main/postgresql.conf"
psql -c 'select pg_reload_conf()' >/dev/null
row_arrives 'a raft'
[ "$(psql -c 'select count(*) from orders')" = 3 ] || fail "rows are gone"

echo "Upgraded from Postgres $from to $to, with the slot."

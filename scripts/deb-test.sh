#!/bin/bash
# Tests the package that `make deb` made: installs it by apt in a bare Debian, which debootstrap makes
# under target/, has an unmodified client get a row, upgrades, and removes it without a trace. Mounts
# and processes are the folder's own and end with it.
#
# usage: deb-test.sh      (PG=15, 17 or 18: which package)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/debian.sh
suite=$(suite_of "$PG")
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=PG,CARGO_TARGET_DIR,DEB_REVISION,PATH "$0"
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
package=postgresql-$PG-pg-tide
release=$(sed -n "s/^default_version = '\(.*\)'/\1/p" pg_tide.control)
deb=${package}_$release-${DEB_REVISION:-1}_$(dpkg --print-architecture).deb
bare=$PWD/target/chroot-bare-$PG
root=$PWD/target/chroot-deb-$PG
libdir=/usr/lib/postgresql/$PG/lib

fail() {
    [ ! -d "$root/var/log/postgresql" ] || tail -n 20 "$root"/var/log/postgresql/*.log >&2
    echo "test-deb: $*" >&2
    exit 1
}

step() {
    echo "== $*"
}

if [ "${TIDE_DEB_TEST_INSIDE:-}" != 1 ]; then
    [ -e "$target/deb/$deb" ] || fail "no $target/deb/$deb: make deb"
    copy_bare_debian "$suite" "$bare" "$root"
    cp "$target/deb/$deb" "$root/root/"
    TIDE_DEB_TEST_INSIDE=1 unshare --mount --pid --fork --kill-child --propagation private "$0"
    rm -rf --one-file-system "$root"
    exit
fi

mount_system "$root"

# Waits until the client says this.
hear() {
    local line
    while IFS= read -r -t 60 line <&3; do
        echo "   client: $line"
        [ "$line" != "$1" ] || return 0
    done
    fail "the client did not say: $1"
}

# A client subscribes, the row is inserted, the client gets it.
client_gets() {
    local item=$1 token client
    token=$(psql -c "select tide.token('authenticated')")
    exec 3< <(
        cd pgrx-tests/node
        exec node --input-type=module - "ws://localhost:$port/realtime/v1" "$token" <<'JS'
import { RealtimeClient } from '@supabase/realtime-js'
import WebSocket from 'ws'
const [url, apikey] = process.argv.slice(2)
const client = new RealtimeClient(url, { params: { apikey }, transport: WebSocket })
client.channel('demo')
  .on('postgres_changes', { event: 'INSERT', schema: 'public', table: 'orders' }, (change) => {
    console.log(`got ${change.new.item}`)
    process.exit()
  })
  .subscribe((status) => console.log(status))
JS
    )
    client=$!
    hear SUBSCRIBED
    psql -c "insert into orders (item) values ('$item')"
    hear "got $item"
    wait "$client"
    exec 3<&-
}

# upgrade_to <version>: the same package under another version, installed over this one.
upgrade_to() {
    local folder=$root/root/upgrade
    rm -rf "$folder"
    dpkg-deb -R "$root/root/$deb" "$folder"
    mv "$folder$libdir/tide-server-$release" "$folder$libdir/tide-server-$1"
    (
        cd "$folder/usr/share/postgresql/$PG/extension"
        mv "pg_tide--$release.sql" "pg_tide--$1.sql"
    )
    sed -i "s/${release//./\\.}/$1/" "$folder"/DEBIAN/*
    dpkg-deb --build --root-owner-group "$folder" "$root/root/upgrade.deb" >/dev/null
    apt install /root/upgrade.deb
}

step "install $deb in a bare $suite"
apt update
apt install "/root/$deb"
inside dpkg -L "$package" >"$root/root/files"
inside pg_lsclusters

step "create extension"
port=$(free_port)
settings=$root/etc/postgresql/$PG/main/conf.d/pg_tide.conf
configure "$PG" "$port" >"$settings"
inside pg_ctlcluster "$PG" main restart
publish_orders
psql -c "select 'Postgres ' || current_setting('server_version') || ', pg_tide ' || extversion
    from pg_extension where extname = 'pg_tide'"

step "a client gets a row"
client_gets 'a boat'

step "upgrade: the Postgres that runs keeps its server until the next one"
upgrade_to "$release.1"
server=$(psql -c 'select (tide.status()).server_pid')
kill -KILL "$server"
client_gets 'a ship'
server=$(psql -c 'select (tide.status()).server_pid')
program=$(inside readlink "/proc/$server/exe")
[ "$program" = "$libdir/tide-server-$release" ] || fail "$program runs"
upgrade_to "$release.2"
kept=$(cd "$root$libdir" && echo tide-server-*)
[ "$kept" = "tide-server-$release.1 tide-server-$release.2" ] || fail "kept: $kept"

step "remove"
psql -c 'drop extension pg_tide' -c 'drop role tide_authenticator'
rm "$settings"
inside pg_ctlcluster "$PG" main restart
apt purge "$package"
# Folders may be others' as well.
while IFS= read -r file; do
    [ ! -e "$root$file" ] || [ -d "$root$file" ] || fail "$file is still there"
done <"$root/root/files"
[ ! -e "$root/usr/share/doc/$package" ] || fail "its documentation is still there"
left=$(find "$root"/{usr,etc,var} -xdev -iname '*tide*' -not -path "$root/var/lib/postgresql/*")
[ -z "$left" ] || fail "still there: $left"
! inside dpkg -s "$package" >/dev/null 2>&1 || fail "dpkg still knows it"
[ "$(psql -c 'select count(*) from orders')" = 2 ] || fail "rows are gone"
echo "Nothing of $package is left, and Postgres runs."

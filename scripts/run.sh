#!/bin/bash
# Starts a private Postgres with the extension, a demo table and the page, and stays in front
# until Ctrl-C. The cluster is kept in target/run, so that the next start takes a moment only.
set -euo pipefail

# Not from the project's own folder, which the owner of the cluster may not be able to enter.
cd "$(dirname "$0")/.."
project=$PWD
cd /
bin=$("$PG_CONFIG" --bindir)
database=demo

# Postgres does not run as root: then the user that its package made runs it.
owner=$(id -un)
[ "$(id -u)" != 0 ] || owner=postgres
as_owner() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$owner" --regid "$owner" --init-groups -- "$@"
    else
        "$@"
    fi
}

fail() {
    echo "make run: $*" >&2
    exit 1
}

# The cluster's folder: target/run, or a folder in /tmp behind a link of that name, where the
# owner cannot get at this one or its name is too long for a socket.
choose_folder() {
    local wanted=$project/target/run
    if [ -L "$wanted" ] && [ ! -d "$wanted" ]; then rm "$wanted"; fi
    if [ ! -e "$wanted" ]; then
        mkdir -p "$project/target"
        if [ ${#wanted} -lt 80 ] && as_owner test -x "$project/target" 2>/dev/null; then
            mkdir "$wanted"
        else
            ln -s "$(mktemp -d /tmp/pg_tide.XXXXXX)" "$wanted"
        fi
        chmod 700 "$(readlink -f "$wanted")"
        [ "$(id -u)" != 0 ] || chown "$owner:" "$(readlink -f "$wanted")"
    fi
    readlink -f "$wanted"
}

create_cluster() {
    echo "Creating a cluster in $folder ..."
    rm -rf "$data"
    as_owner "$bin/initdb" --pgdata "$data" --username postgres --auth trust --encoding UTF8 \
        --locale C.UTF-8 --no-instructions >"$folder/initdb.log" 2>&1 ||
        { cat "$folder/initdb.log" >&2; fail "initdb failed"; }
    # Local connections only, through a socket in a folder that only the owner and root can enter.
    as_owner tee -a "$data/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$folder'
shared_preload_libraries = 'pg_tide'
wal_level = logical
max_worker_processes = 32
CONF
    # Only newer minor versions know the list, and the others would not start with it.
    if as_owner "$bin/postgres" -D "$data" -C output_plugin_libraries >/dev/null 2>&1; then
        echo "output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'" |
            as_owner tee -a "$data/postgresql.conf" >/dev/null
    fi
}

# The first port from 4000 on that nobody listens on.
free_port() {
    local port
    for port in $(seq 4000 4099); do
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "ports 4000 to 4099 are all taken"
}

psql() {
    as_owner "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$folder" -U postgres "$@"
}

# Waits until a command succeeds, for as long as the server lives.
wait_for() {
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || { tail -n 20 "$folder/log" >&2; fail "Postgres has stopped"; }
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || { tail -n 20 "$folder/log" >&2; fail "$what did not come up"; }
        sleep 0.1
    done
}

# Called by name, as the next one.
# shellcheck disable=SC2329
listening() {
    (exec 3<>"/dev/tcp/127.0.0.1/$port")
}

# shellcheck disable=SC2329
stop() {
    trap '' INT TERM HUP
    echo
    echo "Stopping ..."
    kill -INT "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    exit 0
}

create_demo() {
    psql -d postgres -c "create database $database"
    psql -d "$database" <<'SQL'
create extension pg_tide;

create role anon nologin;
create role authenticated nologin;
grant anon, authenticated to tide_authenticator;

create table orders (
    id bigint generated always as identity primary key,
    item text not null,
    amount int not null default 1,
    state text not null default 'open',
    created_at timestamptz not null default now()
);
grant select on orders to authenticated;
\o /dev/null
select tide.publish('orders');
SQL
}

folder=$(choose_folder)
data=$folder/data
if [ -s "$data/postmaster.pid" ] && kill -0 "$(head -n 1 "$data/postmaster.pid")" 2>/dev/null; then
    fail "already running (process $(head -n 1 "$data/postmaster.pid")); stop it there with Ctrl-C, or: kill -INT $(head -n 1 "$data/postmaster.pid")"
fi
[ -s "$data/ready" ] && [ "$(cat "$data/PG_VERSION")" = "$PG" ] || create_cluster
port=$(free_port)

if [ "$(id -u)" = 0 ]; then
    setpriv --reuid "$owner" --regid "$owner" --init-groups -- \
        "$bin/postgres" -D "$data" -c "tide.port=$port" >>"$folder/log" 2>&1 &
else
    "$bin/postgres" -D "$data" -c "tide.port=$port" >>"$folder/log" 2>&1 &
fi
server=$!
trap stop INT TERM HUP
wait_for "Postgres" "$bin/pg_isready" -q -h "$folder"
if [ ! -s "$data/ready" ]; then
    create_demo
    echo yes | as_owner tee "$data/ready" >/dev/null
fi
wait_for "the listener on port $port" listening
token=$(psql -d "$database" -At -c "select tide.token('authenticated', '{}', interval '1 day')")

cat <<TEXT

pg_tide is running.

  psql     $bin/psql -h $folder -U postgres $database
  page     http://localhost:$port/#token=$token
  token    $token   (role authenticated, for a day)
  log      $folder/log

Try it: open the page, then in psql

  insert into orders (item) values ('a boat');

In an application, such as app.mjs (npm install @supabase/realtime-js ws):

  import { RealtimeClient } from '@supabase/realtime-js'
  import WebSocket from 'ws'
  const client = new RealtimeClient('ws://localhost:$port/realtime/v1', {
    params: { apikey: '<the token above>' },
    transport: WebSocket, // for Node 20: browsers and Node 22 have their own
  })
  client.channel('demo')
    .on('postgres_changes', { event: '*', schema: 'public', table: 'orders' }, console.log)
    .subscribe(console.log)

Ctrl-C stops it.
TEXT

wait "$server" && code=0 || code=$?
tail -n 5 "$folder/log" >&2
fail "Postgres has stopped (exit code $code)"

#!/bin/bash
# Follows the README word by word on an empty Debian with Node 20, which debootstrap makes under target/,
# as a user who may use sudo: clones the sources, and runs each of its blocks in order. Mounts and
# processes are the folder's own and end with it. The Rust toolchain is mounted, and what was built is
# kept in target/readme, as are apt's packages.
#
# usage: readme-test.sh
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/debian.sh
# Debian 13 has Node 20, and this Postgres, which the README writes into its commands.
PG=17
if [ "$(id -u)" != 0 ]; then
    exec sudo --preserve-env=CARGO_HOME,RUSTUP_HOME,HOME,PATH "$0"
fi
root=$PWD/target/chroot-readme
kept=$PWD/target/readme
cargo=${CARGO_HOME:-$HOME/.cargo}
rustup=${RUSTUP_HOME:-$HOME/.rustup}
home=/home/ann
clone=$home/pg_tide

fail() {
    [ ! -s "$said" ] || tail -n 30 "$said" >&2
    echo "test-readme: $*" >&2
    exit 1
}
# What the program that was started last has said.
said=/dev/null

step() {
    echo "== $*"
}

# A repository of the files that are here, as the one that a reader clones.
publish_sources() {
    local repository=$root/srv/pg_tide
    mkdir -p "$repository"
    git ls-files -z --cached --others --exclude-standard |
        tar --null --ignore-failed-read -T - -cf - | tar -xf - -C "$repository"
    git -C "$repository" init -q
    git -C "$repository" add -A
    git -C "$repository" -c user.name=test -c user.email=test@localhost commit -qm sources
}

if [ "${TIDE_README_TEST_INSIDE:-}" != 1 ]; then
    copy_bare_debian "$(suite_of "$PG")" "$PWD/target/chroot-bare-$PG" "$root"
    publish_sources
    mkdir -p "$root$home/.rustup" "$kept"/{target,cargo,archives}
    # A copy, since it is to be the user's: crates that are here need not come by the network.
    for part in bin registry; do
        [ ! -d "$cargo/$part" ] || cp -a --update --reflink=auto "$cargo/$part" "$kept/cargo/"
    done
    TIDE_README_TEST_INSIDE=1 unshare --mount --pid --fork --kill-child --propagation private "$0"
    rm -rf --one-file-system "$root"
    exit
fi

mount_system "$root"
mount --bind "$kept/archives" "$root/var/cache/apt/archives"
mount --bind "$rustup" "$root$home/.rustup"

# --- The README

# block <language> <n>: the nth block of README.md in this language.
block() {
    awk -v language="$1" -v n="$2" '
        /^```/ { inside = $0 == "```" language && ++count == n; next }
        inside { print; found = 1 }
        END { exit !found }' README.md || fail "README.md has no block $2 of $1"
}

# The commands of a block that shows them after a prompt.
commands() {
    block console "$1" | sed 's/^\$ //'
}

# --- The reader

# reader <shell script>: as the user, in the folder that she is in.
reader() {
    inside runuser -u ann -- env "HOME=$home" USER=ann "PATH=$home/.cargo/bin:/usr/bin:/bin" \
        bash -c "cd $folder && $1"
}
folder=$home

# start <name> <shell script>: what goes on beside the rest. What it says is in a file.
start() {
    said=$root/root/$1.log
    # Not what another has said before.
    : >"$said"
    # In a process group of its own, which ends as one.
    set -m
    reader "$2" </dev/null >"$said" 2>&1 &
    started=$!
    set +m
}

stop() {
    kill -INT -- "-$1"
    wait "$1" || true
}

# Called by name.
# shellcheck disable=SC2317,SC2329
says() {
    # Not much later than it ends.
    kill -0 "$started" 2>/dev/null || grep -qF -- "$1" "$said" || fail "it has ended without: $1"
    grep -qF -- "$1" "$said"
}

# app <file> <url> <token>: the program that the README's blocks make, from standard input.
app() {
    sed -e "s|ws://localhost:4000|$2|" -e "s|TOKEN|'$3'|" >"$root$home/app/$1"
    inside chown -R ann: "$home/app"
}

step "an empty Debian, with what the README asks for"
echo 'APT::Get::Assume-Yes "true"; APT::Install-Recommends "false";' >"$root/etc/apt/apt.conf.d/90yes"
apt update
apt install git make sudo nodejs npm curl ca-certificates
inside useradd --shell /bin/bash ann
echo 'ann ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/ann"
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(hostname)" >"$root/etc/hosts"
mkdir -p "$root$home"/{.cargo,app}
mount --bind "$kept/cargo" "$root$home/.cargo"
inside chown -R ann: "$home/.cargo" "$home/app" /srv/pg_tide
inside chown ann: "$home"
reader 'git clone -q /srv/pg_tide'
mkdir "$root$clone/target"
mount --bind "$kept/target" "$root$clone/target"
rm -rf "$kept"/target/{run,deb}
inside chown -R ann: "$clone/target"
# shellcheck disable=SC2016
reader 'echo "Node $(node --version), npm $(npm --version), $(cargo --version)"'

step "$(commands 1)"
folder=$clone
start run "$(commands 1)"
run=$started
# As long as a build takes.
patience=1800
wait_for "it does not come up" says 'pg_tide is running.'
patience=30
psql=$(sed -n 's/^ *psql *//p' "$said")
url=$(sed -n 's/^ *page *\(http[^#]*\)#.*/\1/p' "$said")
token=$(sed -n 's/^ *token *\([^ ]*\) .*/\1/p' "$said")
demo_address=${url%/}
demo_address=ws${demo_address#http}

step "the page"
page=$(reader "curl -fsS $url") || fail "there is no page at $url"
[[ $page = *'<title>'* ]] || fail "what is at $url is no page"

step "the application"
folder=$home/app
{ block js 1; block js 2; block js 3; } | app app.mjs "$demo_address" "$token"
reader "$(commands 2 | grep '^npm')" >/dev/null 2>&1 || fail "npm install"
block sql 2 | reader "$psql -v ON_ERROR_STOP=1"
start app "$(commands 2 | grep '^node')"
app=$started
wait_for "the channel is not joined" says SUBSCRIBED
wait_for "nobody is present" says "name: 'ann'"
block sql 1 | reader "$psql -v ON_ERROR_STOP=1"
wait_for "the row does not arrive" says "eventType: 'INSERT'"
wait_for "the row does not arrive with its position" says "INSERT {"
block sql 3 | reader "$psql -v ON_ERROR_STOP=1" >/dev/null
wait_for "the message does not arrive" says "payload: { line: 7 }"
wait_for "the message without a row does not arrive" says "payload: { line: 8 }"

step "the process ends, and goes on"
sql=$(grep -o 'select pg_terminate_backend([^`]*' README.md)
printf '%s;\n' "$sql" "insert into orders (item) values ('a ship')" |
    reader "$psql -v ON_ERROR_STOP=1" >/dev/null
wait_for "the row does not arrive after it" says "item: 'a ship'"
stop "$app"

step "a client that is refused reads why"
{ block js 1; } | app refused.mjs "$demo_address" "${token%????}oops"
start refused 'node refused.mjs'
wait_for "it does not say why" says "socket closed: 1008 (Failed to validate JWT signature)"
stop "$started"

step "install"
folder=$clone
# The README says when to leave it out.
unknown='^$'
inside "/usr/lib/postgresql/$PG/bin/postgres" --describe-config | grep -q ^output_plugin_libraries ||
    unknown=^output_plugin_libraries
commands 3 | grep -v "$unknown" | grep -v 'psql app$' >"$root$home/install.sh"
said=$root/root/install.log
reader "bash -euo pipefail $home/install.sh" </dev/null >"$said" 2>&1 || fail "the commands of Install"
app_psql="$(commands 3 | grep 'psql app$') -v ON_ERROR_STOP=1"
block sql 4 | reader "$app_psql" >"$said" 2>&1 || fail "the SQL of Install"
token=$(grep -o 'eyJ[^ ]*' "$said")
# What make run has started listens on this port.
hint=$(sed -n 's/^HINT:  Next: \(alter database .*\)/\1/p' "$said")
[ -n "$hint" ] || fail "nobody is told that the port is taken"
echo "$hint" | reader "$app_psql" >/dev/null
port=$(sed -n 's/.*tide.port = \([0-9]*\).*/\1/p' <<<"$hint")
# shellcheck disable=SC2317,SC2329
nothing_to_mend() {
    [ -z "$(echo 'select item, problem, fix from tide.check() where not ok' | reader "$app_psql -qAt")" ]
}
wait_for "tide.check() has something to mend" nothing_to_mend

step "the application, on what was installed"
folder=$home/app
block js 1 | app app.mjs "ws://localhost:$port" "$token"
start app 'node app.mjs'
app=$started
wait_for "the channel is not joined" says SUBSCRIBED
block sql 1 | reader "$app_psql" >/dev/null
wait_for "the row does not arrive" says "item: 'a boat'"
stop "$app"

step "Ctrl-C"
stop "$run"
[ ! -e "$root$clone/target/run/data/postmaster.pid" ] || fail "its Postgres still runs"
inside pg_ctlcluster "$PG" main stop
echo "The README leads there."

# shellcheck shell=bash
# A folder with a Debian in it, made by debootstrap: for chroot-test.sh, deb-test.sh, readme-test.sh and
# upgrade-test.sh, which source this.

# The release of Debian that has this Postgres.
suite_of() {
    case $1 in
    15) echo bookworm ;;
    17) echo trixie ;;
    18) echo forky ;;
    *)
        echo "no Debian has Postgres $1: 15, 17 and 18 can be tested like this" >&2
        return 2
        ;;
    esac
}

# Where this machine gets its own packages from.
mirror() {
    grep -rhoE '(http|https)://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d \
        2>/dev/null | head -n 1 | tr -d ' '
}

# make_debian <suite> <folder> <packages with commas>
make_debian() {
    local suite=$1 root=$2 packages=$3
    if ! command -v debootstrap >/dev/null; then
        apt-get update -q
        apt-get install -y --no-install-recommends debootstrap
    fi
    local script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$(mirror)" "$script"
    # Lists of a release in the making expire within days, and a mirror may be behind. They are
    # signed all the same.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90mirror"
}

# Names and certificates of the network that this machine is in.
lend_network() {
    local root=$1 bundle=/etc/ssl/certs/ca-certificates.crt
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    # A machine behind a gateway with certificates of its own needs them in there too.
    if [ -e "$bundle" ] && [ -e "$root$bundle" ]; then cp -L "$bundle" "$root$bundle"; fi
}

# copy_bare_debian <suite> <bare folder> <folder>: the bare folder is kept, and each test has a copy.
copy_bare_debian() {
    local suite=$1 bare=$2 root=$3
    if [ ! -e "$bare/made" ]; then
        make_debian "$suite" "$bare" ca-certificates
        touch "$bare/made"
    fi
    rm -rf --one-file-system "$root"
    cp -a --reflink=auto "$bare" "$root"
    lend_network "$root"
}

# What a folder needs to run something; in a mount namespace that ends with the test.
mount_system() {
    local root=$1
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
}

# Runs something in the folder $root, with nothing of this machine's settings but the way to the
# network.
inside() {
    local variable environment
    environment=(PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive)
    for variable in http_proxy https_proxy no_proxy; do
        [ -z "${!variable:-}" ] || environment+=("$variable=${!variable}")
    done
    # Sourced where it is set.
    # shellcheck disable=SC2154
    env -i "${environment[@]}" chroot "$root" "$@"
}

# apt-get in the folder. What it says is of interest only if it fails.
apt() {
    local log=$root/root/apt.log
    inside apt-get -y --no-install-recommends "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get $*"; }
}

# A port that nobody on this machine listens on, which the folder has its network from.
free_port() {
    local port
    for port in $(seq 14000 14999); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# wait_for <what failed if it does not come> <command...>: for half a minute, or $patience seconds.
wait_for() {
    local what=$1 tries=0
    shift
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt $((10 * ${patience:-30})) ] || fail "$what"
        sleep 0.1
    done
}

# In the folder's Postgres.
psql() {
    inside runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d postgres "$@"
}

# Called by name.
# shellcheck disable=SC2317,SC2329
nothing_to_mend() {
    [ -z "$(psql -c 'select item, problem, fix from tide.check() where not ok')" ]
}

# configure <Postgres> <port>: the settings that pg_tide wants in the folder's cluster "main".
configure() {
    cat <<CONF
shared_preload_libraries = 'pg_tide'
wal_level = logical
max_worker_processes = 16
tide.port = $2
CONF
    # Only newer minor versions know the list, and the others would not start with it.
    if inside runuser -u postgres -- "/usr/lib/postgresql/$1/bin/postgres" \
        -D "/etc/postgresql/$1/main" -C output_plugin_libraries >/dev/null 2>&1; then
        echo "output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'"
    fi
}

# Makes the extension, and a table "orders" that clients may follow.
publish_orders() {
    psql <<'SQL'
create extension pg_tide;
create role authenticated nologin;
grant authenticated to tide_authenticator;
create table orders (id bigint generated always as identity primary key, item text not null);
grant select on orders to authenticated;
\o /dev/null
select tide.publish('orders');
SQL
    wait_for "tide.check() has something to mend" nothing_to_mend
}

# shellcheck shell=bash
# A folder with a Debian in it, made by debootstrap: for chroot-test.sh and deb-test.sh, which source
# this.

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

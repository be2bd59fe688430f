#!/bin/sh
# Prints the Postgres version to work with: the first of 15 to 18 that is installed, else the
# first that apt offers, else the one that belongs to this release of Debian or Ubuntu.
for version in 15 16 17 18; do
    if [ -x "/usr/lib/postgresql/$version/bin/postgres" ]; then
        echo "$version"
        exit
    fi
done
for version in 15 16 17 18; do
    if apt-cache show "postgresql-$version" >/dev/null 2>&1; then
        echo "$version"
        exit
    fi
done
# Nobody has asked apt for its lists yet.
# shellcheck disable=SC1091
codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}")
case $codename in
noble) echo 16 ;;
trixie | plucky | questing) echo 17 ;;
forky | resolute) echo 18 ;;
*) echo 15 ;;
esac

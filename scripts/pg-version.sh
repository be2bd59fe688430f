#!/bin/sh
# Prints the Postgres version to work with: the first of 15 to 18 that is installed, else the
# first that apt offers, else 15.
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
echo 15

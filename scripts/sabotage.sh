#!/bin/sh
# Shows that the test of row-level security finds what it is there to find: builds pg_tide with one
# check taken out, and expects the test to fail; for each check in turn. By hand, not in CI: a build
# each.
#
#   scripts/sabotage.sh [name]...       all of them, or those named
#
# Works in a tree of its own under target/. The extension that is installed when it ends is that of
# this tree again.
set -eu

cd "$(dirname "$0")/.."
tree=$PWD/target/sabotage
seeds=${TIDE_SEEDS:-200}
export PG=${PG:-$(scripts/pg-version.sh)}
export PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$PG/bin/pg_config}
export PGRX_PG_CONFIG_PATH=$PG_CONFIG

# Name, file, and what sed does to it.
checks() {
    cat <<'CHECKS'
restrictive  sql/catalog/tables.sql    s/and p\.polqual is not null/& and p.polpermissive/
old_images   crates/server/src/policy/sight.rs       s/Sight { before, \.\. } => is(before, Operation::Delete),/_ => None,/
new_images   crates/server/src/policy/sight.rs       s/Operation::Insert => is(self.after, Operation::Insert),/Operation::Insert => Some(Operation::Insert),/
unknown      crates/server/src/policy/rule.rs        s/images\.exact_after(\*a) != Datum::Absent/true/
lossy        src/source/value/mod.rs                 s/matches!(self, Value::Json(_) | Value::Array(_) | Value::Composite(_))/false/
stored_any   src/helper/row_security.rs              s/if policy\.permissive { &mut any } else { &mut all }/\&mut any/
stored_role  src/helper/row_security.rs              s/role == pg_sys::InvalidOid ||/true ||/
revokes      crates/server/src/hub/entitlement.rs    s/pub(super) fn forget(&mut self, change: &CatalogChange, next: Seq) {/& if next > 200 { return; }/
columns      sql/catalog/tables.sql    s/and pg_catalog\.has_column_privilege(t\.role_oid, t\.oid, a\.attnum, 'SELECT')//
membership   sql/catalog/tables.sql    s/where member = 0 or pg_catalog\.pg_has_role(t\.role_oid, member, 'USAGE')/where true/
force        sql/catalog/tables.sql    s/and (t\.relforcerowsecurity/and (false/
CHECKS
}

clean_up() {
    rm -rf "$tree"
    git worktree prune
    scripts/install.sh
}

rm -rf "$tree"
git worktree prune
git worktree add --quiet --detach "$tree" HEAD
trap clean_up EXIT
# What is built already need not be built again.
mkdir -p target/sabotage-build
[ -d target/sabotage-build/release ] || cp -a target/release target/sabotage-build/
build="$PWD/target/sabotage-build"
cargo test --quiet -p tide-tests --features e2e --test e2e --no-run

survivors=
for name in ${*:-$(checks | cut -d' ' -f1)}; do
    line=$(checks | grep "^$name ")
    file=$(echo "$line" | awk '{ print $2 }')
    edit=$(echo "$line" | sed 's/^[^ ]* *[^ ]* *//')
    git -C "$tree" checkout --quiet .
    sed -i "$edit" "$tree/$file"
    if git -C "$tree" diff --quiet; then
        echo "$name: there is nothing to take out of $file any more" >&2
        exit 1
    fi
    (cd "$tree" && export CARGO_TARGET_DIR="$build" && cargo build --quiet --release -p pg_tide -p tide-server --features "pg_tide/pg$PG" && scripts/install.sh >/dev/null)
    if TIDE_SEEDS=$seeds cargo test --quiet -p tide-tests --features e2e --test e2e \
        -- oracle::every >"$build/$name.log" 2>&1; then
        echo "$name: NOT found with $seeds seeds"
        survivors="$survivors $name"
    else
        echo "$name: found, at $(grep -o 'seed [0-9]*' "$build/$name.log" | head -n 1)"
    fi
done
[ -z "$survivors" ]

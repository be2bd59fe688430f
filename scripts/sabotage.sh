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

# Name, which tests are to find it, file, and what sed does to it.
checks() {
    cat <<'CHECKS'
restrictive  oracle::every       sql/catalog/tables.sql                 s/and p\.polqual is not null/& and p.polpermissive/
old_images   oracle::every       crates/server/src/policy/sight.rs      s/Sight { before, \.\. } => is(before, Operation::Delete),/_ => None,/
new_images   oracle::every       crates/server/src/policy/sight.rs      s/Operation::Insert => is(self.after, Operation::Insert),/Operation::Insert => Some(Operation::Insert),/
unknown      oracle::every       crates/server/src/policy/formula.rs    s/Datum::Unchanged | Datum::Absent => return Truths::ANY,/Datum::Unchanged | Datum::Absent => return Truths::TRUE,/
lossy        oracle::every       src/source/value/mod.rs                s/matches!(self, Value::Json(_) | .*)$/false/
stored_any   oracle::every       src/helper/row_security.rs             s/if policy\.permissive { &mut any } else { &mut all }/\&mut any/
stored_role  oracle::every       src/helper/row_security.rs             s/role == pg_sys::InvalidOid ||/true ||/
revokes      oracle::every       crates/server/src/hub/entitlement.rs   s/pub(super) fn forget(&mut self, change: &CatalogChange, next: Seq) {/& if next > 200 { return; }/
columns      oracle::every       sql/catalog/tables.sql                 s/and pg_catalog\.has_column_privilege(t\.role_oid, t\.oid, a\.attnum, 'SELECT')//
membership   oracle::every       sql/catalog/tables.sql                 s/where member = 0 or pg_catalog\.pg_has_role(t\.role_oid, member, 'USAGE')/where true/
force        oracle::every       sql/catalog/tables.sql                 s/and (t\.relforcerowsecurity/and (false/
missing      stored_policies::   src/helper/row_security.rs             s/places\.is_complete &= .*;//
snapshot     stored_policies::   src/helper/expression.rs               s/std::ptr::null_mut(), 0, std::ptr::null_mut()/std::ptr::null_mut(), 0, pg_sys::GetActiveSnapshot()/
order        stored_policies::   src/helper/row_security.rs             s/policies\.sort_by_key.*$//
named        stored_policies::   src/source/value/mod.rs                s/if type_form::is_named(base) { Text::Oid }/if false { Text::Oid }/
form         stored_policies::   src/helper/asked_rows.rs               s/if !reads(attribute\.atttypid, form)/if false/
basis        changes::           crates/server/src/hub/basis.rs         s/self\.names(relation) && self/self/
labels       alterations::       crates/server/src/hub/basis.rs         s/(self\.labels\.is_empty() || .*)/true/
usable       alterations::       sql/catalog/tables.sql                 s/and (\$7 or not .*)$//
reach        slot::              src/guc/mod.rs                         s#min(megabytes(servers)) / 4#min(megabytes(servers))#
settings     alterations::       crates/server/src/policy/claims.rs     s/if name == "current_setting" =>/if name == "no_setting" =>/
chunk        sync::               crates/server/src/hub/joining.rs     s/place == 0 || place == 1 \&\& !self\.snapshot\.sees(xid)/place < 2/
beyond       sync::               crates/server/src/hub/joining.rs     s/place == 0 || place == 1 \&\& !self\.snapshot\.sees(xid)/place == 0 || !self.snapshot.sees(xid)/
told         sync::               crates/server/src/hub/told.rs         s/let was_told = .*;/let was_told = sides.before;/
fetched      snapshots::          crates/server/src/hub/joining.rs     s/sides\.after &= !own\.after;//
place        sync::               crates/server/src/hub/snapshot_place.rs  s/before: before\.cloned(),/before: None,/
token        snapshots::          crates/server/src/hub/group.rs        s/Unseen::By(snapshot) => !snapshot\.sees(xid),/Unseen::By(_) => false,/
ledger       convergence::       src/helper/mutation/ledger.rs          s/own_rows::insert(relation, &row);//
echo         mutations::its_own  crates/server/src/hub/answers.rs       s/if lsn == Lsn(0) {/if lsn != Lsn(1) {/
subject      mutations::what_is  src/helper/mutation/ledger.rs          s/=> subject\.clone(),/=> subject.repeat(0),/
local_user   writers::           src/helper/mutation/writer.rs          s/context | local as i32/context/
undone       mutations::         src/helper/transaction.rs              s/Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),/Err(_) => pg_sys::ReleaseCurrentSubTransaction(),/
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
    tests=$(echo "$line" | awk '{ print $2 }')
    file=$(echo "$line" | awk '{ print $3 }')
    edit=$(echo "$line" | sed 's/^[^ ]* *[^ ]* *[^ ]* *//')
    git -C "$tree" checkout --quiet .
    sed -i "$edit" "$tree/$file"
    if git -C "$tree" diff --quiet; then
        echo "$name: there is nothing to take out of $file any more" >&2
        exit 1
    fi
    (cd "$tree" && export CARGO_TARGET_DIR="$build" && cargo build --quiet --release -p pg_tide -p tide-server --features "pg_tide/pg$PG" && scripts/install.sh >/dev/null)
    if TIDE_SEEDS=$seeds cargo test --quiet -p tide-tests --features e2e --test e2e \
        -- "$tests" >"$build/$name.log" 2>&1; then
        echo "$name: NOT found by $tests ($seeds seeds)"
        survivors="$survivors $name"
    else
        echo "$name: found by $tests $(grep -o 'seed [0-9]*' "$build/$name.log" | head -n 1)"
    fi
done
[ -z "$survivors" ]

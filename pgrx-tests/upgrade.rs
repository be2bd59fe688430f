//! ALTER EXTENSION ... UPDATE makes of the former version what CREATE EXTENSION makes.

use std::collections::BTreeMap;

use crate::support::{Cluster, Database, wait_until};

/// Each object of the extension, with everything that can be said of it.
const OBJECTS: &str = "
    select pg_describe_object(d.classid, d.objid, 0),
           concat_ws(
               e'\\n',
               obj_description(d.objid, d.classid::regclass::text::name),
               (select concat_ws(' ', pg_get_functiondef(p.oid), p.proacl)
                from pg_proc as p
                where d.classid = 'pg_proc'::regclass and p.oid = d.objid and p.prokind = 'f'),
               (select concat_ws(' ', c.relkind, c.relrowsecurity, c.relforcerowsecurity, c.relreplident,
                                 c.reloptions, c.relacl, pg_get_viewdef(c.oid),
                                 (select string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
                                                              a.attnotnull, a.attidentity, a.attacl, a.attstattarget,
                                                              pg_get_expr(f.adbin, f.adrelid),
                                                              col_description(a.attrelid, a.attnum)),
                                                    e'\\n' order by a.attnum)
                                  from pg_attribute as a
                                  left join pg_attrdef as f on f.adrelid = a.attrelid and f.adnum = a.attnum
                                  where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
                                 (select string_agg(pg_get_constraintdef(k.oid), e'\\n' order by k.conname)
                                  from pg_constraint as k where k.conrelid = c.oid),
                                 (select string_agg(pg_get_indexdef(i.indexrelid), e'\\n' order by i.indexrelid)
                                  from pg_index as i where i.indrelid = c.oid),
                                 (select string_agg(concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled),
                                                    e'\\n' order by t.tgname)
                                  from pg_trigger as t where t.tgrelid = c.oid and not t.tgisinternal),
                                 (select string_agg((p.*)::text, e'\\n' order by p.policyname)
                                  from pg_policies as p
                                  where p.schemaname = 'tide' and p.tablename = c.relname))
                from pg_class as c
                where d.classid = 'pg_class'::regclass and c.oid = d.objid),
               (select concat_ws(' ', e.evtevent, e.evtenabled, e.evttags, e.evtfoid::regprocedure)
                from pg_event_trigger as e
                where d.classid = 'pg_event_trigger'::regclass and e.oid = d.objid),
               (select n.nspacl::text from pg_namespace as n
                where d.classid = 'pg_namespace'::regclass and n.oid = d.objid)
           )
    from pg_depend as d
    where d.refclassid = 'pg_extension'::regclass
      and d.refobjid = (select oid from pg_extension where extname = 'pg_tide')
      and d.deptype = 'e'
    union all
    select 'dumped: ' || config.relation::regclass, config.condition
    from pg_extension as e
    cross join unnest(e.extconfig, e.extcondition) as config (relation, condition)
    where e.extname = 'pg_tide'";

fn objects(database: &Database<'_>) -> BTreeMap<String, String> {
    let rows = database.sql().query(OBJECTS, &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn what_is_updated_is_what_is_created() {
    let cluster = Cluster::start();
    let new = cluster.database("created");
    let expected = objects(&new);
    assert!(expected.len() > 60, "{}", expected.len());

    let old = Database::without_extension(&cluster, "updated", &[]);
    let mut sql = old.sql();
    sql.batch_execute(
        "create extension pg_tide version '0.1.0'; grant authenticated to tide_authenticator",
    )
    .unwrap();
    old.wait_until_live();
    sql.batch_execute("select tide.enqueue('room', 'waits', '{}')").unwrap();
    let secret = "select secret from tide.secret";
    let before: String = sql.query_one(secret, &[]).unwrap().get(0);

    sql.batch_execute("alter extension pg_tide update").unwrap();

    let found = objects(&old);
    let differ = |object: &&String| found.get(*object) != expected.get(*object);
    let differences: Vec<_> = found
        .keys()
        .chain(expected.keys())
        .filter(differ)
        .map(|object| (object, found.get(object), expected.get(object)))
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(sql.query_one(secret, &[]).unwrap().get::<_, String>(0), before);
    wait_until("it is live", || {
        let row = sql.query_one("select state from tide.status()", &[]).unwrap();
        (row.get::<_, &str>(0) == "live").then_some(())
    });
    old.delivers();
}

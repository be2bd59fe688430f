//! (a) Rows per second delivered to one client.
//!
//! The client is attached and its server process (the worker, or the walsender) is stopped; then
//! the rows are written; then the process goes on. Measured from there to the last row, so that
//! the writer takes no part in it.

use std::time::Instant;

use super::plan::Plan;
use super::process::{Stopped, Stopwatch};
use super::reader::{Checksum, Row};
use super::report::{Report, Sample};
use super::server::{self, Attached, Durability, Extension, Way};
use super::support::Database;
use super::websocket::Topic;

const METRICS: &[&str] = &["rows/s", "server CPU us/row", "client CPU us/row"];

const WAYS: [(&str, Way); 5] = [
    ("pg_tide", Way::Tide(Topic::Changes)),
    ("pg_recvlogical pgoutput", Way::Pgoutput),
    ("pg_recvlogical wal2json", Way::Wal2json),
    ("walsender pgoutput, socket", Way::Walsender),
    ("pg_tide tide:table:", Way::Tide(Topic::Table)),
];

const TABLE: &str = "reading";
const COLUMNS: &str = "id bigint primary key, device int not null, kind text not null, \
    value numeric(10,2) not null, ok boolean not null, at timestamptz not null, note text not null";

/// Rows whose values all ways write alike, but for the spelling of two types (see [`check`]).
const WRITE: &str = "
create or replace procedure write(first bigint, last bigint, size bigint) language plpgsql as $$
begin
    while first <= last loop
        insert into reading
        select i, i * 7919 % 100000, (array['temperature', 'pressure', 'humidity'])[1 + i % 3],
            (i % 1000000) / 100.0, i % 3 = 0, timestamptz '2026-01-01' + i * interval '1 ms',
            md5(i::text) || md5((-i)::text) || '-' || i
        from generate_series(first, first + size - 1) i;
        commit;
        first := first + size;
    end loop;
end $$;";

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| (extension, server::start(extension, Durability::PageCache)));
    let databases = clusters.each_ref().map(|(extension, cluster)| {
        let database = server::database(cluster, *extension);
        server::publish(&database, *extension, TABLE, COLUMNS);
        database.sql().batch_execute(WRITE).unwrap();
        database
    });
    let mut report = Report::new("(a) rows delivered to one client", METRICS);
    for (case, rows, size) in [
        ("transactions of 1,000 rows", plan.rows, 1_000),
        ("transactions of 1 row", plan.rows / 5, 1),
    ] {
        let mut checksum = None;
        report.measure(case, plan, &WAYS, |way| {
            let database = &databases[way.extension() as usize];
            let (sample, sum) = measure(database, way, rows, size);
            assert_eq!(*checksum.get_or_insert(sum), sum, "{way:?} delivered something else");
            sample
        });
    }
    report
}

fn measure(database: &Database<'_>, way: Way, rows: u64, size: u64) -> (Sample, Checksum) {
    let mut sql = database.sql();
    sql.batch_execute("truncate reading; checkpoint").unwrap();
    let mut attached = Attached::new(way, database, TABLE);
    let stopped = Stopped::new(attached.server);
    sql.batch_execute(&format!("call write(1, {rows}, {size})")).unwrap();

    let server = Stopwatch::start(&[attached.server]);
    let client = Stopwatch::start(&attached.clients);
    let start = Instant::now();
    drop(stopped);
    let (mut received, mut sum) = (0, Checksum::default());
    while received < rows {
        attached
            .reader
            .read(|row| {
                received += 1;
                check(row, received, &mut sum);
            })
            .unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    let per_row = 1e6 / rows as f64;
    let sample =
        vec![rows as f64 / seconds, server.seconds() * per_row, client.seconds() * per_row];
    (sample, sum)
}

/// Every row in its place, and every value into the checksum.
fn check(row: &Row<'_>, expected: u64, sum: &mut Checksum) {
    let [id, device, kind, value, ok, at, note] = row.columns() else {
        panic!("a row with {} columns", row.columns().len());
    };
    assert_eq!(row.number(0), expected as i64);
    for column in [id, device, kind, value, note] {
        sum.add(column);
    }
    // `t` or `true`; a blank or a `T` between date and time, and `+00` or `+00:00` at the end.
    sum.add(&ok[..1]);
    sum.add(&at[..10]);
    sum.add(at[11..].split(|byte| *byte == b'+').next().unwrap_or_default());
}

//! Positions, and rows in batches.

use std::sync::Arc;

use proptest::prelude::*;

use super::batch::{MOST_BYTES, place};
use super::*;
use crate::bounded::Overflow;

#[test]
fn positions_sort_as_text_as_they_do_as_numbers() {
    let position = |commit, ordinal| Position { commit: Lsn(commit), ordinal };
    let sorted = [position(1, 0), position(1, 9), position(1, 10), position(0x1_0000_0000, 0)];

    let texts: Vec<String> = sorted.iter().map(Position::to_string).collect();

    assert!(texts.is_sorted());
    assert!(sorted.is_sorted());
}

#[test]
fn cursor_survives_its_text() {
    let cursor = Cursor {
        epoch: Epoch { generation: 0xdead_beef, timeline: 3 },
        position: Position { commit: Lsn(0x1_2345_6789), ordinal: 42 },
    };

    assert_eq!(cursor.to_string().parse(), Ok(cursor));
}

#[test]
fn what_is_not_a_cursor_is_refused() {
    for text in
        ["", ".", "x", &"0".repeat(39), &"é".repeat(20), "+0000000000000.+00000000000000000000000"]
    {
        assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
    }
}

#[test]
fn rows_read_back_what_was_pushed() {
    let mut batch = BatchBuilder::default();
    let start = batch.begin_row();
    batch.push_text("42");
    batch.push_null();
    batch.push_unchanged();
    batch.push_absent();
    let row = batch.end_row(&start).expect("a small row");

    let batch = batch.finish();
    let row = batch.row(row);

    assert_eq!(row.get(0), Datum::Json(b"42"));
    assert_eq!(row.get(1), Datum::Null);
    assert_eq!(row.get(2), Datum::Unchanged);
    assert_eq!(row.get(3), Datum::Absent);
    assert_eq!(row.get(4), Datum::Absent);
}

#[test]
fn no_place_in_a_batch_wraps() {
    assert_eq!(place(MOST_BYTES), Ok(u32::MAX - 3));
    for too_large in [MOST_BYTES + 1, u32::MAX as usize, 1 << 32, usize::MAX] {
        assert_eq!(place(too_large), Err(Overflow::Limit));
    }
}

#[test]
fn a_part_of_a_span_stays_in_it() {
    let mut batch = BatchBuilder::default();
    batch.span_of("before");
    let span = batch.span_of("{\"data\":{}}");

    let batch = batch.finish();
    assert_eq!(batch.bytes(span.inner(8, 1)), b"{}");
    assert_eq!(batch.bytes(span.inner(99, 0)), b"");
    assert_eq!(batch.bytes(span.inner(u32::MAX, u32::MAX)), b"");
}

proptest! {
    /// What each event has is read back, or is not there at all, whatever the sizes are around the
    /// limit.
    #[test]
    fn an_event_has_no_more_than_its_limit_and_none_of_anothers_bytes(
        limit in 0_usize..20,
        events in proptest::collection::vec(proptest::collection::vec(0_usize..22, 0..4), 0..6)
    ) {
        let mut batch = BatchBuilder::default();
        let mut rows = Vec::new();
        for (number, sizes) in events.iter().enumerate() {
            let byte = b'a' + u8::try_from(number).expect("few events");
            batch.begin_event(limit);
            let start = batch.begin_row();
            let mut left = limit;
            let mut kept = Vec::new();
            for size in sizes {
                let value = vec![byte; *size];
                let written: Result<(), Overflow> =
                    batch.push_json(|out| out.extend_from_slice(&value));
                prop_assert_eq!(written.is_ok(), *size <= left);
                if written.is_ok() {
                    left -= size;
                    kept.push(value);
                }
            }
            rows.push((batch.end_row(&start).expect("a small row"), kept));
        }
        let batch = batch.finish();
        for (row, kept) in rows {
            let row = batch.row(row);
            prop_assert_eq!(row.len(), kept.len());
            for (index, value) in kept.iter().enumerate() {
                prop_assert_eq!(row.get(index), Datum::Json(value));
            }
        }
    }
}

fn relation(oid: u32) -> Arc<Relation> {
    let id = Column::new(1, "id", "int8", Kind::Int, true);
    let (schema, name, columns) = ("public".into(), format!("t{oid}").into(), [id].into());
    Arc::new(Relation { oid, schema, name, columns, identity_full: false })
}

fn change(batch: &mut BatchBuilder, relation: &Arc<Relation>, commit: u64, value: &str) {
    let new = Some(batch.row_of(&[Some(value)]));
    let (relation, operation) = (Arc::clone(relation), Operation::Insert);
    let change = Change { relation, operation, old: None, new };
    batch.events.push(Event::alone(commit, EventKind::Change(change)));
}

#[test]
fn every_kind_of_event_comes_out_as_it_went_in() {
    let table = relation(7);
    let mut batch = BatchBuilder::default();
    change(&mut batch, &table, 100, "42");
    let payload = batch.span_of("{}");
    let message = Message {
        channel: "room".into(),
        name: "say".into(),
        private: true,
        payload,
        wrapped: false,
        row: None,
    };
    batch.events.push(Event::alone(200, EventKind::Message(message)));
    let failed = Failed {
        relation: Some(Arc::clone(&table)),
        column: Some(0),
        sqlstate: "54000".into(),
        ..Failed::default()
    };
    batch.events.push(Event::alone(300, EventKind::Failed(failed)));
    batch.events[0].mutation_id = Some("mine".into());
    let (mut writer, mut relations) = (BatchWriter::default(), Relations::default());

    // The table is told of once, and known from then on.
    let first = writer.write(&batch).concat();
    let second = writer.write(&batch).concat();
    assert!(second.len() < first.len());

    let mut tables = Vec::new();
    for bytes in [first, second] {
        let read = relations.read(bytes.into()).expect("a batch");
        for (read, written) in read.events.iter().zip(&batch.events) {
            assert_eq!(format!("{read:?}"), format!("{written:?}"));
        }
        let EventKind::Change(change) = &read.events[0].kind else { panic!("a change") };
        assert_eq!(read.row(change.new.expect("a row")).get(0), Datum::Json(b"42"));
        tables.push(Arc::clone(&change.relation));
    }
    assert!(Arc::ptr_eq(&tables[0], &tables[1]));
}

#[test]
fn however_many_tables_there_are_few_are_remembered() {
    let (mut writer, mut relations) = (BatchWriter::default(), Relations::default());
    for oid in 0..10_000 {
        let table = relation(oid);
        let mut batch = BatchBuilder::default();
        change(&mut batch, &table, 100, "1");
        let read = relations.read(writer.write(&batch).concat().into()).expect("a batch");
        let EventKind::Change(change) = &read.events[0].kind else { panic!("a change") };
        assert_eq!(change.relation.oid, oid);
    }
}

proptest! {
    /// Bytes that were damaged on the way are a batch or none, and what is read of it is there or
    /// not: never a panic.
    #[test]
    fn damaged_bytes_are_a_batch_or_none(
        damage in proptest::collection::vec((0_usize..400, any::<u8>()), 0..8), cut in 0_usize..400
    ) {
        let table = relation(7);
        let mut batch = BatchBuilder::default();
        change(&mut batch, &table, 100, "42");
        change(&mut batch, &table, 200, "43");
        let mut bytes = BatchWriter::default().write(&batch).concat();
        for (at, byte) in damage {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 8));
        let Some(batch) = Relations::default().read(bytes.into()) else { return Ok(()) };
        for event in &batch.events {
            if let EventKind::Change(Change { old, new, .. }) = &event.kind {
                for row in [old, new].into_iter().flatten() {
                    let row = batch.row(*row);
                    let _ = (row.len(), row.get(0), row.get(usize::MAX));
                }
            }
        }
    }
}

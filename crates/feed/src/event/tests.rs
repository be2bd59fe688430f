//! Positions, and rows in batches.

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
    let mut batch = Batch::default();
    let start = batch.begin_row();
    batch.push_text("42");
    batch.push_null();
    batch.push_unchanged();
    batch.push_absent();
    let row = batch.end_row(&start).expect("a small row");

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
    let mut batch = Batch::default();
    batch.span_of("before");
    let span = batch.span_of("{\"data\":{}}");

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
        let mut batch = Batch::default();
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
        for (row, kept) in rows {
            let row = batch.row(row);
            prop_assert_eq!(row.len(), kept.len());
            for (index, value) in kept.iter().enumerate() {
                prop_assert_eq!(row.get(index), Datum::Json(value));
            }
        }
    }
}

//! Whatever the worker says to the server, it is understood or an error, and every row of a batch
//! can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tide_feed::event::{Batch, EventKind, Relations, Row};
use tide_feed::link::{FrameReader, Kind, MOST_DOWN, Word, read_address};

fuzz_target!(|pieces: Vec<&[u8]>| {
    let (mut reader, mut relations) = (FrameReader::new(MOST_DOWN), Relations::default());
    for piece in pieces {
        // As a batch by itself: what is in a frame seldom gets that far.
        if let Some(batch) = relations.read(piece.to_vec().into()) {
            look_at(&batch);
        }
        reader.buffer().extend_from_slice(piece);
        loop {
            let frame = match reader.cut() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return,
            };
            match frame.kind {
                Kind::Batch => {
                    if let Some(batch) = relations.read(frame.body) {
                        look_at(&batch);
                    }
                }
                Kind::Json => {
                    let _ = serde_json::from_slice::<Word>(&frame.body);
                }
                Kind::Decoded | Kind::Confirm => {
                    let _ = read_address(&frame.body);
                }
            }
        }
    }
});

fn look_at(batch: &Batch) {
    for event in &batch.events {
        match &event.kind {
            EventKind::Change(change) => {
                // One column more than there are: what is past the end is absent.
                let columns = change.relation.columns.len() + 1;
                for row in [change.old, change.new].into_iter().flatten() {
                    read(batch, row, columns);
                }
            }
            EventKind::Message(message) => {
                let _ = batch.bytes(message.payload);
                let headers = message.row.as_ref().and_then(|row| row.headers);
                let _ = headers.map(|headers| batch.bytes(headers));
            }
            EventKind::Failed(failed) => {
                let _ = failed.key.map(|row| read(batch, row, 8));
            }
            EventKind::Schema(_) => {}
        }
    }
    let _ = batch.size();
}

fn read(batch: &Batch, row: Row, columns: usize) {
    let row = batch.row(row);
    for index in 0..columns.max(row.len().min(1000)) {
        let _ = row.get(index);
    }
}

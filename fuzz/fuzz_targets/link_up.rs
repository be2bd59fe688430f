//! Whatever the server says to the worker, it is reports or an error, and never moves the slot past
//! what the server was told.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tide_feed::event::Lsn;
use tide_feed::link::ReportReader;

fuzz_target!(|input: (u64, Vec<&[u8]>)| {
    let (fed, pieces) = input;
    let mut reader = ReportReader::default();
    reader.set_fed(Lsn(fed));
    for piece in pieces {
        let before = reader.confirmed();
        let taken = reader.take_in(piece);
        assert!(before <= reader.confirmed() && reader.confirmed() <= Lsn(fed));
        while reader.report().is_some() {}
        if taken.is_err() {
            return;
        }
    }
});

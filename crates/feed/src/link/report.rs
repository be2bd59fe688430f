//! The worker's reader of what its server says. The server talks to strangers, so nothing that it
//! says is believed: not a length, not that it is a report, and above all not how far the slot may
//! move, since what the slot has left behind is gone for good.

use std::collections::VecDeque;

use super::{FrameError, FrameReader, Kind, LONGEST_LINE, MOST_UP, Report, read_address};
use crate::event::Lsn;

/// What a server in its right mind does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a report is no report")]
    NoReport,
    #[error("it wants to hear too much, or says it at too great length")]
    TooMuch,
    #[error("it confirms what it was not told")]
    ConfirmsTooMuch,
    #[error("it sends events")]
    SendsEvents,
}

/// Cuts reports and confirmations out of what arrives.
#[derive(Debug)]
pub struct ReportReader {
    frames: FrameReader,
    heard: VecDeque<Report>,
    /// How far everything has been fed, as the server knows.
    fed: Lsn,
    /// How far the slot may move, as the server says.
    confirmed: Lsn,
}

impl Default for ReportReader {
    fn default() -> ReportReader {
        ReportReader {
            frames: FrameReader::new(MOST_UP),
            heard: VecDeque::new(),
            fed: Lsn(0),
            confirmed: Lsn(0),
        }
    }
}

impl ReportReader {
    /// Takes in what has been read, in pieces of any size.
    ///
    /// # Errors
    /// The server does not speak as it should, and is to be listened to no longer.
    pub fn take_in(&mut self, bytes: &[u8]) -> Result<(), ReportError> {
        self.frames.buffer().extend_from_slice(bytes);
        while let Some(frame) = self.frames.cut()? {
            match frame.kind {
                Kind::Json => {
                    self.heard.push_back(report(&frame.body)?);
                }
                Kind::Confirm => {
                    let lsn = read_address(&frame.body).filter(|lsn| *lsn <= self.fed);
                    self.confirmed = self.confirmed.max(lsn.ok_or(ReportError::ConfirmsTooMuch)?);
                }
                Kind::Batch | Kind::Decoded => return Err(ReportError::SendsEvents),
            }
        }
        Ok(())
    }

    /// How many reports wait to be looked at.
    pub fn waiting(&self) -> usize {
        self.heard.len()
    }

    /// The reports in the order they came.
    pub fn report(&mut self) -> Option<Report> {
        self.heard.pop_front()
    }

    /// How far the slot may move; 0 until the server has said so.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// The server is told that everything up to here has been fed: it may confirm that much.
    pub fn set_fed(&mut self, lsn: Lsn) {
        self.fed = self.fed.max(lsn);
    }
}

/// A report that says no more than a server says: the worker writes every line into Postgres's log.
fn report(body: &[u8]) -> Result<Report, ReportError> {
    let report = serde_json::from_slice(body).map_err(|_| ReportError::NoReport)?;
    let is_bounded = match &report {
        Report::Log { text, .. } => text.len() <= LONGEST_LINE,
        Report::Ready
        | Report::Alive(_)
        | Report::WantsNotifier(_)
        | Report::WantsReader(_)
        | Report::WantsWriters(_) => true,
    };
    if is_bounded { Ok(report) } else { Err(ReportError::TooMuch) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::{address, frame, header, json};

    fn confirm(lsn: u64) -> Vec<u8> {
        address(Kind::Confirm, Lsn(lsn)).to_vec()
    }

    #[test]
    fn no_more_is_confirmed_than_was_fed() {
        let mut reader = ReportReader::default();
        reader.set_fed(Lsn(100));

        assert_eq!(reader.take_in(&confirm(100)), Ok(()));
        assert_eq!(reader.take_in(&confirm(101)), Err(ReportError::ConfirmsTooMuch));

        assert_eq!(reader.confirmed(), Lsn(100));
    }

    #[test]
    fn nothing_is_confirmed_before_anything_was_fed() {
        let mut reader = ReportReader::default();

        assert_eq!(reader.take_in(&confirm(1)), Err(ReportError::ConfirmsTooMuch));
        assert_eq!(reader.confirmed(), Lsn(0));
    }

    #[test]
    fn what_is_confirmed_never_goes_back() {
        let mut reader = ReportReader::default();
        reader.set_fed(Lsn(100));
        reader.set_fed(Lsn(50));

        assert_eq!(reader.take_in(&[confirm(90), confirm(10)].concat()), Ok(()));

        assert_eq!(reader.confirmed(), Lsn(90));
    }

    #[test]
    fn an_address_of_another_length_confirms_nothing() {
        let mut reader = ReportReader::default();
        reader.set_fed(Lsn(u64::MAX));

        for body in [&[][..], &[1; 7], &[1; 9]] {
            let error = reader.take_in(&frame(Kind::Confirm, body)).unwrap_err();
            assert_eq!(error, ReportError::ConfirmsTooMuch, "{body:?}");
        }
        assert_eq!(reader.confirmed(), Lsn(0));
    }

    #[test]
    fn what_only_the_worker_says_is_refused() {
        for kind in [Kind::Batch, Kind::Decoded] {
            let mut reader = ReportReader::default();
            assert_eq!(reader.take_in(&frame(kind, &[0; 8])), Err(ReportError::SendsEvents));
        }
        let stop = json(&crate::link::Word::Stop);
        assert_eq!(ReportReader::default().take_in(&stop), Err(ReportError::NoReport));
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_when_it_is_announced() {
        let announced = header(Kind::Json, MOST_UP + 1);

        let error = ReportReader::default().take_in(&announced).unwrap_err();

        assert_eq!(error, FrameError::TooLong(MOST_UP + 1).into());
    }

    #[test]
    fn json_that_nests_without_end_is_an_error() {
        let nested = "[".repeat(1 << 20);

        let error = ReportReader::default().take_in(&frame(Kind::Json, nested.as_bytes()));

        assert_eq!(error, Err(ReportError::NoReport));
    }

    #[test]
    fn what_the_worker_is_to_do_has_an_end() {
        let line = |bytes| Report::Log { warning: false, text: "x".repeat(bytes) };
        let mut reader = ReportReader::default();

        assert_eq!(reader.take_in(&json(&line(LONGEST_LINE))), Ok(()));
        assert_eq!(reader.take_in(&json(&line(LONGEST_LINE + 1))), Err(ReportError::TooMuch));
    }

    #[test]
    fn reports_keep_their_order_however_they_are_cut() {
        let sent: Vec<u8> = (0..50).flat_map(|number| json(&Report::Alive(number))).collect();
        let mut reader = ReportReader::default();

        for byte in sent {
            reader.take_in(&[byte]).unwrap();
        }

        assert_eq!(reader.waiting(), 50);
        let heard = std::iter::from_fn(|| reader.report());
        let numbers: Vec<u64> = heard
            .map(|report| match report {
                Report::Alive(number) => number,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn whatever_arrives_confirms_no_more_than_was_fed(
            pieces in proptest::collection::vec(
                prop_oneof![
                    any::<u64>().prop_map(confirm),
                    (0_u64..2000).prop_map(confirm),
                    proptest::collection::vec(any::<u8>(), 0..40),
                ],
                0..20
            ),
            fed in 0_u64..1000
        ) {
            let mut reader = ReportReader::default();
            reader.set_fed(Lsn(fed));
            for piece in pieces {
                let taken = reader.take_in(&piece);
                prop_assert!(reader.confirmed() <= Lsn(fed));
                if taken.is_err() {
                    break;
                }
            }
        }
    }
}

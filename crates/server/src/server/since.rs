//! Where a client wants its channel to begin.

use tide_feed::event::Cursor;
use tide_feed::snapshot::SnapshotToken;

use super::join::Refused;
use crate::catalog::Moment;
use crate::hub::subscription::Since;
use crate::wire::join::BroadcastOptions;

/// `asked`: after the join came, before it is answered.
pub(super) fn since(options: &BroadcastOptions, asked: Moment) -> Result<Since, Refused> {
    match (&options.since, options.last) {
        (Some(text), _) if text.contains('/') => match text.parse::<SnapshotToken>() {
            Ok(token) => Ok(Since::Unseen(token, asked)),
            Err(error) => Err(Refused::request(format!("InvalidPosition: since is {error}"))),
        },
        (Some(text), _) => match text.parse::<Cursor>() {
            Ok(cursor) => Ok(Since::Cursor(cursor, asked)),
            Err(error) => Err(Refused::request(format!("InvalidPosition: since is {error}"))),
        },
        (None, Some(last)) => Ok(Since::Last(last, asked)),
        (None, None) => Ok(Since::Now(asked)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_before_a_number_of_events() {
        let cursor = "00000001000001.000000000000000a00000000";
        let options = |since: Option<&str>, last| BroadcastOptions {
            since: since.map(str::to_owned),
            last,
            ..BroadcastOptions::default()
        };

        let now = Moment::default;
        let since = |options| super::since(&options, now()).map_err(|refused| refused.reason);

        let resumes = Ok(Since::Cursor(cursor.parse().unwrap(), now()));
        assert_eq!(since(options(Some(cursor), Some(3))), resumes);
        let token = "00000001000001.000000000000000a00000000/4:9:5";
        let unseen = Ok(Since::Unseen(token.parse().unwrap(), now()));
        assert_eq!(since(options(Some(token), None)), unseen);
        assert_eq!(since(options(None, Some(3))), Ok(Since::Last(3, now())));
        assert_eq!(since(options(None, None)), Ok(Since::Now(now())));
        assert!(since(options(Some("yesterday"), None)).is_err());
        assert!(since(options(Some("4/9"), None)).is_err());
    }
}

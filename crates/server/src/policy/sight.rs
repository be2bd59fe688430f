//! What a change of a row is to somebody who sees the row before it, after it, both or neither.

use tide_feed::event::Operation;

use super::images::Images;

/// Whether one image of a row is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Yes,
    No,
    /// The policy looks at a column that the image does not have.
    Unknown,
}

impl From<bool> for Seen {
    fn from(visible: bool) -> Seen {
        if visible { Seen::Yes } else { Seen::No }
    }
}

/// Whether the row was visible before the change, and whether it is after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sight {
    pub before: Seen,
    pub after: Seen,
}

impl Sight {
    /// Of everything.
    pub const CLEAR: Sight = Sight { before: Seen::Yes, after: Seen::Yes };

    /// Of a change none of whose images says enough.
    pub fn unknown(images: &Images<'_>) -> Sight {
        let seen = |is_there| if is_there { Seen::Unknown } else { Seen::No };
        Sight { before: seen(images.has_before()), after: seen(images.has_after()) }
    }

    /// As what the change is told; `None`: not at all.
    pub fn presented(self, operation: Operation) -> Option<Operation> {
        let is = |seen, operation| (seen == Seen::Yes).then_some(operation);
        match operation {
            Operation::Insert => is(self.after, Operation::Insert),
            Operation::Delete => is(self.before, Operation::Delete),
            // A right to the table, not to rows.
            Operation::Truncate => Some(Operation::Truncate),
            Operation::Update => match self {
                Sight { before: Seen::No, after: Seen::Yes } => Some(Operation::Insert),
                Sight { after: Seen::Yes, .. } => Some(Operation::Update),
                Sight { before, .. } => is(before, Operation::Delete),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use Operation::{Delete, Insert, Truncate, Update};
    use Seen::{No, Unknown, Yes};

    use super::*;

    #[test]
    fn a_change_is_told_as_what_it_is_to_the_one_who_sees() {
        for (operation, before, after, told) in [
            (Insert, No, Yes, Some(Insert)),
            (Insert, No, No, None),
            (Insert, No, Unknown, None),
            (Update, Yes, Yes, Some(Update)),
            (Update, No, Yes, Some(Insert)),
            (Update, Unknown, Yes, Some(Update)),
            (Update, Yes, No, Some(Delete)),
            (Update, Yes, Unknown, Some(Delete)),
            (Update, No, No, None),
            (Update, Unknown, No, None),
            (Update, No, Unknown, None),
            (Update, Unknown, Unknown, None),
            (Delete, Yes, No, Some(Delete)),
            (Delete, No, No, None),
            (Delete, Unknown, No, None),
            (Truncate, No, No, Some(Truncate)),
        ] {
            let sight = Sight { before, after };
            assert_eq!(sight.presented(operation), told, "{operation:?} {sight:?}");
        }
    }
}

//! Changes of the catalogue in the order in which they were heard of, each with a number.

use std::collections::VecDeque;

/// So many changes are remembered; whoever has missed more is told that any table may have changed.
const REMEMBERED: usize = 1024;

/// Which tables have changed lately.
#[derive(Debug)]
pub struct ChangeLog {
    newest: u64,
    /// The changes up to the newest, as far back as is known of what they are.
    tables: VecDeque<u32>,
}

impl ChangeLog {
    /// Of the changes after this number.
    pub fn starting_at(number: u64) -> ChangeLog {
        ChangeLog { newest: number, tables: VecDeque::new() }
    }

    /// The number of the newest change.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    pub fn changed(&mut self, table: u32) {
        self.newest += 1;
        if self.tables.len() >= REMEMBERED {
            self.tables.pop_front();
        }
        self.tables.push_back(table);
    }

    /// Something changed that may be about any table.
    pub fn all_changed(&mut self) {
        self.newest += 1;
        self.tables.clear();
    }

    /// The tables that have changed after the change of that number; `None`: it may be any.
    pub fn since(&self, number: u64) -> Option<Vec<u32>> {
        let count = usize::try_from(self.newest.checked_sub(number)?).ok()?;
        let first = self.tables.len().checked_sub(count)?;
        Some(self.tables.range(first..).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_changes_are_told() {
        let mut log = ChangeLog::starting_at(100);
        log.changed(1);
        log.changed(2);

        assert_eq!(log.newest(), 102);
        assert_eq!(log.since(100), Some(vec![1, 2]));
        assert_eq!(log.since(101), Some(vec![2]));
        assert_eq!(log.since(102), Some(vec![]));
    }

    #[test]
    fn a_number_that_is_not_of_this_log_means_any_table() {
        let mut log = ChangeLog::starting_at(100);
        log.changed(1);

        assert_eq!(log.since(99), None);
        assert_eq!(log.since(102), None);
    }

    #[test]
    fn what_came_before_a_change_of_everything_is_not_told_one_by_one() {
        let mut log = ChangeLog::starting_at(0);
        log.changed(1);
        log.all_changed();
        log.changed(2);

        assert_eq!(log.since(0), None);
        assert_eq!(log.since(1), None);
        assert_eq!(log.since(2), Some(vec![2]));
    }

    #[test]
    fn who_has_missed_too_many_is_told_that_it_may_be_any() {
        let mut log = ChangeLog::starting_at(0);
        (0..REMEMBERED as u32 + 1).for_each(|table| log.changed(table));

        assert_eq!(log.since(0), None);
        assert_eq!(log.since(1).map(|tables| tables.len()), Some(REMEMBERED));
    }
}

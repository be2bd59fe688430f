//! In which order questions are asked: those that others wait for, or that take milliseconds, are not
//! behind those that may take as long as somebody likes.

use super::Asker;
use crate::fair_queue::FairQueue;

/// Which questions a question is among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Express,
    Slow,
}

/// What there is of two lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Questions of the express lane in a row, at most, while one of the other waits.
    pub(super) in_a_row: usize,
    /// Of several helpers one answers no slow questions.
    pub(super) keeps_one_free: bool,
}

/// Questions of one client that may wait; one more is refused.
const OF_ONE: usize = 256;

/// Questions `T` that wait for helpers.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    express: FairQueue<Option<Asker>, T>,
    slow: FairQueue<Option<Asker>, T>,
    traffic: Traffic,
    helpers: usize,
    /// Those that are being answered.
    slow_under_way: usize,
    in_a_row: usize,
}

impl<T> Lanes<T> {
    pub(super) fn new(traffic: Traffic) -> Lanes<T> {
        let (express, slow) = (FairQueue::new(), FairQueue::new());
        Lanes { express, slow, traffic, helpers: 0, slow_under_way: 0, in_a_row: 0 }
    }

    /// `None`: as many of the asker's wait as may.
    pub(super) fn push(&mut self, lane: Lane, asker: Option<Asker>, question: T) -> Option<u64> {
        let lane = self.lane(lane);
        if asker.is_some() && lane.waiting(&asker) >= OF_ONE {
            return None;
        }
        Some(lane.push(asker, question))
    }

    /// The question is given up; it may be under way.
    pub(super) fn remove(&mut self, lane: Lane, asker: &Option<Asker>, ticket: u64) {
        self.lane(lane).remove(asker, ticket);
    }

    /// The next question for a helper, to be [ended](Lanes::end) when it is answered.
    pub(super) fn begin(&mut self) -> Option<(Lane, T)> {
        let is_kept_free = self.traffic.keeps_one_free
            && self.helpers > 1
            && self.slow_under_way + 1 >= self.helpers;
        let may_be_slow = !self.slow.is_empty() && !is_kept_free;
        let is_slows_turn = self.express.is_empty() || self.in_a_row >= self.traffic.in_a_row;
        if may_be_slow && is_slows_turn {
            self.in_a_row = 0;
            self.slow_under_way += 1;
            return Some((Lane::Slow, self.slow.pop()?.1));
        }
        self.in_a_row = if may_be_slow { self.in_a_row + 1 } else { 0 };
        Some((Lane::Express, self.express.pop()?.1))
    }

    pub(super) fn end(&mut self, lane: Lane) {
        self.slow_under_way -= usize::from(lane == Lane::Slow);
    }

    pub(super) fn helper_comes(&mut self) {
        self.helpers += 1;
    }

    pub(super) fn helper_goes(&mut self) {
        self.helpers -= 1;
    }

    pub(super) fn helpers(&self) -> usize {
        self.helpers
    }

    fn lane(&mut self, lane: Lane) -> &mut FairQueue<Option<Asker>, T> {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Slow => &mut self.slow,
        }
    }
}

#[cfg(test)]
mod tests {
    use Lane::{Express, Slow};

    use super::*;

    fn lanes(in_a_row: usize, helpers: usize) -> Lanes<u32> {
        let mut lanes = Lanes::new(Traffic { in_a_row, keeps_one_free: true });
        for _ in 0..helpers {
            lanes.helper_comes();
        }
        lanes
    }

    fn fill(lanes: &mut Lanes<u32>, lane: Lane, count: u32) {
        for n in 0..count {
            lanes.push(lane, None, n).expect("there is room");
        }
    }

    #[test]
    fn one_of_several_helpers_is_kept_from_slow_questions() {
        let mut lanes = lanes(1, 3);
        fill(&mut lanes, Slow, 5);

        let mut begin = || lanes.begin().map(|(lane, _)| lane);
        assert_eq!([begin(), begin(), begin()], [Some(Slow), Some(Slow), None]);
        fill(&mut lanes, Express, 1);
        assert_eq!(lanes.begin(), Some((Express, 0)));

        lanes.end(Slow);
        assert_eq!(lanes.begin(), Some((Slow, 2)));
    }

    #[test]
    fn with_one_helper_both_lanes_take_turns() {
        let mut lanes = lanes(1, 1);
        fill(&mut lanes, Slow, 3);
        fill(&mut lanes, Express, 2);

        let order = std::iter::from_fn(|| {
            let (lane, _) = lanes.begin()?;
            lanes.end(lane);
            Some(lane)
        });

        assert_eq!(order.collect::<Vec<_>>(), [Express, Slow, Express, Slow, Slow]);
    }

    #[test]
    fn slow_questions_are_not_put_off_for_ever() {
        let mut lanes = lanes(8, 1);
        fill(&mut lanes, Slow, 1);
        fill(&mut lanes, Express, 100);

        let before = std::iter::from_fn(|| lanes.begin()).take_while(|(lane, _)| *lane == Express);

        assert_eq!(before.count(), 8);
    }

    #[test]
    fn nobody_fills_the_queue_for_the_others() {
        let mut lanes = lanes(1, 1);
        let asker = |role: &str| Some(Asker { role: role.into(), claims: "{}".into() });

        let filled = (0..).take_while(|n| lanes.push(Express, asker("greedy"), *n).is_some());
        assert_eq!(filled.count(), OF_ONE);
        lanes.push(Express, asker("other"), 7_000).expect("there is room");

        lanes.begin();
        assert_eq!(lanes.begin(), Some((Express, 7_000)));
        assert!(lanes.push(Express, asker("greedy"), 0).is_some());
    }
}

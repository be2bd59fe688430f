//! What clients have asked to be written and that has no outcome yet: for as long as there is any, the
//! worker is to keep writers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::link::Uplink;
use crate::stats::Stats;

/// For how long nothing has to be asked before the worker is told: each word wakes it.
const QUIET: Duration = Duration::from_secs(1);

/// How many mutations wait or are under way. A cheap clone.
#[derive(Clone, Debug)]
pub struct WriterDemand {
    count: Arc<watch::Sender<u64>>,
    stats: Arc<Stats>,
}

/// A mutation that counts, for as long as this lives.
#[derive(Debug)]
pub struct Demanded(WriterDemand);

impl WriterDemand {
    pub fn new(stats: Arc<Stats>) -> WriterDemand {
        WriterDemand { count: Arc::new(watch::channel(0).0), stats }
    }

    /// One more.
    pub fn one(&self) -> Demanded {
        self.stats.mutations_pending.inc();
        self.change(|count| count + 1);
        Demanded(self.clone())
    }

    /// Whether there are any is what others wait to hear.
    fn change(&self, change: impl FnOnce(u64) -> u64) {
        self.count.send_if_modified(|count| {
            let before = *count;
            *count = change(before);
            (before == 0) != (*count == 0)
        });
    }
}

impl Drop for Demanded {
    fn drop(&mut self) {
        self.0.stats.mutations_pending.dec();
        self.0.change(|count| count.saturating_sub(1));
    }
}

/// Has the worker keep writers for as long as there is something to write, and a moment longer.
pub async fn employ(demand: WriterDemand, uplink: Uplink) {
    let mut count = demand.count.subscribe();
    loop {
        if count.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        uplink.wants_writers(true);
        loop {
            if count.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if timeout(QUIET, count.wait_for(|count| *count > 0)).await.is_err() {
                break;
            }
        }
        uplink.wants_writers(false);
    }
}

#[cfg(test)]
mod tests {
    use tide_feed::link::{Report, ReportReader};
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    /// Whether writers are wanted, each time that the worker is told.
    struct Told {
        link: UnixStream,
        reader: ReportReader,
    }

    impl Told {
        fn of(demand: &WriterDemand) -> Told {
            let (ours, link) = UnixStream::pair().expect("a pair of sockets");
            let uplink = Uplink::default();
            tokio::spawn(employ(demand.clone(), uplink.clone()));
            tokio::spawn(uplink.run(ours.into_split().1));
            Told { link, reader: ReportReader::default() }
        }

        async fn next(&mut self) -> bool {
            loop {
                match self.reader.report() {
                    Some(Report::WantsWriters(wants)) => return wants,
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
                let mut bytes = Vec::new();
                self.link.read_buf(&mut bytes).await.expect("the link is open");
                self.reader.take_in(&bytes).expect("reports");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writers_are_wanted_from_the_first_mutation_to_the_last() {
        let stats = Arc::<Stats>::default();
        let demand = WriterDemand::new(Arc::clone(&stats));
        let mut told = Told::of(&demand);

        let (first, second) = (demand.one(), demand.one());
        assert!(told.next().await);
        assert_eq!(stats.mutations_pending.get(), 2);
        drop(first);
        drop(second);
        // One that comes at once is not worth a word.
        let third = demand.one();
        drop(third);

        assert!(!told.next().await);
        let _fourth = demand.one();
        assert!(told.next().await);
        assert_eq!(stats.mutations_pending.get(), 1);
    }
}

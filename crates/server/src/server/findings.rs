//! What `tide.check()` has found, for the page. Asked once for all who ask at a time, and kept for a
//! second: so many requests are no more questions to the catalog worker than one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::catalog::CatalogError;

const KEPT: Duration = Duration::from_secs(1);

/// A JSON array as text, or why there is none.
type Found = Result<Arc<str>, CatalogError>;

#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Locked by whoever asks for all.
    last: Mutex<Option<(Instant, Found)>>,
}

impl Findings {
    pub(super) async fn answer<F>(&self, ask: impl FnOnce() -> F) -> Found
    where
        F: Future<Output = Result<String, CatalogError>>,
    {
        let mut last = self.last.lock().await;
        if let Some((answered, found)) = &*last
            && answered.elapsed() < KEPT
        {
            return found.clone();
        }
        let found: Found = ask().await.map(Into::into);
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_requests_is_one_question_a_second() {
        let (findings, asked) = (Findings::default(), Cell::new(0));
        let ask = async || {
            asked.set(asked.get() + 1);
            sleep(2 * KEPT).await;
            match asked.get() {
                1 => Err(CatalogError::Unavailable),
                count => Ok(count.to_string()),
            }
        };
        let all = || join_all((0..100).map(|_| findings.answer(&ask)));

        assert!(all().await.iter().all(Result::is_err));
        assert_eq!(asked.get(), 1, "nor is a failure asked for again by each");
        sleep(KEPT).await;

        assert!(all().await.iter().all(|found| found.as_deref().is_ok_and(|text| text == "2")));
        assert_eq!(asked.get(), 2);
    }
}

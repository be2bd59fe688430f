//! The mutation cleaner: has the catalog worker forget how mutations ended that were done long ago.

use std::time::Duration;

use tokio::time::sleep;

use crate::catalog::{Catalog, CatalogError};

/// Outcomes per statement.
const PAGE: u32 = 10_000;
/// Between two looks, at most.
const SWEEP: Duration = Duration::from_secs(60);

/// One task of the server.
#[derive(Debug)]
pub struct MutationCleaner {
    catalog: Catalog,
    /// For how long it is remembered how they ended.
    retention: Duration,
    /// The newest error that the log has.
    last_error: Option<String>,
}

impl MutationCleaner {
    pub fn new(catalog: Catalog, retention: Duration) -> MutationCleaner {
        MutationCleaner { catalog, retention, last_error: None }
    }

    /// Works for as long as the worker runs.
    pub async fn run(mut self) {
        loop {
            // What is kept for less is looked at more often.
            sleep(SWEEP.min(self.retention)).await;
            match self.sweep().await {
                Ok(()) => self.last_error = None,
                Err(CatalogError::Refused { message, .. }) => self.refused(message),
                // There is no catalog worker at the moment.
                Err(CatalogError::Unavailable | CatalogError::Ended) => {}
            }
        }
    }

    async fn sweep(&self) -> Result<(), CatalogError> {
        while self.catalog.forget_mutations(self.retention, PAGE).await? >= u64::from(PAGE) {}
        Ok(())
    }

    fn refused(&mut self, message: String) {
        if self.last_error.as_ref() != Some(&message) {
            log::warn!("it cannot be forgotten for now how mutations ended: {message}");
            self.last_error = Some(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tide_feed::catalog::Request;
    use tokio::net::UnixStream;

    use super::*;
    use crate::catalog::frame;

    #[tokio::test(start_paused = true)]
    async fn old_outcomes_go_page_by_page_however_often_that_fails() {
        let catalog = Catalog::new("tide".into());
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let served = catalog.clone();
        tokio::spawn(async move { served.serve_catalog_worker(ours).await });
        let age = Duration::from_secs(3600);
        let cleaning = tokio::spawn(MutationCleaner::new(catalog, age).run());
        let mut answer = async |answer: Value| {
            let request: Request = frame::read(&mut theirs).await.expect("a question");
            assert_eq!(request, Request::ForgetMutations { age, limit: PAGE });
            frame::write(&mut theirs, &answer).await.expect("is read");
        };

        answer(json!({ "error": { "sqlstate": "55P03", "message": "locked" } })).await;
        answer(json!({ "ok": PAGE })).await;
        answer(json!({ "ok": 7 })).await;
        answer(json!({ "ok": 0 })).await;

        assert!(!cleaning.is_finished());
        cleaning.abort();
    }
}

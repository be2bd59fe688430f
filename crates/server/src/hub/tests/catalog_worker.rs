//! A catalog worker that can be told to fail.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tide_feed::catalog::{Request, TableAccess};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::catalog::{Catalog, frame};

/// What may become of a look-up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// An error with this SQLSTATE.
    Refusal(&'static str),
    /// Something that is no answer.
    Nonsense,
    /// The process ends without one; another takes its place.
    End,
    /// What was true when it was asked, once it is let.
    Delay,
}

#[derive(Debug)]
pub(super) struct CatalogWorker {
    /// What any role may see.
    pub(super) granted: Arc<Mutex<Vec<TableAccess>>>,
    /// Of the next questions.
    troubles: Mutex<VecDeque<Trouble>>,
    asked: AtomicUsize,
    lets: Semaphore,
}

impl CatalogWorker {
    pub(super) fn new(granted: Vec<TableAccess>) -> Arc<CatalogWorker> {
        Arc::new(CatalogWorker {
            granted: Arc::new(Mutex::new(granted)),
            troubles: Mutex::default(),
            asked: AtomicUsize::new(0),
            lets: Semaphore::new(0),
        })
    }

    pub(super) fn trouble(&self, troubles: impl IntoIterator<Item = Trouble>) {
        self.troubles.lock().expect("not poisoned").extend(troubles);
    }

    /// How many questions there were.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Acquire)
    }

    /// Lets one delayed answer go.
    pub(super) fn answer(&self) {
        self.lets.add_permits(1);
    }

    pub(super) async fn serve(self: Arc<Self>, catalog: Catalog) {
        loop {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
            let served = catalog.clone();
            tokio::spawn(async move { served.serve_catalog_worker(ours).await });
            while let Ok(request) = frame::read::<Request>(&mut theirs).await {
                let Request::Tables { role, .. } = request else { panic!("{request:?}") };
                let mut tables = self.granted.lock().expect("not poisoned").clone();
                if role == "owner" {
                    tables.iter_mut().for_each(|table| table.row_security = None);
                }
                let trouble = self.troubles.lock().expect("not poisoned").pop_front();
                self.asked.fetch_add(1, Ordering::Release);
                let answer = match trouble {
                    Some(Trouble::Refusal(sqlstate)) => {
                        json!({ "error": { "sqlstate": sqlstate, "message": "no" } })
                    }
                    Some(Trouble::Nonsense) => json!({ "ok": { "tables": 7 } }),
                    Some(Trouble::End) => break,
                    Some(Trouble::Delay) => {
                        self.lets.acquire().await.expect("not closed").forget();
                        json!({ "ok": { "lsn": 0, "running": [], "change": 0, "tables": tables } })
                    }
                    None => {
                        json!({ "ok": { "lsn": 0, "running": [], "change": 0, "tables": tables } })
                    }
                };
                if frame::write(&mut theirs, &answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

//! Whether the past that the slot holds may be what the server fails over, or holds on to.

use std::time::Instant;

use tide_feed::event::Lsn;
use tide_feed::link::{self, Grip, Word};

use crate::guc;
use crate::process::server;

#[derive(Debug)]
pub(crate) struct Trust {
    /// A server has failed. Until the next one has dealt with everything up to here, its end would
    /// be blamed on the past.
    unproven: Option<Lsn>,
    /// The number of the newest ping, and whether it is under way.
    ping: u64,
    is_asking: bool,
    /// The past was given up: why, for clients that would resume in it.
    is_given_up: bool,
    cause: Option<&'static str>,
    grip: Grip,
}

impl Trust {
    /// `reach`: bytes of WAL that the server may hold back.
    pub(crate) fn new(reach: u64) -> Trust {
        Trust {
            unproven: None,
            ping: 0,
            is_asking: false,
            is_given_up: false,
            cause: None,
            grip: Grip::new(reach),
        }
    }

    /// There is another server.
    pub(crate) fn begin(&mut self) {
        self.grip.begin();
    }

    /// The server has failed, which was told everything up to `fed`. If it does so again before it
    /// got over that, the past is given up, so that nothing in it can be a loop.
    pub(crate) fn server_failed(&mut self, fed: Lsn, was_live: bool) {
        self.is_asking = false;
        if self.unproven.is_some() {
            self.is_given_up = true;
            self.unproven = None;
        } else if was_live {
            self.unproven = Some(fed);
        }
    }

    /// The server has dealt with everything before this ping.
    pub(crate) fn proven(&mut self, ping: u64) {
        if self.is_asking && ping == self.ping {
            self.is_asking = false;
            self.unproven = None;
        }
    }

    /// Once everything has been fed again that was fed when the server failed, asks whether it has
    /// got over it.
    pub(crate) fn ask_for_proof(&mut self, position: Lsn) {
        if self.is_asking || self.unproven.is_none_or(|until| position < until) {
            return;
        }
        self.ping += 1;
        self.is_asking = server::offer(&link::json(&Word::Ping(self.ping)));
    }

    /// The server knows everything up to `told`, and the slot may move to `confirmed`. One that
    /// holds the slot for too long is ended; what two hold on to is given up.
    pub(crate) fn watch(&mut self, told: Lsn, confirmed: Lsn) {
        let clings = self.grip.look(told, confirmed, Instant::now(), guc::server_timeout());
        if let Some(clings) = clings
            && server::condemn("it does not let go of the past")
        {
            self.is_given_up |= clings.again;
        }
    }

    /// Whether the past is to be given up, which it is then.
    pub(crate) fn take_given_up(&mut self) -> bool {
        std::mem::take(&mut self.is_given_up)
    }

    pub(crate) fn set_cause(&mut self, cause: &'static str) {
        self.cause = Some(cause);
    }

    pub(crate) fn cause(&self) -> Option<&'static str> {
        self.cause
    }
}

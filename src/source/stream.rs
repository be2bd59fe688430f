//! Everything between the WAL and the feed: opens the slot, decodes in rounds, moves the slot,
//! and gets over what goes wrong.

use std::ffi::CString;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use tide_feed::event::{CatalogChange, Epoch, Lsn};
use tide_feed::link::{self, Word};

use crate::failure::{Failure, attempt};
use crate::helper::session;
use crate::process::{server, shmem};
use crate::source::decoder::Decoder;
use crate::source::in_flight::InFlight;
use crate::source::replay::Replay;
use crate::source::running_xacts::RunningXacts;
use crate::source::slot::{Prefix, Slot};
use crate::source::stall::Stall;
use crate::source::trust::Trust;
use crate::source::{crash_page, decoder, invalidation, plugin, slot, stall};

/// A round gives the worker a chance to do its other work after this long.
const ROUND: Duration = Duration::from_millis(50);
/// Records between two looks at the clock and the hub.
const RECORDS: u32 = 64;
/// The slot is moved when it can go this far, or this long after the last time.
const CONFIRM_BYTES: u64 = 16 << 20;
const CONFIRM_DELAY: Duration = Duration::from_millis(200);
/// Each change in a subtransaction for this long after one has failed.
const CAREFUL: Duration = Duration::from_secs(60);
/// The hub had no room for news that can wait.
const SOON: Duration = Duration::from_millis(20);

/// When [`Stream::round`] wants to be called again at the latest; `None`: when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) wait: Option<Duration>,
}

/// The decoder of one database; lives as long as its worker and belongs to its main thread.
#[derive(Debug)]
pub(crate) struct Stream {
    slot_prefix: String,
    /// Used by the callbacks while the decoder runs, and by nobody else then.
    replay: NonNull<Replay>,
    decoder: Option<Decoder>,
    epoch: Epoch,
    /// What [`Word::Live`] said last; `None`: has to be said (again).
    announced: Option<Epoch>,
    running_xacts: RunningXacts,
    /// The slot is new: these it will not decode, and joins could not see them yet.
    before_slot: Option<InFlight>,
    stall: Stall,
    /// Where decoding got to before the last error: getting past it means that it is overcome.
    failed_at: Option<Lsn>,
    careful_until: Option<Instant>,
    confirmed_at: Instant,
    trust: Trust,
    /// Bytes of WAL that the server may keep for it.
    reach: u64,
    owner: pg_sys::ResourceOwner,
}

impl Stream {
    /// `slot_prefix`: `tide.slot_name`, or empty for `tide_<oid of the database>`; `reach`: how much
    /// WAL the server may hold back.
    pub(crate) fn new(
        slot_prefix: String,
        publication: String,
        largest_event: usize,
        reach: u64,
    ) -> Stream {
        // A name with a zero byte in it is no publication's.
        let publication = CString::new(publication).unwrap_or_default();
        let replay = NonNull::from(Box::leak(Box::new(Replay::new(publication, largest_event))));
        plugin::install(replay.as_ptr());
        invalidation::listen();
        // SAFETY: main thread; the name is a constant.
        let owner = unsafe {
            pg_sys::ResourceOwnerCreate(std::ptr::null_mut(), c"pg_tide decoder".as_ptr())
        };
        Stream {
            slot_prefix,
            replay,
            decoder: None,
            epoch: Epoch::default(),
            announced: None,
            running_xacts: RunningXacts::default(),
            before_slot: None,
            stall: Stall::default(),
            failed_at: None,
            careful_until: None,
            confirmed_at: Instant::now(),
            trust: Trust::new(reach),
            reach,
            owner,
        }
    }

    /// Decodes all WAL that has been flushed, opening the stream (and creating the slot) first if
    /// need be, and moves the slot to [`server::confirmed`]. Outside a transaction only. Errors
    /// are handled inside; only what ends the process (SIGTERM's FATAL) does not return.
    pub(crate) fn round(&mut self) -> Next {
        if crash_page::is_skip_wanted() {
            self.close();
            self.stall.retry_now();
        }
        if let Some(wait) = self.stall.remaining() {
            return Next { wait: Some(wait) };
        }
        self.own_resources();
        match attempt(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(next)) => next,
            Ok(Err(reason)) => self.stall(reason),
            Err(error) => self.recover(&error),
        }
    }

    /// The settings were reloaded: a stream that is stalled looks again at once.
    pub(crate) fn retry_now(&mut self) {
        self.stall.retry_now();
    }

    /// There is another server: it is told all that the slot holds.
    pub(crate) fn begin_again(&mut self) {
        self.close();
        self.replay().feed.restart();
        self.trust.begin();
        self.stall.retry_now();
    }

    /// The server has failed.
    pub(crate) fn server_failed(&mut self) {
        let fed = self.replay().feed.told();
        let fed = self.decoder.as_ref().map_or(fed, |decoder| decoder.position().max(fed));
        self.trust.server_failed(fed, self.announced.is_some());
        self.announced = None;
    }

    /// The server has dealt with everything before this ping.
    pub(crate) fn proven(&mut self, ping: u64) {
        self.trust.proven(ping);
    }

    /// Closes the context and releases the slot; the next round opens it again.
    pub(crate) fn close(&mut self) {
        self.own_resources();
        let closed = attempt(AssertUnwindSafe(|| {
            if let Some(decoder) = &mut self.decoder {
                decoder.confirm(server::confirmed().min(decoder.position()));
            }
            if let Some(decoder) = self.decoder.take() {
                decoder.close();
            }
        }));
        if let Err(error) = closed {
            self.clean_up(&error);
        }
        self.announced = None;
    }

    /// Drops the slot: the extension or the database goes away.
    pub(crate) fn drop_slot(&mut self) {
        self.close();
        let dropped = attempt(AssertUnwindSafe(|| {
            let Ok(prefix) = Prefix::new(&self.slot_prefix) else { return };
            for slot in slot::find(&prefix) {
                slot::drop(&slot.name);
                log!("pg_tide: dropped replication slot \"{}\"", slot.name.to_string_lossy());
            }
        }));
        if let Err(error) = dropped {
            let failure = self.clean_up(&error);
            warning!("pg_tide: could not drop the replication slot: {}", failure.message);
        }
    }

    /// The replay, when the decoder does not run.
    fn replay(&mut self) -> &mut Replay {
        // SAFETY: leaked, so alive; the callbacks use it only while the decoder runs, and no
        // reference from here is kept over that.
        unsafe { self.replay.as_mut() }
    }

    fn run(&mut self) -> Result<Next, String> {
        if self.decoder.is_none() && !self.open()? {
            return Ok(Next { wait: Some(RunningXacts::POLL) });
        }
        self.replay().pass_on_invalidations();
        let is_behind = self.decode();
        self.settle();
        self.confirm();
        let wait = if is_behind { Some(Duration::ZERO) } else { self.deadline() };
        Ok(Next { wait })
    }

    /// `false`: not yet; transactions have to end first.
    fn open(&mut self) -> Result<bool, String> {
        if let Some(reason) = stall::missing_setting() {
            return Err(reason);
        }
        let prefix = Prefix::new(&self.slot_prefix).map_err(|error| error.to_string())?;
        if self.trust.take_given_up() {
            self.give_up(&prefix, "server_failed", "the server failed twice over what it holds");
        }
        if crash_page::is_skip_wanted() {
            self.give_up(&prefix, "skipped", "tide.skip_to() was called");
            crash_page::skipped();
        }
        for name in slot::of_other_names(&prefix) {
            slot::drop(&name);
            let name = name.to_string_lossy();
            log!("pg_tide: dropped replication slot \"{name}\": tide.slot_name is another by now");
        }
        let slot = match self.usable_slot(&prefix) {
            Some(slot) => slot,
            None => {
                if let Some(news) = self.running_xacts.waits_for() {
                    if let Some(reason) = news {
                        self.say(reason);
                    }
                    return Ok(false);
                }
                let slot = slot::create(&prefix).ok_or("no randomness for a slot's name")?;
                log!("pg_tide: created replication slot \"{}\"", slot.name.to_string_lossy());
                let feed = &mut self.replay().feed;
                feed.restart();
                // Whatever has changed in what was skipped.
                feed.catalog(CatalogChange::All);
                self.before_slot = Some(InFlight::now());
                slot
            }
        };
        if self.before_slot.as_mut().is_some_and(|commits| !commits.are_visible()) {
            return Ok(false);
        }
        self.before_slot = None;
        crash_page::admit(slot.generation)?;
        self.running_xacts = RunningXacts::default();
        let decoder = Decoder::open(&slot.name);
        // SAFETY: reads shared memory, set before any worker runs.
        let timeline = unsafe { pg_sys::GetWALInsertionTimeLine() };
        self.epoch = Epoch { generation: slot.generation, timeline };
        self.replay().set_generation(slot.generation);
        // SAFETY: set when the worker connected to its database.
        shmem::set_generation(unsafe { pg_sys::MyDatabaseId }, slot.generation);
        let from = decoder.confirmed();
        self.decoder = Some(decoder);
        self.announce(from);
        Ok(true)
    }

    /// Gives up what the slot holds: a new one begins after it. Rows of outboxes that were not
    /// published are taken over by it. Clients that would resume are told the cause.
    fn give_up(&mut self, prefix: &Prefix, cause: &'static str, why: &str) {
        for slot in slot::find(prefix) {
            slot::drop(&slot.name);
            log!("pg_tide: dropped replication slot \"{}\": {why}", slot.name.to_string_lossy());
        }
        self.trust.set_cause(cause);
    }

    /// The slot there is; those that are lost, or superfluous, are dropped.
    fn usable_slot(&self, prefix: &Prefix) -> Option<Slot> {
        let mut slots = slot::find(prefix).into_iter();
        let first = slots.next();
        let (usable, lost) = match first {
            Some(slot) if !slot.lost => (Some(slot), None),
            other => (None, other),
        };
        for slot in lost.into_iter().chain(slots) {
            let name = slot.name.to_string_lossy();
            slot::drop(&slot.name);
            log!(
                "pg_tide: dropped replication slot \"{name}\": its WAL was gone, or it was one too many"
            );
        }
        usable
    }

    fn announce(&mut self, from: Lsn) {
        if self.failed_at.is_none() {
            self.stall.overcome();
        }
        if self.announced != Some(self.epoch) {
            let cause = self.trust.cause().map(str::to_owned);
            // SAFETY: reads shared memory.
            let until = Lsn(unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) });
            // SAFETY: as above.
            let next_xid = unsafe { pg_sys::ReadNextFullTransactionId() }.value as u32;
            server::tell(&Word::Live { epoch: self.epoch, from, until, next_xid, cause });
            self.announced = Some(self.epoch);
        }
    }

    /// Reads what has been flushed; `true`: there is more, but the worker's other work is due.
    fn decode(&mut self) -> bool {
        let began = Instant::now();
        let is_careful = self.careful_until.is_some_and(|until| until > began);
        self.replay().set_careful(is_careful);
        let mut records = 0_u32;
        loop {
            check_for_interrupts!();
            let Some(decoder) = &mut self.decoder else { return false };
            let advanced = decoder.advance();
            self.own_resources();
            if !advanced {
                return false;
            }
            records += 1;
            if records.is_multiple_of(RECORDS) {
                self.breathe();
                if began.elapsed() > ROUND {
                    return true;
                }
            }
        }
    }

    /// Between two records of a long round.
    fn breathe(&mut self) {
        let Some(position) = self.decoder.as_ref().map(Decoder::position) else { return };
        let feed = &mut self.replay().feed;
        feed.nudge();
        feed.decoded(position, false);
        self.confirm();
    }

    /// At the end of a round: hands over what is left.
    fn settle(&mut self) {
        let Some(position) = self.decoder.as_ref().map(Decoder::position) else { return };
        if self.failed_at.is_some_and(|failed| position >= failed) {
            self.failed_at = None;
            if self.stall.overcome() {
                self.announced = None;
                self.announce(position);
            }
        }
        if self.replay().take_was_held() {
            self.announced = None;
            self.announce(position);
        }
        let replay = self.replay();
        replay.pass_on_invalidations();
        replay.report_forged();
        replay.feed.flush();
        replay.feed.decoded(position, true);
        self.trust.ask_for_proof(position);
    }

    /// Moves the slot as far as the hub lets it, if that is worth it.
    fn confirm(&mut self) {
        let told = self.replay().feed.told();
        let Some(decoder) = &mut self.decoder else { return };
        self.trust.watch(told, server::confirmed().max(decoder.confirmed()));
        let target = server::confirmed().min(decoder.position());
        let distance = target.0.saturating_sub(decoder.confirmed().0);
        let is_due = self.confirmed_at.elapsed() >= CONFIRM_DELAY || distance >= CONFIRM_BYTES;
        if distance > 0 && is_due {
            decoder.confirm(target);
            self.confirmed_at = Instant::now();
        }
    }

    /// When to be called again if nothing happens.
    fn deadline(&mut self) -> Option<Duration> {
        let decoder = self.decoder.as_ref()?;
        let (position, confirmed) = (decoder.position(), decoder.confirmed());
        if self.replay().feed.told() < position {
            return Some(SOON);
        }
        let is_pending = server::confirmed().min(position) > confirmed;
        is_pending.then(|| CONFIRM_DELAY.saturating_sub(self.confirmed_at.elapsed()))
    }

    /// Something outside keeps the stream from going on.
    fn stall(&mut self, reason: String) -> Next {
        self.announced = None;
        if self.stall.met(&reason) {
            log!("pg_tide: the stream cannot go on: {reason}");
        }
        self.own_resources();
        if let Err(error) = attempt(AssertUnwindSafe(|| self.keep_to_limit())) {
            let failure = self.clean_up(&error);
            warning!("pg_tide: could not drop the replication slot: {}", failure.message);
        }
        // It may be another server than the one that was told before.
        server::offer(&link::json(&Word::Stalled { reason }));
        Next { wait: self.stall.remaining() }
    }

    /// Nobody but this would end what a stream that cannot go on has the server keep. What it has not
    /// told is lost then, and clients are told so.
    fn keep_to_limit(&mut self) {
        let Ok(prefix) = Prefix::new(&self.slot_prefix) else { return };
        let is_past = |slot: &Slot| slot.untold() > self.reach;
        if self.stall.is_lasting() && slot::find(&prefix).iter().any(is_past) {
            self.close();
            self.give_up(&prefix, "wal_limit", "it held more than tide.max_slot_wal_keep_size");
        }
    }

    /// Waiting, with nothing wrong: said once.
    fn say(&mut self, reason: String) {
        log!("pg_tide: {reason}");
        self.announced = None;
        server::offer(&link::json(&Word::Stalled { reason }));
    }

    /// After an error anywhere: cleans up, and decides how to go on.
    fn recover(&mut self, error: &CaughtError) -> Next {
        if server::is_gone() {
            // Whatever it was, it was about the server: the next one is told it again.
            self.clean_up(error);
            self.replay().recover();
            return Next { wait: Some(Duration::ZERO) };
        }
        let was_open = self.decoder.is_some();
        let position = self.decoder.as_ref().map(Decoder::position);
        let failure = self.clean_up(error);
        let change = self.replay().recover();
        if !was_open {
            return self.stall(stall::explain(&failure));
        }
        let got_further = position > self.failed_at;
        self.failed_at = position.max(self.failed_at);
        if change.is_some() && got_further {
            // The same again, with each change by itself.
            self.careful_until = Some(Instant::now() + CAREFUL);
            return Next { wait: Some(Duration::ZERO) };
        }
        let Failure { sqlstate, condition, .. } = &failure;
        self.stall(format!("decoding failed: {condition} (SQLSTATE {sqlstate})"))
    }

    fn clean_up(&mut self, error: &CaughtError) -> Failure {
        crash_page::idle();
        let failure = Failure::from(error);
        decoder::clean_up_after_error();
        if let Some(decoder) = self.decoder.take() {
            decoder.abandon();
        }
        decoder::release_slot();
        self.own_resources();
        failure
    }

    /// Transactions take the resource owner with them when they end.
    fn own_resources(&self) {
        // SAFETY: main thread; the owner lives as long as the process.
        unsafe { pg_sys::CurrentResourceOwner = self.owner }
    }
}

/// Fixes what values are printed by besides what every session of pg_tide's has, so that decoding
/// the same WAL again gives the same events. To be called once, after the worker has connected.
pub(crate) fn pin_output_settings() {
    session::pin_printing();
    // Unless it is configured: what is too large for it goes to disk, and memory stays small.
    // SAFETY: main thread; both are constants.
    unsafe {
        pg_sys::SetConfigOption(
            c"logical_decoding_work_mem".as_ptr(),
            c"16MB".as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_DYNAMIC_DEFAULT,
        );
    }
}

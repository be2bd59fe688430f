//! What this process takes from the system, and what it gives up.

use std::collections::BTreeMap;
use std::io;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{Pid, Resource, Rlimit, Signal, getpid};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// Beyond what the settings allow for queues, history and connections: code, stacks, the
/// allocator's own waste.
const MARGIN: u64 = 256 << 20;

/// Ends this process when the worker that started it ends, however that comes about.
///
/// # Errors
/// The worker has ended already.
pub fn die_with(worker: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the signal was asked for.
    let parent = rustix::process::getppid().map(Pid::as_raw_nonzero);
    match parent {
        Some(parent) if parent.get() == worker => Ok(()),
        _ => Err(io::Error::other("the worker has ended")),
    }
}

/// Limits memory, so that this process alone ends when it wants too much, and offers it to the
/// kernel as the first to go when there is too little for all.
pub fn limit_memory(memory_limit: usize) {
    let most = (memory_limit as u64).saturating_mul(2).saturating_add(MARGIN);
    let before = rustix::process::getrlimit(Resource::Data);
    let limit =
        Rlimit { current: Some(before.current.map_or(most, |now| now.min(most))), ..before };
    if let Err(error) = rustix::process::setrlimit(Resource::Data, limit) {
        log::warn!("could not limit the server's memory: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        log::info!("could not offer the server to the kernel for want of memory: {error}");
    }
}

/// What keeps this process to itself, whoever has taken hold of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// No file can be opened, made or removed, and no signal sent to others.
    pub landlock: bool,
    /// No system calls but those that serving clients takes.
    pub seccomp: bool,
}

impl Confinement {
    /// The names that `tide.status()` and `/health` have for it.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.landlock, "landlock"), (self.seccomp, "seccomp")];
        all.into_iter().filter_map(|(holds, name)| holds.then_some(name)).collect()
    }
}

/// Gives up files, new sockets, programs and other processes, for the calling thread and those that
/// it starts from now on. The operating system's user is the one that owns the database, and whom
/// Postgres's own socket may well take for a superuser.
///
/// What the kernel does not have cannot be used; that is said in the log and in the answer.
pub fn confine() -> Confinement {
    let done = |what: &str, outcome: Result<(), String>| {
        if let Err(error) = &outcome {
            log::warn!("the server could not confine itself by {what}: {error}");
        }
        outcome.is_ok()
    };
    Confinement {
        landlock: done("Landlock", confine_by_landlock()),
        seccomp: done("seccomp", confine_by_seccomp()),
    }
}

fn confine_by_landlock() -> Result<(), String> {
    // Best effort: of newer kinds of access, those that the kernel knows.
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self());
    match restricted.map_err(|error| error.to_string())?.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has none".into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn confine_by_seccomp() -> Result<(), String> {
    let filter = filter().map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
}

/// The calls that serving clients takes once the sockets are bound, whatever their arguments.
const CALLS: [libc::c_long; 47] = [
    // Sockets that are there, and those that are accepted.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_dup,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_sysinfo,
    // Threads, and how they end.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The rest.
    libc::SYS_getrandom,
    libc::SYS_uname,
];

/// Older forms of some of them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Those that depend on their arguments.
fn calls_with_arguments() -> Result<Vec<(libc::c_long, SeccompRule)>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let when = |argument, length, comparison, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, length, comparison, value)?])
    };
    let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
    let (thread, exec) = (libc::CLONE_THREAD as u64, libc::PROT_EXEC as u64);
    Ok(vec![
        // Threads, but no processes: one that outlives this one may be the postmaster's to wait for,
        // which takes the end of one that it does not know for a crash.
        (libc::SYS_clone, when(0, Dword, MaskedEq(thread), thread)?),
        // An abort is a signal to oneself.
        (libc::SYS_tgkill, when(0, Dword, Eq, own)?),
        // To nobody but who is connected: an address could be anybody's.
        (libc::SYS_sendto, when(4, Qword, Eq, 0)?),
        // No limit is changed.
        (libc::SYS_prlimit64, when(2, Qword, Eq, 0)?),
        // No code comes to be.
        (libc::SYS_mmap, when(2, Dword, MaskedEq(exec), 0)?),
        (libc::SYS_mprotect, when(2, Dword, MaskedEq(exec), 0)?),
        (libc::SYS_prctl, when(0, Dword, Eq, libc::PR_SET_NAME as u64)?),
        (libc::SYS_fcntl, when(1, Dword, Eq, libc::F_GETFD as u64)?),
        (libc::SYS_fcntl, when(1, Dword, Eq, libc::F_GETFL as u64)?),
        (libc::SYS_fcntl, when(1, Dword, Eq, libc::F_DUPFD_CLOEXEC as u64)?),
    ])
}

/// Says of all others that the kernel does not have them, so that whoever tries a newer one takes
/// the older.
fn filter() -> Result<BpfProgram, BackendError> {
    let always = CALLS.iter().chain(OLDER).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<_, _> = always.collect();
    for (call, rule) in calls_with_arguments()? {
        rules.entry(call).or_default().push(rule);
    }
    let denied = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, denied, SeccompAction::Allow, architecture)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// In a thread of its own: there is no way back.
    fn confined<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
        let confined = thread::spawn(|| {
            let confinement = confine();
            assert!(confinement.seccomp, "{confinement:?}");
            f()
        });
        confined.join().expect("no panic")
    }

    #[test]
    fn nothing_of_others_can_be_reached_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");

        let refused = confined(move || {
            use std::fs::Permissions;
            use std::os::unix::fs::PermissionsExt;

            let signal = rustix::process::kill_process(getpid(), Signal::URG);
            let limit = Rlimit { current: None, maximum: None };
            let limit = rustix::process::setrlimit(Resource::Data, limit);
            [
                TcpStream::connect(address).err(),
                TcpListener::bind("127.0.0.1:0").err(),
                UnixStream::connect("/tmp/.s.PGSQL.5432").err(),
                UnixStream::pair().err(),
                Command::new("/bin/true").spawn().err(),
                File::open("/proc/self/status").err(),
                std::fs::set_permissions(".", Permissions::from_mode(0o777)).err(),
                signal.err().map(io::Error::from),
                limit.err().map(io::Error::from),
            ]
            .map(|error| error.and_then(|error| error.raw_os_error()))
        });

        assert_eq!(refused, [Some(libc::ENOSYS); 9]);
    }

    #[test]
    fn clients_are_accepted_and_answered_in_threads_that_start_later() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");

        let accepted = confined(move || {
            thread::spawn(move || {
                let (mut socket, _) = listener.accept()?;
                io::Write::write_all(&mut socket, b"hello")?;
                Ok::<_, io::Error>(TcpListener::bind("127.0.0.1:0").is_err())
            })
            .join()
        });

        assert!(accepted.expect("no panic").expect("accepted"), "the thread is confined as well");
        let mut heard = String::new();
        io::Read::read_to_string(&mut &client, &mut heard).expect("answered");
        assert_eq!(heard, "hello");
    }
}

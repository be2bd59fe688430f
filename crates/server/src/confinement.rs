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

/// What this process cannot do any more, whoever has taken hold of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Open, make or remove any file.
    pub files: bool,
    /// Open or bind a socket, connect to one, run a program, look into another process or send it
    /// a signal.
    pub calls: bool,
}

impl Confinement {
    /// What was given up, by the names that `tide.status()` and `/health` use.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.files, "files"), (self.calls, "system calls")];
        all.into_iter().filter_map(|(is_given_up, name)| is_given_up.then_some(name)).collect()
    }
}

/// Gives up files, new sockets, programs and other processes, for the calling thread and those that
/// it starts from now on. The operating system's user is the one that owns the database, and whom
/// Postgres's own socket may well take for a superuser.
///
/// What the kernel does not have cannot be given up; that is said in the log and in the answer.
pub fn give_up_the_rest() -> Confinement {
    let give_up = |what: &str, given_up: Result<(), String>| {
        if let Err(error) = &given_up {
            log::warn!("the server could not give up {what}: {error}");
        }
        given_up.is_ok()
    };
    Confinement {
        files: give_up("the file system", give_up_files()),
        calls: give_up("sockets, programs and other processes", give_up_calls()),
    }
}

fn give_up_files() -> Result<(), String> {
    let files = AccessFs::from_all(ABI::V5);
    // Best effort: of newer kinds of access, those that the kernel knows.
    let restricted = Ruleset::default()
        .handle_access(files)
        .and_then(|ruleset| ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.restrict_self());
    match restricted.map_err(|error| error.to_string())?.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock".into()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn give_up_calls() -> Result<(), String> {
    let of = |calls, errno| filter(calls, errno).map_err(|error| error.to_string());
    let filters = [
        of(calls_given_up().map_err(|error| error.to_string())?, libc::EPERM)?,
        // Its flags cannot be looked at. Who hears that there is no such call takes the older one.
        of(vec![(libc::SYS_clone3, Vec::new())], libc::ENOSYS)?,
    ];
    filters
        .iter()
        .try_for_each(|filter| seccompiler::apply_filter(filter).map_err(|error| error.to_string()))
}

/// Calls that nothing here has a use for once the sockets are bound.
const CALLS: [libc::c_long; 41] = [
    // Sockets besides those that are there.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes: of the same user, and so Postgres's.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Their memory, if shared_memory_type is sysv.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semctl,
    libc::SYS_semop,
    // What does what other calls do, unseen by a filter of calls.
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_keyctl,
    libc::SYS_add_key,
];

/// The older calls that make processes, where there are any.
#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[];

/// Numbers of the same calls under the second ABI of x86-64, where a kernel still has that.
#[cfg(target_arch = "x86_64")]
const X32: Option<libc::c_long> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const X32: Option<libc::c_long> = None;

/// `F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX` of `asm-generic/fcntl.h`.
const SET_OWNER: [u64; 3] = [8, 10, 15];
/// `FIOSETOWN` and `SIOCSPGRP` of `asm-generic/sockios.h`.
const IOCTL_SET_OWNER: [u64; 2] = [0x8901, 0x8902];

/// Calls, each with the arguments under which it is given up; none: under any.
type Calls = Vec<(libc::c_long, Vec<SeccompRule>)>;

fn calls_given_up() -> Result<Calls, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let when = |conditions: &[(u8, SeccompCmpOp, u64)]| {
        let conditions = conditions.iter().map(|(argument, comparison, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)
        });
        SeccompRule::new(conditions.collect::<Result<_, _>>()?)
    };
    let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
    let (thread, fast_open) = (libc::CLONE_THREAD as u64, libc::MSG_FASTOPEN as u64);
    let any_of = |commands: &[u64]| {
        commands.iter().map(|command| when(&[(1, Eq, *command)])).collect::<Result<Vec<_>, _>>()
    };
    let with_arguments = [
        // An abort is a signal to oneself.
        (libc::SYS_tgkill, vec![when(&[(0, Ne, own)])?]),
        (libc::SYS_prlimit64, vec![when(&[(0, Ne, 0), (0, Ne, own)])?]),
        // Threads may be started. A process that outlives this one could be the postmaster's to
        // wait for, if that is the first of its kind, and how it ends would be a crash to it.
        (libc::SYS_clone, vec![when(&[(0, MaskedEq(thread), 0)])?]),
        // Whoever owns a descriptor gets signals by it.
        (libc::SYS_fcntl, any_of(&SET_OWNER)?),
        (libc::SYS_ioctl, any_of(&IOCTL_SET_OWNER)?),
        // Connects.
        (libc::SYS_sendto, vec![when(&[(3, MaskedEq(fast_open), fast_open)])?]),
        (libc::SYS_sendmsg, vec![when(&[(2, MaskedEq(fast_open), fast_open)])?]),
        (libc::SYS_sendmmsg, vec![when(&[(3, MaskedEq(fast_open), fast_open)])?]),
    ];
    let always = CALLS.iter().chain(FORKS).map(|call| (*call, Vec::new()));
    Ok(always.chain(with_arguments).collect())
}

fn filter(calls: Calls, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<_, _> = calls.into_iter().collect();
    if let Some(bit) = X32 {
        let twins: Vec<_> = rules.iter().map(|(call, rule)| (call | bit, rule.clone())).collect();
        rules.extend(twins);
    }
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        denied,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
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
            let confinement = give_up_the_rest();
            assert!(confinement.calls, "{confinement:?}");
            f()
        });
        confined.join().expect("no panic")
    }

    #[test]
    fn nothing_of_others_can_be_reached_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");

        let refused = confined(move || {
            [
                TcpStream::connect(address).err(),
                TcpListener::bind("127.0.0.1:0").err(),
                UnixStream::connect("/tmp/.s.PGSQL.5432").err(),
                Command::new("/bin/true").spawn().err(),
                rustix::process::kill_process(getpid(), Signal::URG).err().map(io::Error::from),
            ]
            .map(|error| error.map(|error| error.kind()))
        });

        assert_eq!(refused, [Some(io::ErrorKind::PermissionDenied); 5]);
    }

    #[test]
    fn no_file_can_be_opened_where_the_kernel_can_see_to_it() {
        let has_landlock = thread::spawn(give_up_the_rest).join().expect("no panic").files;

        let opened = confined(|| File::open("/proc/self/status").map(drop));

        assert_eq!(opened.is_err(), has_landlock, "{opened:?}");
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

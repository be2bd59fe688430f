//! What the kernel says of a process: CPU time and memory.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::support::cluster::signal;
use super::support::family::family;
use super::support::wait_until;

/// CPU seconds, user and system, of all threads of a process, and of those it has started, so far.
pub fn cpu(pid: i32) -> f64 {
    family(pid).into_iter().map(own_cpu).sum()
}

fn own_cpu(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold spaces.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

/// CPU seconds of several processes since a moment.
#[derive(Debug)]
pub struct Stopwatch {
    processes: Vec<(i32, f64)>,
}

impl Stopwatch {
    pub fn start(pids: &[i32]) -> Stopwatch {
        Stopwatch { processes: pids.iter().map(|pid| (*pid, cpu(*pid))).collect() }
    }

    pub fn seconds(&self) -> f64 {
        self.processes.iter().map(|(pid, before)| cpu(*pid) - before).sum()
    }
}

pub fn this() -> i32 {
    std::process::id() as i32
}

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub rss: f64,
    pub pss: f64,
    /// What is the process's alone: not files, not shared memory.
    pub anonymous: f64,
    /// The highest `rss` since [`forget_peak`].
    pub peak: f64,
}

impl Memory {
    fn and(self, other: Memory) -> Memory {
        Memory {
            rss: self.rss + other.rss,
            pss: self.pss + other.pss,
            anonymous: self.anonymous + other.anonymous,
            peak: self.peak + other.peak,
        }
    }
}

/// Of a process and those that it has started.
pub fn memory(pid: i32) -> Memory {
    family(pid).into_iter().map(own_memory).fold(Memory::default(), Memory::and)
}

fn own_memory(pid: i32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    Memory {
        rss: field(&status, "VmRSS:"),
        pss: field(&rollup, "Pss:"),
        anonymous: field(&status, "RssAnon:"),
        peak: field(&status, "VmHWM:"),
    }
}

/// The same without `pss`, which takes the kernel much longer to tell.
pub fn quick_memory(pid: i32) -> Memory {
    family(pid).into_iter().map(own_quick_memory).fold(Memory::default(), Memory::and)
}

fn own_quick_memory(pid: i32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    Memory {
        rss: field(&status, "VmRSS:"),
        pss: 0.0,
        anonymous: field(&status, "RssAnon:"),
        peak: field(&status, "VmHWM:"),
    }
}

/// Makes the peak the memory of this moment.
pub fn forget_peak(pid: i32) {
    for pid in family(pid) {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    }
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until a process has used no CPU for a while.
pub fn wait_until_idle(pid: i32) {
    let mut last = cpu(pid);
    let mut quiet = 0;
    wait_until(&format!("process {pid} is idle"), || {
        let now = cpu(pid);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        (quiet >= 10).then_some(())
    });
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped(i32);

impl Stopped {
    /// Stops a process that is idle, and so holds no lock that others would wait for.
    pub fn new(pid: i32) -> Stopped {
        wait_until_idle(pid);
        signal("STOP", pid);
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("CONT", self.0);
    }
}

/// Lets this process, and the servers it starts, have as many sockets as the system allows.
pub fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

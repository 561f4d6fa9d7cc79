//! Processes as the kernel knows them: who one is beyond its number, signals that cannot hit a stranger, what it uses.
//! Nothing here knows what a node is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::control::cause::Ended;

/// A process and no other, ever: a number alone is given to somebody else one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot.
    pub start_time: u64,
    /// Which boot.
    pub boot_id: String,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The kernel's letter for its state: `T` frozen, `Z` ended but not yet collected.
    pub state: char,
    /// Time on a processor so far, in clock ticks.
    pub cpu_ticks: u64,
    /// When it was started, in clock ticks since the boot.
    pub start_time: u64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
}

impl Stat {
    /// True where the process is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.state == 'T' || self.state == 't'
    }

    /// True where the process ended, though its number is not free yet.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == 'Z' || self.state == 'X'
    }
}

/// Reads what the kernel says of a process.
///
/// # Errors
/// What the system said; `NotFound` where there is no such process.
pub fn stat(pid: u32) -> io::Result<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has another form"))
    })
}

/// The name in the second field may hold spaces and brackets: fields count from the last bracket.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_ticks: number(11)? + number(12)?,
        start_time: number(19)?,
        resident_bytes: number(21)? * page_size(),
    })
}

/// True where every thread of the process is frozen: the state of the process alone is that of its first thread.
#[must_use]
pub fn is_frozen_whole(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut any = false;
    for thread in threads {
        let Ok(thread) = thread else { return false };
        let Ok(text) = fs::read_to_string(thread.path().join("stat")) else { continue };
        match parse_stat(&text) {
            Some(stat) if stat.is_frozen() => any = true,
            Some(_) | None => return false,
        }
    }
    any
}

/// The processes that have this argument right behind that one on their command line.
#[must_use]
pub fn with_argument(name: &str, value: &str) -> Vec<u32> {
    pids().into_iter().filter(|pid| argument(*pid, name).is_some_and(|found| found == value)).collect()
}

/// What stands right behind this word on a process's command line.
#[must_use]
pub fn argument(pid: u32, name: &str) -> Option<OsString> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    words.find(|word| *word == name.as_bytes())?;
    words.next().map(|word| OsString::from_vec(word.to_vec()))
}

/// Every process there is.
#[must_use]
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// True where this process sees the same files by the same names as we do: it is in no container of its own.
#[must_use]
pub fn sees_our_files(pid: u32) -> bool {
    let of = |who: &str| {
        fs::read_link(format!("/proc/{who}/ns/mnt")).and_then(|mounts| {
            let root = fs::metadata(format!("/proc/{who}/root"))?;
            Ok((mounts, root.dev(), root.ino()))
        })
    };
    matches!((of(&pid.to_string()), of("self")), (Ok(theirs), Ok(ours)) if theirs == ours)
}

/// True where a process works in this directory, which was deleted: it has it open, and the kernel says so.
#[must_use]
pub fn has_deleted(pid: u32, directory: &Path) -> bool {
    let mut deleted = directory.as_os_str().to_owned();
    deleted.push(" (deleted)");
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    sees_our_files(pid)
        && open
            .flatten()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|open| open.as_os_str() == deleted))
}

/// True where both names lead to one file or directory.
#[must_use]
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || is_one_place(fs::metadata(one), fs::metadata(other))
}

/// True where this name leads to the file or directory that is open here: it was not deleted, moved or replaced.
#[must_use]
pub fn is_at(open: &fs::File, path: &Path) -> bool {
    is_one_place(open.metadata(), fs::metadata(path))
}

fn is_one_place(one: io::Result<fs::Metadata>, other: io::Result<fs::Metadata>) -> bool {
    matches!((one, other), (Ok(one), Ok(other)) if (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// True where a process has a file open in this directory, whatever the directory was called when it did that; or where
/// its output goes to this file, which also tells where the directory is seen in two places.
///
/// # Errors
/// What the system said: mostly that the process is another user's.
pub fn has_open(pid: u32, directory: &Path, output: &Path) -> io::Result<bool> {
    let Ok(directory) = directory.canonicalize() else { return Ok(false) };
    let standard = ["1", "2"].map(|number| PathBuf::from(format!("/proc/{pid}/fd/{number}")));
    // A deleted file tells nothing: the directory may have been deleted with it, and made anew.
    let inside = |path: &Path| {
        let deleted = |open: &Path| open.as_os_str().as_bytes().ends_with(b" (deleted)");
        fs::read_link(path).is_ok_and(|open| open.starts_with(&directory) && !deleted(&open))
    };
    // Mostly these two tell, and a node with many clients has thousands of others.
    if standard.iter().any(|path| inside(path) || is_same_file(path, output)) {
        return Ok(true);
    }
    for open in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if inside(&open?.path()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Children of this process that ended and were not collected yet.
#[must_use]
pub fn ended_children() -> Vec<u32> {
    let own = std::process::id();
    pids()
        .into_iter()
        .filter(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            text.rfind(')').is_some_and(|end| {
                let mut fields = text[end + 1..].split_ascii_whitespace();
                fields.next() == Some("Z") && fields.next() == Some(own.to_string().as_str())
            })
        })
        .collect()
}

/// Milliseconds since the boot, also while the machine slept: what a deadline is written down in that another process
/// must keep.
#[must_use]
pub fn milliseconds_since_boot() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Which boot this is.
///
/// # Errors
/// What the system said.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Clock ticks a second, the unit of `/proc/PID/stat`.
#[must_use]
pub fn ticks_per_second() -> u64 {
    system_number(SysconfVar::CLK_TCK, 100)
}

fn page_size() -> u64 {
    system_number(SysconfVar::PAGE_SIZE, 4096)
}

fn system_number(variable: SysconfVar, usual: u64) -> u64 {
    sysconf(variable).ok().flatten().and_then(|number| u64::try_from(number).ok()).unwrap_or(usual)
}

/// How long the machine has been up, in clock ticks.
///
/// # Errors
/// What the system said.
pub fn uptime_ticks() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds: f64 =
        text.split_ascii_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an uptime is positive and fits"
    )]
    Ok((seconds * ticks_per_second() as f64) as u64)
}

/// Who the process with this number is now.
///
/// # Errors
/// What the system said; `NotFound` where there is none, or it has ended.
pub fn identify(pid: u32) -> io::Result<ProcessId> {
    let stat = stat(pid)?;
    if stat.has_ended() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended")));
    }
    Ok(ProcessId { pid, start_time: stat.start_time, boot_id: boot_id()? })
}

/// True while exactly this process lives.
#[must_use]
pub fn is_alive(id: &ProcessId) -> bool {
    identify(id.pid).is_ok_and(|now| now == *id)
}

/// Where the system counts the processes that it killed for memory: those of a control group where it counts them, else
/// those of the machine.
#[derive(Clone, Debug)]
pub struct MemoryCounter(PathBuf);

impl MemoryCounter {
    /// The counter of the control group that this process lives in.
    #[must_use]
    pub fn of(pid: u32) -> MemoryCounter {
        let of_group = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok().and_then(|text| {
            let group = text.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
            let counter = PathBuf::from(format!("/sys/fs/cgroup{group}/memory.events"));
            counter.exists().then_some(counter)
        });
        MemoryCounter(of_group.unwrap_or_else(|| PathBuf::from("/proc/vmstat")))
    }

    /// How many so far; 0 where the system does not say.
    #[must_use]
    pub fn read(&self) -> u64 {
        fs::read_to_string(&self.0)
            .ok()
            .and_then(|text| {
                text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            })
            .unwrap_or(0)
    }
}

/// A hold on a process: signals sent through it reach this process or nobody.
#[derive(Debug)]
pub struct Handle {
    descriptor: OwnedFd,
    /// Which process.
    pub id: ProcessId,
}

impl Handle {
    /// Takes hold of exactly this process; `None` where it no longer lives.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(id: &ProcessId) -> io::Result<Option<Handle>> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The number is pinned now: if it still belongs to the process meant, it always will.
        Ok(is_alive(id).then(|| Handle { descriptor, id: id.clone() }))
    }

    /// Takes hold of a child that was not collected yet, so that its number is surely its own, dead or alive.
    ///
    /// # Errors
    /// What the system said.
    pub fn of_child(id: &ProcessId) -> io::Result<Handle> {
        let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Handle { descriptor: pidfd_open(pid, PidfdFlags::empty())?, id: id.clone() })
    }

    /// Sends a signal; `false` where the process has ended.
    ///
    /// # Errors
    /// What the system said; `InvalidInput` where there is no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        let signal = Signal::from_named_raw(signal).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("there is no signal {signal}"))
        })?;
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Blocks this thread until the process has ended.
    pub fn wait(&self) {
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut descriptors, None) {}
    }

    /// How a process that is no child of ours ended. To be asked after [`Handle::wait`]. Nothing is known only where the
    /// kernel is older than 6.15 and its new parent has collected it already.
    ///
    /// Until its parent (init, where the one that started it died) has collected it, `/proc` tells. After that the
    /// descriptor does: it hangs up, and the kernel keeps the status with it.
    #[must_use]
    pub fn ended(&self) -> Ended {
        let uncollected = status_of_uncollected(&self.id);
        let status = uncollected.or_else(|| {
            let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::empty())];
            while let Err(rustix::io::Errno::INTR) = poll(&mut descriptors, Some(&patience)) {}
            exit_status(&self.descriptor)
        });
        status.map_or(Ended::default(), Ended::of_wait_status)
    }

    /// Another hold on the same process.
    ///
    /// # Errors
    /// What the system said.
    pub fn try_clone(&self) -> io::Result<Handle> {
        Ok(Handle { descriptor: self.descriptor.try_clone()?, id: self.id.clone() })
    }
}

/// The raw status of a process that ended and was not collected. The kernel shows it only to those who might also trace
/// the process, and a zero to others: so only that of a process of ours is believed.
fn status_of_uncollected(id: &ProcessId) -> Option<i32> {
    const EXIT_CODE: usize = 49;
    let path = format!("/proc/{}/stat", id.pid);
    let own = nix::unistd::geteuid();
    if !own.is_root() && fs::metadata(&path).ok()?.uid() != own.as_raw() {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let stat = parse_stat(&text)?;
    // Once it is collected its number may be somebody else's.
    if !stat.has_ended() || stat.start_time != id.start_time {
        return None;
    }
    text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().nth(EXIT_CODE)?.parse().ok()
}

/// `struct pidfd_info` of the kernel in its first form.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    control_group: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`: how it ended, once it was collected.
const INFO_EXIT: u64 = 1 << 3;

mod pidfd {
    // `PIDFD_GET_INFO`
    nix::ioctl_readwrite!(get_info, 0xFF, 11, super::PidfdInfo);
}

/// The raw status that `wait` would have given.
#[expect(unsafe_code, reason = "no library has this call of the kernel yet")]
fn exit_status(descriptor: &OwnedFd) -> Option<i32> {
    let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the descriptor is open, and the kernel writes at most the size that the call's number carries, which is
    // that of `PidfdInfo`.
    unsafe { pidfd::get_info(descriptor.as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 105 0 0 0 30 12 0 0 20 0 1 0 4711 3260416 200 18446744073709551615 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.cpu_ticks, stat.start_time), ('S', 42, 4711));
        assert_eq!(stat.resident_bytes, 200 * page_size());
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn a_signal_reaches_the_process_it_is_meant_for() {
        let mut child = sleeper();
        let id = identify(child.id()).unwrap();
        let handle = Handle::open(&id).unwrap().unwrap();
        assert!(handle.signal(9).unwrap());
        handle.wait();
        assert!(!is_alive(&id), "one that ended but is not collected is not alive");
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!handle.signal(9).unwrap());
        assert!(Handle::open(&id).unwrap().is_none());
    }

    #[test]
    fn a_process_with_the_number_of_another_is_left_alone() {
        let mut child = sleeper();
        let id = identify(child.id()).unwrap();
        let earlier = ProcessId { start_time: id.start_time - 1, ..id.clone() };
        let other_boot = ProcessId { boot_id: "another".to_owned(), ..id.clone() };
        assert!(Handle::open(&earlier).unwrap().is_none());
        assert!(Handle::open(&other_boot).unwrap().is_none());
        assert!(is_alive(&id));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_frozen_process_is_seen_as_frozen() {
        let mut child = sleeper();
        let handle = Handle::open(&identify(child.id()).unwrap()).unwrap().unwrap();
        handle.signal(19).unwrap();
        while !stat(child.id()).unwrap().is_frozen() {
            std::thread::yield_now();
        }
        handle.signal(9).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_exact_end_of_a_stranger_is_known_where_the_kernel_tells() {
        // Two generations: the sleeper's parent is gone, so somebody else collects it.
        for (script, expected) in [
            ("exec sleep 1000", Ended { code: None, signal: Some(15) }),
            ("trap 'exit 42' TERM; while :; do sleep 0.01; done", Ended { code: Some(42), signal: None }),
        ] {
            let parent = Command::new("sh")
                .args(["-c", &format!("sh -c \"{script}\" >/dev/null 2>&1 & echo $!")])
                .output()
                .unwrap();
            let pid = String::from_utf8(parent.stdout).unwrap().trim().parse().unwrap();
            let handle = Handle::open(&identify(pid).unwrap()).unwrap().unwrap();
            // The shell must have set its trap, which shows by the child that it then starts.
            while script.starts_with("trap")
                && fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
                    .is_ok_and(|all| all.is_empty())
            {
                std::thread::yield_now();
            }
            handle.signal(15).unwrap();
            handle.wait();
            let ended = handle.ended();
            assert!(ended == expected || (ended == Ended::default() && !kernel_tells()), "{ended}");
        }
    }

    fn kernel_tells() -> bool {
        let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
        let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }

    #[test]
    fn the_exact_end_is_known_before_and_after_the_parent_has_collected_it() {
        let mut child = sleeper();
        let handle = Handle::open(&identify(child.id()).unwrap()).unwrap().unwrap();
        handle.signal(15).unwrap();
        handle.wait();
        assert_eq!(handle.ended(), Ended { code: None, signal: Some(15) });
        child.wait().unwrap();
        let known = handle.ended();
        assert!(known.signal == Some(15) || !kernel_tells(), "{known}");
    }

    #[test]
    fn a_frozen_process_is_frozen_with_all_its_threads_and_found_by_what_it_was_given() {
        let mut child = sleeper();
        assert!(!is_frozen_whole(child.id()));
        let handle = Handle::open(&identify(child.id()).unwrap()).unwrap().unwrap();
        handle.signal(19).unwrap();
        while !is_frozen_whole(child.id()) {
            std::thread::yield_now();
        }
        assert!(with_argument("sleep", "1000").contains(&child.id()));
        assert!(!with_argument("sleep", "1001").contains(&child.id()));
        handle.signal(9).unwrap();
        child.wait().unwrap();
        assert!(!is_frozen_whole(child.id()));
    }

    #[test]
    fn the_time_since_the_boot_goes_on() {
        let before = milliseconds_since_boot();
        let ticks = uptime_ticks().unwrap() * 1000 / ticks_per_second();
        assert!(before.abs_diff(ticks) < 60_000 && milliseconds_since_boot() >= before);
    }
}

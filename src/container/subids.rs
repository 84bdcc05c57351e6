//! Numbers of users and groups that the site lets a user have in user namespaces: subuid(5), subgid(5), or what
//! nsswitch.conf(5) names in their place.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use sifon_mount::sys::account;
use sifon_mount::sys::answer::answer_of;

/// Longest that a helper may take; behind getsubids(1) may be a server on the network.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

/// Fewer numbers than this are no use: an image's users have numbers up to 65534.
const COUNT_AT_LEAST: u32 = 65_536;

/// Numbers beside the caller's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first, on the host.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What the caller may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Users.
    pub users: Range,
    /// Groups.
    pub groups: Range,
}

/// Why nothing can be mapped but the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRanges {
    /// No line for the caller.
    #[error("{file} has no range of {COUNT_AT_LEAST} numbers for {user}")]
    NotGiven {
        /// Which of the two files, or what stands for it.
        file: &'static str,
        /// The caller.
        user: String,
    },
    /// The kernel takes such a map from programs with the right for it only.
    #[error("{0} is not installed (Debian's package uidmap)")]
    NoHelper(&'static str),
}

impl Ranges {
    /// The caller's; asks getsubids(1) where that is installed.
    pub fn of_caller() -> Result<Self, NoRanges> {
        for helper in ["newuidmap", "newgidmap"] {
            if found(helper).is_none() {
                return Err(NoRanges::NoHelper(helper));
            }
        }
        let uid = rustix::process::getuid().as_raw();
        let name = account::user(uid).ok().flatten().map(|user| user.name);
        let name = name.map(|name| String::from_utf8_lossy(&name).into_owned());
        let range = |file: &'static str, option: &[&str]| {
            let listed = name.as_deref().and_then(|name| listed(name, option));
            let range = match listed {
                Some(listed) => largest(in_answer(&listed)),
                None => {
                    let text = fs::read_to_string(file).unwrap_or_default();
                    largest(in_file(&text, name.as_deref(), uid))
                }
            };
            range.ok_or_else(|| NoRanges::NotGiven {
                file,
                user: name.clone().unwrap_or_else(|| uid.to_string()),
            })
        };
        Ok(Self {
            users: range("/etc/subuid", &[])?,
            groups: range("/etc/subgid", &["-g"])?,
        })
    }

    /// In the new user namespace of the process `pid`: the caller becomes root, and these numbers follow from 1 on.
    pub fn map(&self, pid: Pid) -> io::Result<()> {
        let own = [
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ];
        for (helper, own, range) in [
            ("newuidmap", own[0], self.users),
            ("newgidmap", own[1], self.groups),
        ] {
            let program =
                found(helper).ok_or_else(|| io::Error::other(NoRanges::NoHelper(helper)))?;
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let numbers = [pid, 0, own, 1, 1, range.first, range.count];
            let mut command = Command::new(program);
            command.args(numbers.map(|number| number.to_string()));
            let (status, _) = answer_of(&mut command, b"", Instant::now() + HELPER_LIMIT)?;
            if !status.success() {
                return Err(io::Error::other(format!("{helper} ended with {status}")));
            }
        }
        Ok(())
    }
}

/// A program in PATH, or where distributions put those for administrators.
pub fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(usual)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// What getsubids(1) says; none where it is not installed or fails.
fn listed(name: &str, option: &[&str]) -> Option<String> {
    let mut command = Command::new(found("getsubids")?);
    command.args(option).arg(name);
    let (status, said) = answer_of(&mut command, b"", Instant::now() + HELPER_LIMIT).ok()?;
    status
        .success()
        .then(|| String::from_utf8_lossy(&said).into_owned())
}

fn largest(ranges: impl Iterator<Item = Range>) -> Option<Range> {
    ranges
        .filter(|range| {
            range.count >= COUNT_AT_LEAST && range.first.checked_add(range.count).is_some()
        })
        .max_by_key(|range| range.count)
}

/// Lines `0: ada 100000 65536`.
fn in_answer(text: &str) -> impl Iterator<Item = Range> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().rev();
        let count = words.next()?.parse().ok()?;
        let first = words.next()?.parse().ok()?;
        Some(Range { first, count })
    })
}

/// Lines `ada:100000:65536`, with the name or the number of a user.
fn in_file(text: &str, name: Option<&str>, uid: u32) -> impl Iterator<Item = Range> {
    let uid = uid.to_string();
    text.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        if user != uid && Some(user) != name {
            return None;
        }
        let first = fields.next()?.trim().parse().ok()?;
        let count = fields.next()?.trim().parse().ok()?;
        Some(Range { first, count })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> Range {
        Range { first, count }
    }

    #[test]
    fn ranges_are_found_by_name_or_number_and_the_largest_counts() {
        let text = "bob:100000:65536\nada:200000:65536\n1000:300000:131072\nada:x:1\nada\n\nada:400000:10\n";
        assert_eq!(
            in_file(text, Some("ada"), 1000).collect::<Vec<_>>(),
            [
                range(200_000, 65536),
                range(300_000, 131_072),
                range(400_000, 10)
            ]
        );
        let largest_of = |name, uid| largest(in_file(text, name, uid));
        assert_eq!(largest_of(Some("ada"), 1000), Some(range(300_000, 131_072)));
        assert_eq!(largest_of(Some("bob"), 1), Some(range(100_000, 65536)));
        assert_eq!(largest_of(None, 7), None);
        assert_eq!(largest_of(Some("ad"), 100), None);
        let answer = "0: ada 100000 65536\n1: ada 4294967295 65536\nError fetching ranges\n";
        assert_eq!(largest(in_answer(answer)), Some(range(100_000, 65536)));
    }
}

//! Where a client and its server meet: an abstract socket, named for all that they must have in common.
//!
//! The kernel gives a name to one process only and takes it away when that is gone. So two starts at the same moment make one
//! server, nothing is left in a directory, and who is at the other end is the kernel's word. A name that a stranger has taken
//! is passed over.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use super::wire;

/// Changes when a client and a server of this number would misunderstand each other.
const PROTOCOL: u32 = 2;

/// Names tried before strangers are believed to hold them all.
const NAMES: u32 = 8;

/// What a client has in common with those it shares a server with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its job, or the login session, for people to read.
    pub job: String,
    name: String,
}

/// What came of looking for a server.
pub enum Met {
    /// There is one.
    Server(UnixStream),
    /// There is none, and this process has its name now: it is to start one that listens here.
    Nobody(UnixListener),
}

impl Group {
    /// The caller's. `kind` is for servers that must not be shared although all else is the same.
    pub fn of_caller(kind: &str) -> io::Result<Self> {
        let job = job(|name| std::env::var(name).ok())
            .or_else(session)
            .unwrap_or_else(|| "no job".into());
        let mut facts = vec![format!("{PROTOCOL} {}", env!("CARGO_PKG_VERSION"))];
        // A program that was replaced may speak otherwise; another root directory or namespace shows another host.
        for path in [
            "/proc/self/exe",
            "/",
            "/proc/self/ns/mnt",
            "/proc/self/ns/user",
            "/proc/self/ns/pid",
        ] {
            let found = fs::metadata(path)?;
            facts.push(format!("{}:{}", found.dev(), found.ino()));
        }
        facts.push(rustix::process::getegid().as_raw().to_string());
        facts.push(job.clone());
        facts.push(kind.to_owned());
        let digest = blake3::hash(facts.join("\n").as_bytes()).to_hex();
        let name = format!("{}/{}", prefix(), &digest[..32]);
        Ok(Self { job, name })
    }

    /// One that nobody shares.
    pub fn of_nobody_else() -> io::Result<Self> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let name = format!(
            "{}/private-{}-{}.{:09}",
            prefix(),
            std::process::id(),
            now.tv_sec,
            now.tv_nsec
        );
        Ok(Self {
            job: "private".into(),
            name,
        })
    }

    /// A short name for files.
    pub fn short_name(&self) -> &str {
        let name = self.name.rsplit('/').next().unwrap_or_default();
        &name[..name.len().min(12)]
    }

    /// The group's server, or its name.
    pub fn meet(&self) -> io::Result<Met> {
        for number in 0..NAMES {
            let address = SocketAddr::from_abstract_name(format!("{}/{number}", self.name))?;
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Met::Nobody(listener)),
                Err(err) if err.kind() == io::ErrorKind::AddrInUse => {}
                Err(err) => return Err(err),
            }
            match own(UnixStream::connect_addr(&address)) {
                Ok(Some(server)) => return Ok(Met::Server(server)),
                Ok(None) => tracing::debug!("another user has the name {}/{number}", self.name),
                // It went just now, and its name is free.
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => {
                    if let Ok(listener) = UnixListener::bind_addr(&address) {
                        return Ok(Met::Nobody(listener));
                    }
                    if let Some(server) = own(UnixStream::connect_addr(&address))? {
                        return Ok(Met::Server(server));
                    }
                }
                Err(err) => return Err(err),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "other users hold every name of this user's server",
        ))
    }
}

/// The kernel's table of sockets is read page by page: one read can miss what moves while others come and go.
const TABLE_READS: usize = 3;

/// Every server of this user that can be seen here.
pub fn servers() -> io::Result<Vec<UnixStream>> {
    let prefix = format!("{}/", prefix());
    let mut names = BTreeSet::new();
    for _ in 0..TABLE_READS {
        let table = fs::read("/proc/net/unix")?;
        let listed = listening(&table, prefix.as_bytes()).into_iter();
        names.extend(listed.map(<[u8]>::to_vec));
    }
    let mut servers = Vec::new();
    for name in names {
        let address = SocketAddr::from_abstract_name(name)?;
        if let Ok(Some(server)) = own(UnixStream::connect_addr(&address)) {
            servers.push(server);
        }
    }
    Ok(servers)
}

fn prefix() -> String {
    format!("sifon/server/{}", rustix::process::geteuid().as_raw())
}

/// The connection, if the other end is this user's.
fn own(connected: io::Result<UnixStream>) -> io::Result<Option<UnixStream>> {
    let stream = connected?;
    Ok(wire::require_same_user(&stream).is_ok().then_some(stream))
}

/// Abstract names in /proc/net/unix that begin with `prefix` and on which somebody listens; see unix_seq_show in
/// net/unix/af_unix.c.
fn listening<'a>(table: &'a [u8], prefix: &[u8]) -> Vec<&'a [u8]> {
    const ACCEPTS_CONNECTIONS: &[u8] = b"00010000";
    let mut names = Vec::new();
    for line in table.split(|&byte| byte == b'\n') {
        let mut fields = line
            .split(|&byte| byte == b' ')
            .filter(|field| !field.is_empty());
        let is_listening = fields.nth(3) == Some(ACCEPTS_CONNECTIONS);
        let name = fields.nth(3).and_then(|name| name.strip_prefix(b"@"));
        if let Some(name) = name.filter(|name| is_listening && name.starts_with(prefix)) {
            names.push(name);
        }
    }
    names
}

/// Fails unless the process `pid` lives where this one does: a program in a container, perhaps one that was kept from the host's
/// files, gets no way out of it here.
pub fn require_same_place(pid: rustix::process::Pid) -> io::Result<()> {
    for namespace in ["user", "mnt"] {
        let of = |process: &str| fs::metadata(format!("/proc/{process}/ns/{namespace}"));
        let (theirs, ours) = (of(&pid.as_raw_nonzero().to_string())?, of("self")?);
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the caller is in another {namespace} namespace"),
            ));
        }
    }
    Ok(())
}

/// The batch job that this process belongs to, from what `variable` says: what ends it would end its server.
fn job(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(job) = set("SLURM_JOB_ID") {
        let step = set("SLURM_STEP_ID").map(|step| format!(".{step}"));
        return Some(format!("Slurm job {job}{}", step.unwrap_or_default()));
    }
    for (name, system) in [
        ("PBS_JOBID", "PBS"),
        ("LSB_JOBID", "LSF"),
        ("JOB_ID", "SGE"),
    ] {
        if let Some(job) = set(name) {
            return Some(format!("{system} job {job}"));
        }
    }
    None
}

fn session() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    session_in(&groups).map(|session| format!("session {session}"))
}

/// The part of a process's control group that ends with its login: up to the first scope or service that systemd named.
fn session_in(groups: &str) -> Option<String> {
    let path_of = |line: &'_ str| -> Option<String> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        matches!(controllers, "" | "name=systemd").then(|| path.to_owned())
    };
    let path = groups.lines().find_map(path_of)?;
    let mut session = String::new();
    for part in Path::new(&path).iter().filter_map(|part| part.to_str()) {
        if part != "/" {
            session.push('/');
            session.push_str(part);
        }
        if part.ends_with(".scope") || part.ends_with(".service") {
            break;
        }
    }
    (!session.is_empty()).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_what_its_batch_system_says_with_the_step() {
        for (set, expected) in [
            (&[][..], None),
            (&[("SLURM_JOB_ID", "7")][..], Some("Slurm job 7")),
            (
                &[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0")],
                Some("Slurm job 7.0"),
            ),
            (
                &[("SLURM_JOB_ID", ""), ("PBS_JOBID", "9.host")],
                Some("PBS job 9.host"),
            ),
            (&[("LSB_JOBID", "1")], Some("LSF job 1")),
            (&[("JOB_ID", "2")], Some("SGE job 2")),
        ] {
            let found = job(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            });
            assert_eq!(found.as_deref(), expected);
        }
    }

    #[test]
    fn a_session_is_the_part_of_the_control_group_that_ends_with_the_login() {
        for (groups, expected) in [
            ("0::/\n", None),
            (
                "0::/user.slice/user-1000.slice/session-3.scope\n",
                Some("/user.slice/user-1000.slice/session-3.scope"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-1.scope\n",
                Some("/user.slice/user-1000.slice/user@1000.service"),
            ),
            (
                "4:memory:/x\n1:name=systemd:/system.slice/sshd.service/a\n",
                Some("/system.slice/sshd.service"),
            ),
            ("garbage\n", None),
        ] {
            assert_eq!(session_in(groups).as_deref(), expected, "{groups}");
        }
    }

    #[test]
    fn a_group_meets_once_and_then_connects() {
        let group = Group::of_nobody_else().unwrap();
        let Met::Nobody(listener) = group.meet().unwrap() else {
            panic!("the name was taken");
        };
        assert!(matches!(group.meet().unwrap(), Met::Server(_)));
        let table = fs::read("/proc/net/unix").unwrap();
        let names = listening(&table, group.name.as_bytes());
        assert_eq!(names.len(), 1);
        drop(listener);
        assert!(matches!(group.meet().unwrap(), Met::Nobody(_)));
    }

    #[test]
    fn this_process_is_where_it_is() {
        let own = rustix::process::getpid();
        require_same_place(own).unwrap();
    }
}

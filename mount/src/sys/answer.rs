//! Another program asked one question: it gets some input, and answers on stdout within a deadline.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

/// What is read of an answer.
const BYTES_LIMIT: usize = 1 << 20;

/// Runs `command`, which gets `input` (no more than a pipe holds) and has until `deadline`; then it and what it started are
/// killed. Gives its exit status and the first 1 MiB of its stdout; its stderr is dropped.
pub fn answer_of(
    command: &mut Command,
    input: &[u8],
    deadline: Instant,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let outcome = conversation(&mut child, input, deadline);
    if outcome.is_err() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    outcome
}

fn conversation(
    child: &mut Child,
    input: &[u8],
    deadline: Instant,
) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut stdin = child
        .stdin
        .take()
        .expect("its stdin was asked to be a pipe");
    let mut stdout = child
        .stdout
        .take()
        .expect("its stdout was asked to be a pipe");
    // A program that never reads its input cannot block us: that fits into the pipe.
    match stdin.write_all(input) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    // Without a second thread: who asks may be about to enter namespaces, which is for processes with a single one.
    let mut output = Vec::new();
    let mut part = [0; 1 << 13];
    while output.len() < BYTES_LIMIT {
        wait_until_readable(&stdout, deadline)?;
        match stdout.read(&mut part)? {
            0 => break,
            count => output.extend_from_slice(&part[..count]),
        }
    }
    output.truncate(BYTES_LIMIT);
    drop(stdout);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, output));
        }
        if Instant::now() >= deadline {
            return Err(late());
        }
        // It has closed its output, so it is about to end.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for output, or its end.
fn wait_until_readable(output: &ChildStdout, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(|_| late())?;
        match rustix::event::poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Err(late()),
            Err(Errno::INTR) => {}
            ready => return Ok(ready.map(|_| ())?),
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_gets_its_input_and_answers() {
        let script = r#"read key; echo "{\"Username\":\"$key\",\"Secret\":\"s\"}""#;
        let mut command = Command::new("sh");
        let (status, output) = answer_of(
            command.args(["-c", script]),
            b"https://x\n",
            Instant::now() + Duration::from_secs(20),
        )
        .unwrap();
        assert!(status.success());
        assert_eq!(output, b"{\"Username\":\"https://x\",\"Secret\":\"s\"}\n");
    }

    #[test]
    fn a_helper_that_hangs_is_killed_at_the_deadline() {
        let started = Instant::now();
        let deadline = started + Duration::from_millis(50);
        let mut command = Command::new("sh");
        let error = answer_of(command.args(["-c", "sleep 60"]), b"x", deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

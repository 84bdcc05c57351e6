//! Another program asked one question: it gets some input, and answers on stdout within a deadline.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// What is read of an answer.
const BYTES_LIMIT: u64 = 1 << 20;

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
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time");
    let mut stdin = child
        .stdin
        .take()
        .expect("its stdin was asked to be a pipe");
    let stdout = child
        .stdout
        .take()
        .expect("its stdout was asked to be a pipe");
    // A program that never reads its input cannot block us: that fits into the pipe.
    match stdin.write_all(input) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => drop(stdin),
    }
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("answer".into())
        .spawn(move || {
            let mut output = Vec::new();
            let read = stdout.take(BYTES_LIMIT).read_to_end(&mut output);
            let _ = sender.send(read.map(|_| output));
        })?;
    let left = deadline.saturating_duration_since(Instant::now());
    let output = receiver.recv_timeout(left).map_err(|_| late())??;
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

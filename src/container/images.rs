//! Images on their way to being shown: what opens them, who waits for that, and who hears how far it is.

use std::any::Any;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use sifon_mount::daemon::Answers;
use sifon_mount::image::Image;

use super::error::in_one_line;
use super::wire::{self, Ready, Reply, Request};

/// What opens images for a server. Called from several threads.
pub trait Images: Send + Sync {
    /// Names the image that is meant: requests with equal names share a mount.
    fn key(&self, request: &Request) -> Result<String, Refusal>;

    /// Opens it; whoever waits is told through `opening`.
    fn open(&self, request: &Request, opening: &Arc<Opening>) -> Result<Shown, Refusal>;
}

/// An image that can be read.
pub struct Shown {
    /// What it is called where others see it.
    pub name: String,
    /// The file system.
    pub image: Arc<Image>,
    /// How long a read of it may take.
    pub timeout: Duration,
    /// The chosen manifest.
    pub digest: String,
    /// What the image says of itself; no targets.
    pub about: Ready,
    /// Tells what happens to it.
    pub answers: Answers,
    /// Dropped when the image is unmounted everywhere, or the server leaves.
    pub kept: Box<dyn Any + Send>,
}

/// Why an image cannot be served, and what the user can do about it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The error, with its causes.
    pub message: String,
    /// The hint, if there is one.
    pub hint: Option<String>,
}

impl Refusal {
    /// An error and its hint.
    pub fn new(error: &(dyn std::error::Error + 'static), hint: Option<String>) -> Self {
        Self {
            message: in_one_line(error),
            hint,
        }
    }
}

/// Tells a client how far the opening of its image is.
#[derive(Clone)]
pub struct Teller(Arc<Mutex<UnixStream>>);

impl Teller {
    /// For the client at the other end of `socket`.
    pub fn new(socket: Arc<Mutex<UnixStream>>) -> Self {
        Self(socket)
    }

    /// Sends a reply. It is lost when the client does not keep up, because it may be stopped.
    fn tell(&self, reply: &Reply) {
        let socket = self.0.lock().expect("sending does not panic");
        // Writable means that a good part of the buffer is free, far more than a step takes.
        let mut watched = [PollFd::new(&*socket, PollFlags::OUT)];
        if rustix::event::poll(&mut watched, Some(&Timespec::default()))
            .is_ok_and(|ready| ready > 0)
        {
            // A client that is gone is noticed elsewhere.
            let _ = wire::send(socket.as_fd(), reply, &[]);
        }
    }
}

/// How the opening of an image ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is mounted.
    Shown,
    /// It cannot be, for anybody.
    Refused {
        /// Why.
        message: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// The client that was to mount it went away: another one can.
    Abandoned,
}

/// An image that is being opened for those who wait for it.
#[derive(Default)]
pub struct Opening {
    tellers: Mutex<Vec<Teller>>,
    outcome: Mutex<Option<Outcome>>,
    is_over: Condvar,
}

impl Opening {
    /// From now on `teller` is told too.
    pub fn tell_also(&self, teller: &Teller) {
        let mut tellers = self.tellers.lock().expect("pushing does not panic");
        tellers.push(teller.clone());
    }

    /// Tells everybody how far it is.
    pub fn step(&self, step: &impl Serialize) {
        if let Ok(step) = serde_json::to_value(step) {
            self.tell(&Reply::Progress(step));
        }
    }

    /// Tells everybody a message.
    pub fn message(&self, line: &str) {
        self.tell(&Reply::Message(line.to_owned()));
    }

    fn tell(&self, reply: &Reply) {
        for teller in &*self.tellers.lock().expect("telling does not panic") {
            teller.tell(reply);
        }
    }

    /// Waits until it is over; the one who opens sees to that in time. Meanwhile `teller` is told.
    pub fn outcome(&self, teller: &Teller) -> Outcome {
        self.tell_also(teller);
        let mut outcome = self.outcome.lock().expect("setting does not panic");
        loop {
            if let Some(outcome) = &*outcome {
                // Only one may speak to the client from here on.
                return outcome.clone();
            }
            outcome = self.is_over.wait(outcome).expect("setting does not panic");
        }
    }

    /// Wakes those who wait. Nobody is told anything after this.
    pub fn over(&self, outcome: Outcome) {
        self.tellers
            .lock()
            .expect("clearing does not panic")
            .clear();
        *self.outcome.lock().expect("setting does not panic") = Some(outcome);
        self.is_over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller() -> (UnixStream, Teller) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Teller::new(Arc::new(Mutex::new(server))))
    }

    #[test]
    fn steps_are_lost_rather_than_waited_for() {
        let (client, teller) = teller();
        let opening = Opening::default();
        opening.tell_also(&teller);
        drop(teller);
        for step in 0..50_000 {
            opening.step(&step);
        }
        opening.over(Outcome::Shown);
        let mut told = 0;
        while let Some((reply, _)) = wire::receive::<Reply>(client.as_fd()).unwrap() {
            assert!(matches!(reply, Reply::Progress(step) if step == told));
            told += 1;
        }
        assert!(told > 10 && told < 50_000, "{told}");
    }

    #[test]
    fn all_who_wait_hear_of_messages_and_of_the_end() {
        let opening = Arc::new(Opening::default());
        let (client, teller) = teller();
        let waiting = {
            let opening = Arc::clone(&opening);
            std::thread::spawn(move || opening.outcome(&teller))
        };
        while opening.tellers.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        opening.message("half");
        let refused = Outcome::Refused {
            message: "no".into(),
            hint: None,
        };
        opening.over(refused);
        assert!(
            matches!(waiting.join().unwrap(), Outcome::Refused { message, .. } if message == "no")
        );
        let (reply, _) = wire::receive::<Reply>(client.as_fd()).unwrap().unwrap();
        assert!(matches!(reply, Reply::Message(line) if line == "half"));
    }
}

//! What ends a mount from outside: a signal, or the end of the one who asked for it.

use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::sys::signal::Signals;

/// Until `take_over`, being stopped ends the process at once: there is nothing to undo while
/// an image is being opened. After it, it is an event, because then there is a mount to detach.
pub struct Stop {
    shared: Arc<Shared>,
    stopped: Receiver<()>,
}

struct Shared {
    /// Held while deciding between the two, so that a mount never begins in a process that is ending.
    is_undoable: Mutex<bool>,
    stop: Sender<()>,
}

impl Stop {
    /// Catches SIGINT, SIGTERM and SIGHUP. To be called first thing in a process, before it starts threads.
    pub fn on_signals() -> io::Result<Self> {
        let signals = Signals::caught()?;
        let (stop, stopped) = unbounded();
        let shared = Arc::new(Shared {
            is_undoable: Mutex::new(false),
            stop,
        });
        let told = Arc::clone(&shared);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                while let Ok(signal) = signals.wait() {
                    told.stop(128 + signal);
                }
            })?;
        Ok(Self { shared, stopped })
    }

    /// Stops also when `gone` returns, unless something was taken over by then.
    pub(super) fn when(&self, gone: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let told = Arc::clone(&self.shared);
        thread::Builder::new().name("asker".into()).spawn(move || {
            gone();
            let is_undoable = told.is_undoable.lock();
            if !*is_undoable {
                std::process::exit(1);
            }
        })?;
        Ok(())
    }

    /// Gets the events from now on.
    pub(super) fn take_over(&self) -> &Receiver<()> {
        *self.shared.is_undoable.lock() = true;
        &self.stopped
    }
}

impl Shared {
    fn stop(&self, exit_code: i32) {
        let is_undoable = self.is_undoable.lock();
        if *is_undoable {
            // The receiver lives as long as the process; without it nobody is left to tell.
            let _ = self.stop.send(());
        } else {
            std::process::exit(exit_code);
        }
    }
}

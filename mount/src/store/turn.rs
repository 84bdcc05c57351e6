//! Whose turn it is to fetch something that many processes want at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::Store;
use super::directory::Directory;
use crate::digest::Digest;

/// Among the drafts, a turn's file ends so.
const SUFFIX: &str = ".turn";

/// Whoever has the turn and does not say for so long that something came is not waited for.
const STALLED_AFTER: Duration = Duration::from_secs(20);

const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Between two looks; the first ones come sooner, for what is small.
const PAUSE: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The turn, until it is dropped or its process is gone. It only saves work: where locks do not work, or whoever has it makes
/// no progress, everybody fetches.
#[derive(Debug, Default)]
pub struct Turn {
    /// `None` where nobody is kept from doing the same.
    locked: Option<(File, PathBuf)>,
    told: Mutex<Option<Instant>>,
}

impl Store {
    /// Waits while another process fetches `what`, as long as that makes progress and until `is_in_vain`. Look then whether it is
    /// there.
    pub fn turn(&self, what: Digest, is_in_vain: &dyn Fn() -> bool) -> Turn {
        match self.own.is_writable() {
            true => Turn::wait_for(&self.own, what, is_in_vain, STALLED_AFTER),
            false => Turn::default(),
        }
    }
}

impl Turn {
    fn wait_for(
        directory: &Directory,
        what: Digest,
        is_in_vain: &dyn Fn() -> bool,
        stalled_after: Duration,
    ) -> Self {
        let path = directory.path().join("tmp").join(what.hex() + SUFFIX);
        let mut turn = Self::default();
        // Not compared with our clock: another machine's may be wrong.
        let (mut seen, mut seen_at) = (None, Instant::now());
        let mut pause = FIRST_PAUSE;
        loop {
            match locked(&path) {
                Ok(Some(file)) => {
                    turn.locked = Some((file, path));
                    turn.goes_on();
                    return turn;
                }
                Ok(None) => {}
                Err(_) => return turn,
            }
            if pause == FIRST_PAUSE {
                tracing::debug!("{what}: another process is fetching it");
            }
            let metadata = path.metadata();
            let told = metadata.and_then(|metadata| metadata.modified()).ok();
            if told != seen {
                (seen, seen_at) = (told, Instant::now());
            }
            if seen_at.elapsed() > stalled_after || is_in_vain() {
                return turn;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Says to those who wait that something came. May be called for every byte.
    pub fn goes_on(&self) {
        let Some((file, _)) = &self.locked else {
            return;
        };
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() > TOLD_EVERY) {
            *told = Some(Instant::now());
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.locked {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the file at `path` if it is that of a turn whose process is gone.
pub(super) fn remove_if_abandoned(path: &Path) {
    if path
        .as_os_str()
        .as_encoded_bytes()
        .ends_with(SUFFIX.as_bytes())
        && let Ok(Some(file)) = locked(path)
    {
        drop(Turn {
            locked: Some((file, path.to_owned())),
            told: Mutex::default(),
        });
    }
}

/// The file at `path`, if nobody else has it locked.
fn locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?.into();
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Whoever had it removed the file meanwhile: it is no longer the one that others see.
            Ok(()) if file.metadata()?.nlink() == 0 => {}
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn store(directory: &Path) -> Store {
        Store::open(&Settings {
            directory: directory.into(),
            ..Settings::default()
        })
    }

    fn left(store: &Store) -> usize {
        std::fs::read_dir(store.directory().join("tmp"))
            .unwrap()
            .count()
    }

    #[test]
    fn the_next_one_waits_until_the_first_is_through_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let what = Digest::of(b"layer");
        let store = store(directory.path());
        let first = store.turn(what, &|| false);
        assert!(first.locked.is_some());
        assert!(store.turn(Digest::of(b"other"), &|| false).locked.is_some());
        let (waits, does_wait) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let next = scope.spawn(|| {
                let look = || {
                    let _ = waits.send(());
                    false
                };
                store.turn(what, &look).locked.is_some()
            });
            does_wait.recv().unwrap();
            assert!(!next.is_finished());
            drop(first);
            assert!(next.join().unwrap());
        });
        assert_eq!(left(&store), 0);
    }

    #[test]
    fn nobody_waits_for_what_is_in_vain_or_makes_no_progress() {
        let directory = tempfile::tempdir().unwrap();
        let what = Digest::of(b"layer");
        let store = store(directory.path());
        let first = store.turn(what, &|| false);
        assert!(store.turn(what, &|| true).locked.is_none());
        let stalled = Turn::wait_for(&store.own, what, &|| false, Duration::ZERO);
        assert!(stalled.locked.is_none());
        drop(stalled);
        assert_eq!(left(&store), 1);
        drop(first);
        assert_eq!(left(&store), 0);
    }

    #[test]
    fn a_turn_of_a_process_that_is_gone_is_removed_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let opened = store(directory.path());
        let turn = opened.turn(Digest::of(b"held"), &|| false);
        let abandoned = opened.directory().join("tmp").join(format!("dead{SUFFIX}"));
        std::fs::write(&abandoned, "").unwrap();
        let again = store(directory.path());
        assert!(!abandoned.exists());
        assert_eq!(left(&again), 1);
        drop(turn);
    }
}

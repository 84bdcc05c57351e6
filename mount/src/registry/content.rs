//! What requests bring: bytes, or a file that is read while it is sent.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client::time_to_send;
use super::settings::Settings;

/// A file is read in pieces of this size, and so many wait to be sent.
const PIECE_BYTES: u64 = 256 << 10;
const PIECES_AHEAD: usize = 8;

/// How fast a registry at least looks through what it was sent before it says that it has it, in bytes per second.
const SLOWEST_CHECK: u64 = 20 << 20;

/// Is told how many more bytes were sent; fewer than none where they must be sent again.
pub type OnSent = Arc<dyn Fn(i64) + Send + Sync>;

/// The body of a request.
#[derive(Clone)]
pub(super) enum Content {
    Bytes(Bytes),
    File {
        file: Arc<File>,
        size: u64,
        sent: OnSent,
    },
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// How much longer than usual nothing may be heard. How far bytes are sent cannot be seen; how far a file is, can.
    pub(super) fn patience(&self, settings: &Settings) -> Duration {
        match self {
            Self::Bytes(bytes) => time_to_send(bytes.len() as u64),
            Self::File { size, .. } => settings.timeout + Duration::from_secs(size / SLOWEST_CHECK),
        }
    }

    /// What is sent; `moved` counts the bytes of a file.
    pub(super) fn body(self, moved: &Arc<AtomicU64>) -> reqwest::Body {
        match self {
            Self::Bytes(bytes) => bytes.into(),
            Self::File { file, size, sent } => {
                let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
                // Its disk may hang; that must not keep a thread from others' answers.
                tokio::task::spawn_blocking(move || read(&file, size, &sender));
                reqwest::Body::wrap(FileBody {
                    pieces,
                    left: size,
                    told: 0,
                    moved: Arc::clone(moved),
                    sent,
                })
            }
        }
    }
}

/// Reads a file for somebody who sends it, until that one wants no more.
fn read(file: &File, size: u64, to: &mpsc::Sender<io::Result<Bytes>>) {
    let mut at = 0;
    while at < size {
        let mut piece = vec![0; PIECE_BYTES.min(size - at) as usize];
        let read = file.read_exact_at(&mut piece, at);
        at += piece.len() as u64;
        let has_failed = read.is_err();
        if to.blocking_send(read.map(|()| piece.into())).is_err() || has_failed {
            return;
        }
    }
}

struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
    told: i64,
    moved: Arc<AtomicU64>,
    sent: OnSent,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let Ok(bytes) = &piece {
                let len = bytes.len() as u64;
                self.left -= len;
                self.told += len as i64;
                self.moved.fetch_add(len, Ordering::Relaxed);
                (self.sent)(len as i64);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for FileBody {
    fn drop(&mut self) {
        if self.left > 0 {
            (self.sent)(-self.told);
        }
    }
}

/// The end of `work`, as long as `moved` grows or no longer than `patience` does not.
pub(super) async fn while_moving<T>(
    work: impl Future<Output = T>,
    moved: &AtomicU64,
    patience: Duration,
) -> Result<T, tokio::time::error::Elapsed> {
    let mut work = pin!(work);
    let mut before = 0;
    loop {
        match timeout(patience, &mut work).await {
            Err(late) => match moved.load(Ordering::Relaxed) {
                now if now > before => before = now,
                _ => return Err(late),
            },
            ended => return ended,
        }
    }
}

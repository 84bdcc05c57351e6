//! A blob in order, whole or a part of it, fetched as several ranges at a time where the registry allows it.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::network::Network;
use super::remote::{Persistence, Remote, Sink};
use crate::blob::{BlobError, Patience};

/// Bytes of one range. Each costs the registry something of its own: ranges of 4 MiB keep `docker-registry` busy half as long again.
const PART_BYTES: u64 = 8 << 20;

/// Parts of one blob that are on their way or wait for the reader.
const PARTS_AHEAD: usize = 8;

/// Parts of all blobs of an image beyond the one that each reader waits for: 64 MiB, so that a whole first start stays below 300 MB.
pub(super) const PARTS_AHEAD_OF_ALL: usize = 8;

/// Reads a range of a blob from its first byte to its last.
///
/// The part that the reader needs next is always on its way, whatever others hold; only parts ahead of it take from
/// the memory that all streams share, and they never wait for it. So no order of reading several streams can block.
pub(super) struct Stream {
    network: Arc<Network>,
    /// Where the bytes come from.
    remote: Arc<Remote>,
    /// Where they come from if that fails, the first one first.
    others: VecDeque<Arc<Remote>>,
    parts: VecDeque<Part>,
    /// Where the next part to be asked for begins.
    asked: u64,
    /// What is before it was handed to the reader, or waits in `current`.
    received: u64,
    /// Where the range ends.
    end: u64,
    current: Bytes,
    does_ranges: bool,
    has_failed: bool,
}

struct Part {
    end: u64,
    messages: mpsc::Receiver<Message>,
    room: Arc<Semaphore>,
    task: AbortHandle,
    _memory: Option<OwnedSemaphorePermit>,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Message {
    /// The answer is the range that was asked for.
    Ranged,
    /// The answer is the whole blob.
    Whole,
    Bytes(Bytes),
    Failed(BlobError),
}

impl Stream {
    /// From the first of `remotes`, which is not empty; where that fails, from the next.
    pub(super) fn new(
        network: Arc<Network>,
        mut remotes: VecDeque<Arc<Remote>>,
        range: Range<u64>,
    ) -> Self {
        let first = remotes.pop_front();
        Self {
            network,
            remote: first.expect("a blob has a place"),
            others: remotes,
            parts: VecDeque::new(),
            asked: range.start,
            received: range.start,
            end: range.end,
            current: Bytes::new(),
            does_ranges: false,
            has_failed: false,
        }
    }

    /// Has the next part on its way, and parts ahead of it as far as memory allows.
    fn ask(&mut self) {
        if self.parts.is_empty() {
            self.ask_part(None);
        }
        while self.does_ranges && self.parts.len() < PARTS_AHEAD && self.asked < self.end {
            let shared = self.network.parts_ahead.clone();
            let Ok(memory) = shared.try_acquire_owned() else {
                break;
            };
            self.ask_part(Some(memory));
        }
    }

    fn ask_part(&mut self, memory: Option<OwnedSemaphorePermit>) {
        let range = self.asked..(self.asked + PART_BYTES).min(self.end);
        let (sender, messages) = mpsc::channel();
        let room = Arc::new(Semaphore::new(PART_BYTES as usize));
        let mut delivery = Delivery {
            sender,
            room: room.clone(),
            // What is before the range is passed over then.
            may_be_whole: self.parts.is_empty(),
            has_others: !self.others.is_empty(),
            turn: None,
        };
        let (network, remote) = (self.network.streams.clone(), self.remote.clone());
        let end = range.end;
        self.asked = end;
        let task = self.network.spawn(async move {
            // Streams together leave a connection to those who wait for a single range.
            delivery.turn = network.acquire_owned().await.ok();
            let patience = Patience::While(remote.client.settings.timeout);
            if let Err(error) = remote.transfer(range, patience, &mut delivery).await {
                let _ = delivery.sender.send(Message::Failed(error));
            }
        });
        self.parts.push_back(Part {
            end,
            messages,
            room,
            task,
            _memory: memory,
        });
    }

    /// Waits for the next bytes. How long is up to the task, which gives up after a time without progress.
    fn fill(&mut self) -> io::Result<()> {
        while self.current.is_empty() && self.received < self.end {
            self.ask();
            let end = self.end;
            let part = self.parts.front_mut().expect("one was just asked for");
            match part.messages.recv() {
                Ok(Message::Ranged) => self.does_ranges = true,
                Ok(Message::Whole) => {
                    part.end = end;
                    self.asked = end;
                }
                Ok(Message::Bytes(mut bytes)) => {
                    part.room.add_permits(bytes.len());
                    // The rest of a whole blob comes, too.
                    let left = part.end - self.received;
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    self.received += bytes.len() as u64;
                    self.current = bytes;
                    if self.received == part.end {
                        self.parts.pop_front();
                    }
                }
                Ok(Message::Failed(error)) => match self.others.pop_front() {
                    Some(next) => {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "asking the next"
                        );
                        self.remote = next;
                        self.parts.clear();
                        self.asked = self.received;
                        self.does_ranges = false;
                    }
                    None => return Err(io::Error::other(error)),
                },
                Err(mpsc::RecvError) => {
                    let object = self.remote.object();
                    return Err(io::Error::other(format!(
                        "{object}: its download broke down"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_failed {
            let object = self.remote.object();
            return Err(io::Error::other(format!(
                "{object}: reading it has failed before"
            )));
        }
        if let Err(error) = self.fill() {
            self.has_failed = true;
            self.parts.clear();
            return Err(error);
        }
        let len = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Sends what comes to the reader.
struct Delivery {
    sender: mpsc::Sender<Message>,
    /// Bytes that may still wait for the reader.
    room: Arc<Semaphore>,
    may_be_whole: bool,
    /// Whether there is another place to ask.
    has_others: bool,
    turn: Option<OwnedSemaphorePermit>,
}

impl Sink for Delivery {
    fn whole(&mut self) -> bool {
        if self.may_be_whole {
            // From here the reader sets the pace, and must not keep other streams waiting.
            self.turn = None;
            let _ = self.sender.send(Message::Whole);
        }
        self.may_be_whole
    }

    fn persistence(&self) -> Persistence {
        match self.has_others {
            true => Persistence::Once,
            false => Persistence::Usual,
        }
    }

    fn ranged(&mut self) {
        let _ = self.sender.send(Message::Ranged);
    }

    async fn take(&mut self, mut bytes: Bytes) -> bool {
        while bytes.has_remaining() {
            let some = bytes.split_to(bytes.len().min(PART_BYTES as usize));
            let len = some.len() as u32;
            match self.room.acquire_many(len).await {
                Ok(room) => room.forget(),
                Err(_) => return false,
            }
            if self.sender.send(Message::Bytes(some)).is_err() {
                return false;
            }
        }
        true
    }
}

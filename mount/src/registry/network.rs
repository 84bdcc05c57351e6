//! The threads on which requests run, while ordinary threads wait for them.

use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::settings::Settings;
use super::stream::PARTS_AHEAD_OF_ALL;

/// A runtime, and what all streams over it share.
pub(super) struct Network {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    /// Parts that streams transfer at a time.
    pub(super) streams: Arc<Semaphore>,
    /// Parts that streams may hold ahead of their readers.
    pub(super) parts_ahead: Arc<Semaphore>,
}

impl Network {
    pub(super) fn new(settings: &Settings) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.min(4))
            .thread_name("registry")
            .enable_all()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            streams: Arc::new(Semaphore::new(
                settings.connections.saturating_sub(1).max(1),
            )),
            parts_ahead: Arc::new(Semaphore::new(PARTS_AHEAD_OF_ALL)),
        })
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("taken on drop only")
    }

    /// Blocks this thread, which is none of the runtime's, until `work` is done.
    pub(super) fn wait_for<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime().block_on(work)
    }

    /// Lets `work` run beside us.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.runtime().spawn(work).abort_handle()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Not waiting: a name lookup in the C library can take minutes and cannot be stopped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

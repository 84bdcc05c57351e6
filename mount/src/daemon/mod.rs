//! The process around a mount: started in the background, watched, stopped, found again.

mod control;
mod launch;
mod metrics;
mod mounted;
mod respawn;
mod stop;
mod target;
mod unmount;
mod watcher;

pub use control::{Answer, Answers, Mounted, asked, mounted_at, source_of};
pub use launch::{Announcer, Failure, LaunchError, begin, launch};
pub use metrics::{METRICS, serve_metrics};
pub use mounted::{Mount, MountError, Options};
pub use respawn::Respawn;
pub use stop::Stop;
pub use target::{Target, TargetError};
pub use unmount::{UnmountError, Unmounted, User, detach, unmount};
pub use watcher::watch;

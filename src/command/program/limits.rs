//! Options for limits of resources: none of them is there, and each says where such limits are set.

use std::ffi::OsString;

use super::variables::variable;
use crate::container;
use crate::setting::Error;

/// Limits of a container's resources, which Singularity has systemd set. They are refused: who starts programs by a batch system or
/// by systemd has them set there.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Limits {
    #[arg(long, hide = true)]
    apply_cgroups: Option<OsString>,
    #[arg(long, hide = true)]
    blkio_weight: Option<OsString>,
    #[arg(long, hide = true)]
    blkio_weight_device: Option<OsString>,
    #[arg(long, hide = true)]
    cpu_shares: Option<OsString>,
    #[arg(long, hide = true)]
    cpus: Option<OsString>,
    #[arg(long, hide = true)]
    cpuset_cpus: Option<OsString>,
    #[arg(long, hide = true)]
    cpuset_mems: Option<OsString>,
    #[arg(long, hide = true)]
    memory: Option<OsString>,
    #[arg(long, hide = true)]
    memory_reservation: Option<OsString>,
    #[arg(long, hide = true)]
    memory_swap: Option<OsString>,
    #[arg(long, hide = true)]
    oom_kill_disable: bool,
    #[arg(long, hide = true)]
    pids_limit: Option<OsString>,
}

impl Limits {
    /// Fails if one was asked for.
    pub(super) fn require_none(&self) -> Result<(), Error> {
        let Some(option) = self.asked() else {
            return Ok(());
        };
        Err(Box::new(container::Error::Reported {
            message: format!("{option}: containers have no limits of their own"),
            hint: Some(
                "the limits of the job or session hold in the container too: ask the batch system for others, or where systemd \
                 runs, `systemd-run --user --scope -p MemoryMax=1G -p CPUQuota=50% sifon exec …`"
                    .into(),
            ),
        }))
    }

    /// The first that was asked for.
    fn asked(&self) -> Option<&'static str> {
        let values = [
            ("--apply-cgroups", "APPLY_CGROUPS", &self.apply_cgroups),
            ("--blkio-weight", "BLKIO_WEIGHT", &self.blkio_weight),
            (
                "--blkio-weight-device",
                "BLKIO_WEIGHT_DEVICE",
                &self.blkio_weight_device,
            ),
            ("--cpu-shares", "CPU_SHARES", &self.cpu_shares),
            ("--cpus", "CPUS", &self.cpus),
            ("--cpuset-cpus", "CPUSET_CPUS", &self.cpuset_cpus),
            ("--cpuset-mems", "CPUSET_MEMS", &self.cpuset_mems),
            ("--memory", "MEMORY", &self.memory),
            (
                "--memory-reservation",
                "MEMORY_RESERVATION",
                &self.memory_reservation,
            ),
            ("--memory-swap", "MEMORY_SWAP", &self.memory_swap),
            ("--pids-limit", "PIDS_LIMIT", &self.pids_limit),
        ];
        let is_asked =
            |name: &str, value: &Option<OsString>| value.is_some() || variable(name).is_some();
        let mut asked = values
            .into_iter()
            .filter(|(_, name, value)| is_asked(name, value));
        match asked.next() {
            Some((option, ..)) => Some(option),
            None => self.oom_kill_disable.then_some("--oom-kill-disable"),
        }
    }
}

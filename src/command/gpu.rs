//! What a graphics driver has on the host and an image cannot have: it must fit the running kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sifon_mount::sys::answer::answer_of;

use crate::container::bind::BindRequest;

/// Longest that `ldconfig -p` may take: it reads one file.
const LDCONFIG_LIMIT: Duration = Duration::from_secs(10);

/// A make of graphics processors.
pub struct Driver {
    name: &'static str,
    programs: &'static [&'static str],
    /// Names of libraries as `ldconfig -p` lists them, up to `.so`.
    libraries: &'static [&'static str],
    files: &'static [&'static str],
    /// How names of devices in /dev begin.
    devices: &'static [&'static str],
}

/// As Apptainer's nvliblist.conf has it.
pub const NVIDIA: Driver = Driver {
    name: "nv",
    programs: &[
        "nvidia-smi",
        "nvidia-debugdump",
        "nvidia-persistenced",
        "nvidia-cuda-mps-control",
        "nvidia-cuda-mps-server",
    ],
    libraries: &[
        "libcuda",
        "libcudadebugger",
        "libEGL_installertest",
        "libEGL_nvidia",
        "libEGL",
        "libGLdispatch",
        "libGLESv1_CM",
        "libGLESv1_CM_nvidia",
        "libGLESv2",
        "libGLESv2_nvidia",
        "libGL",
        "libGLX_installertest",
        "libGLX_nvidia",
        "libglx",
        "libGLX",
        "libnvcuvid",
        "libnvidia-cbl",
        "libnvidia-cfg",
        "libnvidia-compiler",
        "libnvidia-eglcore",
        "libnvidia-egl-wayland",
        "libnvidia-encode",
        "libnvidia-fatbinaryloader",
        "libnvidia-fbc",
        "libnvidia-glcore",
        "libnvidia-glsi",
        "libnvidia-glvkspirv",
        "libnvidia-gpucomp",
        "libnvidia-gtk2",
        "libnvidia-gtk3",
        "libnvidia-ifr",
        "libnvidia-ml",
        "libnvidia-nvvm",
        "libnvidia-opencl",
        "libnvidia-opticalflow",
        "libnvidia-ptxjitcompiler",
        "libnvidia-rtcore",
        "libnvidia-tls",
        "libnvidia-wfb",
        "libnvoptix",
        "libOpenCL",
        "libOpenGL",
        "libvdpau_nvidia",
        "nvidia_drv",
        "tls_test_",
    ],
    files: &[
        "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        "/usr/share/vulkan/icd.d/nvidia_icd.json",
        "/usr/share/vulkan/icd.d/nvidia_layers.json",
        "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
        "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
        "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
        "/usr/share/nvidia/nvoptix.bin",
        "/var/run/nvidia-persistenced/socket",
    ],
    devices: &["nvidia"],
};

/// As Apptainer's rocmliblist.conf has it.
pub const ROCM: Driver = Driver {
    name: "rocm",
    programs: &["rocm-smi", "rocminfo"],
    libraries: &[
        "libCXLActivityLogger",
        "libhc_am",
        "libmcwamp",
        "libmcwamp_cpu",
        "libmcwamp_hsa",
        "libdrm",
        "libdrm_amdgpu",
        "libnuma",
        "libpci",
        "librocr_debug_agent64",
        "libamdcomgr64",
        "libamdocl64",
        "libcltrace",
        "libOpenCL",
    ],
    files: &[],
    devices: &["dri", "kfd"],
};

impl Driver {
    /// What is shown of the host. A warning, if there are no libraries.
    pub fn binds(&self) -> Vec<BindRequest> {
        let mut ldconfig = Command::new("ldconfig");
        ldconfig
            .arg("-p")
            .env("PATH", "/sbin:/usr/sbin:/bin:/usr/bin");
        let listed = match answer_of(&mut ldconfig, b"", Instant::now() + LDCONFIG_LIMIT) {
            Ok((_, listed)) => listed,
            Err(err) => {
                tracing::warn!("ldconfig -p, for the {} driver: {err}", self.name);
                Vec::new()
            }
        };
        let libraries = self.libraries_in(&listed);
        if libraries.is_empty() {
            tracing::warn!("Could not find any {} files on this host!", self.name);
        }
        let mut binds: Vec<BindRequest> = libraries
            .into_iter()
            .map(|(name, path)| shown(path, Path::new("/.singularity.d/libs").join(name)))
            .collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        for name in self.programs {
            let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(name));
            if let Some(program) = candidates.find(|program| program.is_file()) {
                binds.push(shown(program, Path::new("/usr/bin").join(name)));
            }
        }
        for file in self.files.iter().map(PathBuf::from) {
            if file.exists() {
                binds.push(shown(file.clone(), file));
            }
        }
        binds
    }

    /// Its devices, below /dev.
    pub fn devices(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        names
            .filter(|name| {
                let name = name.as_bytes();
                self.devices
                    .iter()
                    .any(|start| name.starts_with(start.as_bytes()))
            })
            .map(PathBuf::from)
            .collect()
    }

    /// Libraries in what `ldconfig -p` says, for this machine's processor, the first of each name.
    fn libraries_in(&self, listed: &[u8]) -> Vec<(PathBuf, PathBuf)> {
        const MACHINE: &str = if cfg!(target_arch = "aarch64") {
            "AArch64"
        } else {
            "x86-64"
        };
        let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
        for line in String::from_utf8_lossy(listed).lines() {
            // `	libcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1`
            let Some((left, path)) = line.trim().split_once(" => ") else {
                continue;
            };
            let Some((name, kind)) = left.split_once(" (") else {
                continue;
            };
            let base = name.split(".so").next().unwrap_or_default();
            let is_wanted = self.libraries.contains(&base);
            let name = PathBuf::from(OsStr::from_bytes(name.as_bytes()));
            if is_wanted && kind.contains(MACHINE) && !found.iter().any(|(known, _)| *known == name)
            {
                found.push((name, PathBuf::from(path)));
            }
        }
        found
    }
}

fn shown(source: PathBuf, target: PathBuf) -> BindRequest {
    BindRequest {
        source,
        target,
        is_read_only: true,
        within_image: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_driver_for_this_machine_are_chosen_once_each() {
        let machine = if cfg!(target_arch = "aarch64") {
            "AArch64"
        } else {
            "x86-64"
        };
        let listed = format!(
            "3 libs found in cache `/etc/ld.so.cache'\n\
             \tlibcuda.so.1 (libc6,{machine}) => /lib/libcuda.so.1\n\
             \tlibcuda.so.1 (libc6) => /lib32/libcuda.so.1\n\
             \tlibcuda.so.1 (libc6,{machine}) => /other/libcuda.so.1\n\
             \tlibc.so.6 (libc6,{machine}) => /lib/libc.so.6\n\
             \tlibcudart.so (libc6,{machine}) => /lib/libcudart.so\n\
             garbage\n"
        );
        let found = NVIDIA.libraries_in(listed.as_bytes());
        let expected = (
            PathBuf::from("libcuda.so.1"),
            PathBuf::from("/lib/libcuda.so.1"),
        );
        assert_eq!(found, [expected]);
    }
}

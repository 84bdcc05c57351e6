//! The kernel, and the programs that stand in for what it refuses.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sifon_mount::sys::mount::fusermount_program;

use super::{Finding, State};
use crate::container::namespaces::{self, Privilege};
use crate::container::subids::{NoRanges, Ranges, found};
use crate::container::writable;

/// The option of `sifon doctor` that prints the profile; named by advice.
pub const APPARMOR_PROFILE_OPTION: &str = "--apparmor-profile";

/// User namespaces can mount FUSE file systems from here on.
const OLDEST: (u32, u32) = (4, 18);

/// Everything about this machine. This process must have a single thread: it tries what starting a program does first.
pub fn host() -> Vec<Finding> {
    let privilege = Privilege::of_caller();
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let namespaces = namespaces(privilege);
    let can_start = namespaces.state != State::Fails;
    let mut findings = vec![
        kernel(&release),
        device(),
        namespaces,
        fusermount(privilege),
    ];
    if can_start {
        findings.extend([subids(privilege), overlays(privilege)]);
    }
    findings
}

fn kernel(release: &str) -> Finding {
    const SUBJECT: &str = "kernel";
    let shown = format!("Linux {release}");
    match version(release) {
        Some(version) if version < OLDEST => Finding::fails(
            SUBJECT,
            format!("{shown} has no FUSE in user namespaces"),
            format!(
                "Linux {}.{} or later is needed; before that, `sifon mount` as root and `sifon pull` work",
                OLDEST.0, OLDEST.1
            ),
        ),
        _ => Finding::works(SUBJECT, shown),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Major and minor number of /dev/fuse (Documentation/admin-guide/devices.txt).
const FUSE_DEVICE: (u32, u32) = (10, 229);

fn device() -> Finding {
    const SUBJECT: &str = "/dev/fuse";
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    match opened.and_then(|device| device.metadata()) {
        Ok(found) if is_fuse(found.rdev()) => Finding::works(SUBJECT, "can be opened"),
        Ok(_) => Finding::fails(
            SUBJECT,
            "is something else than the device of that name",
            format!(
                "as root: rm /dev/fuse; mknod -m 666 /dev/fuse c {} {}",
                FUSE_DEVICE.0, FUSE_DEVICE.1
            ),
        ),
        Err(err) => Finding::fails(
            SUBJECT,
            format!("cannot be opened: {err}"),
            "without it nothing can be mounted: `modprobe fuse`, mode 0666, and in a container pass the device in \
             (--device /dev/fuse); `sifon pull` makes SIF files without it",
        ),
    }
}

fn is_fuse(device: u64) -> bool {
    (rustix::fs::major(device), rustix::fs::minor(device)) == FUSE_DEVICE
}

/// Does what the first start of a program does: namespaces, and a mount in them.
fn namespaces(privilege: Privilege) -> Finding {
    const SUBJECT: &str = "namespaces";
    match namespaces::create(privilege, || namespaces::mount_fuse("/", privilege)) {
        Ok(_) => Finding::works(
            SUBJECT,
            match privilege {
                Privilege::Root => "mount namespaces, as root: exec, run and shell work",
                Privilege::User => {
                    "user and mount namespaces with FUSE in them: exec, run and shell work"
                }
            },
        ),
        Err(error) => {
            let advice = error.hint().unwrap_or("the error says what was refused");
            Finding::fails(SUBJECT, error.in_one_line(), advice)
        }
    }
}

/// The profile that lets a program, this one, make user namespaces where AppArmor forbids them otherwise; for
/// `/etc/apparmor.d/sifon`.
pub fn apparmor_profile(program: &Path) -> String {
    // Within quotes a path stands for itself but for what AppArmor expands in it.
    let mut path = String::new();
    for character in program.to_string_lossy().chars() {
        if matches!(
            character,
            '"' | '\\' | '*' | '?' | '[' | ']' | '{' | '}' | '^' | '@'
        ) {
            path.push('\\');
        }
        path.push(character);
    }
    format!(
        "# Lets sifon make user namespaces, and restricts nothing. To install it:\n\
         #   sifon doctor {APPARMOR_PROFILE_OPTION} | sudo tee /etc/apparmor.d/sifon\n\
         #   sudo apparmor_parser -r /etc/apparmor.d/sifon\n\
         abi <abi/4.0>,\n\
         include <tunables/global>\n\
         \n\
         profile sifon \"{path}\" flags=(unconfined) {{\n  \
           userns,\n\
         \n  \
           include if exists <local/sifon>\n\
         }}\n"
    )
}

/// Plain users need it for `mount` alone.
fn fusermount(privilege: Privilege) -> Finding {
    const SUBJECT: &str = "fusermount3";
    match (fusermount_program(), privilege) {
        (_, Privilege::Root) => Finding::works(SUBJECT, "not needed: root mounts without help"),
        (None, Privilege::User) => Finding::fails(
            SUBJECT,
            "not installed: `sifon mount` does not work; exec, run and shell do without",
            "install it (package fuse3)",
        ),
        (Some(program), Privilege::User) if !is_setuid(&program) => Finding::fails(
            SUBJECT,
            format!(
                "{} has not root's rights: `sifon mount` does not work",
                program.display()
            ),
            format!("as root: chmod u+s {}", program.display()),
        ),
        (Some(program), Privilege::User) => {
            let program = program.display();
            Finding::works(SUBJECT, format!("{program}: mount works"))
        }
    }
}

/// Whether root owns it and its rights come with it. (One without the bit may have capabilities, which no distribution gives it.)
fn is_setuid(program: &Path) -> bool {
    fs::metadata(program).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o4000 != 0)
}

/// Makes a user namespace with the ranges that the site gives.
fn subids(privilege: Privilege) -> Finding {
    const SUBJECT: &str = "subordinate ids";
    const ONE_USER: &str = "--fakeroot has one user, root";
    if privilege == Privilege::Root {
        return Finding::works(SUBJECT, "not needed: root has every number");
    }
    let ranges = match Ranges::of_caller() {
        Ok(ranges) => ranges,
        Err(problem) => {
            let advice = match problem {
                NoRanges::NoHelper(_) => "install it",
                NoRanges::NotGiven { .. } => {
                    "the administrator can give a range: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
                }
            };
            return Finding::limited(SUBJECT, format!("{problem}: {ONE_USER}"), advice);
        }
    };
    match namespaces::new_user_namespace_with(&ranges) {
        Ok(_) => {
            let Ranges { users, groups } = ranges;
            Finding::works(
                SUBJECT,
                format!(
                    "{} users from {} and {} groups from {}: --fakeroot has them beside root",
                    users.count, users.first, groups.count, groups.first
                ),
            )
        }
        Err(error) => Finding::limited(
            SUBJECT,
            format!("{}: --fakeroot does not work", error.in_one_line()),
            "newuidmap and newgidmap need root's rights (as root: chmod u+s), and the ranges must be the user's own",
        ),
    }
}

/// What writing into an image needs: the kernel, or programs where it does not help.
fn overlays(privilege: Privilege) -> Finding {
    let refusal = writable::try_kernel_overlay(privilege).err();
    overlays_with(refusal.map(|error| error.in_one_line()), |program| {
        found(program).is_some()
    })
}

fn overlays_with(refusal: Option<String>, is_installed: impl Fn(&str) -> bool) -> Finding {
    const SUBJECT: &str = "overlays";
    let (by_kernel, needs_program) = match refusal {
        None => (
            "by the kernel".to_owned(),
            "--overlay DIR on NFS, Lustre or GPFS",
        ),
        Some(refusal) => (
            format!("not by the kernel ({refusal})"),
            "--writable-tmpfs, --overlay DIR",
        ),
    };
    let missing: Vec<_> = [
        ("fuse-overlayfs", needs_program),
        ("fuse2fs", "--overlay FILE.ext3"),
    ]
    .into_iter()
    .filter(|(program, _)| !is_installed(program))
    .collect();
    if missing.is_empty() {
        return Finding::works(
            SUBJECT,
            format!(
                "{by_kernel}, by fuse-overlayfs and fuse2fs: --writable-tmpfs and --overlay work"
            ),
        );
    }
    let (names, uses): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    let names = names.join(", ");
    Finding::limited(
        SUBJECT,
        format!(
            "{by_kernel}; not installed: {names}; without them not possible: {}",
            uses.join(", ")
        ),
        format!("install {names} (packages of these names)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_what_they_can() {
        for (release, state) in [
            ("3.10.0-1160.el7.x86_64", State::Fails),
            ("4.17.0", State::Fails),
            ("4.18.0-553.el8.x86_64", State::Works),
            ("5.10.0-28-amd64", State::Works),
            ("6.8.0-45-generic", State::Works),
            ("10.0-rc1", State::Works),
            ("unheard of", State::Works),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn what_cannot_be_written_into_is_told_by_what_is_missing() {
        let refusal = || Some("overlay: Operation not permitted".to_owned());
        let with = |refusal, programs: &'static [&str]| {
            overlays_with(refusal, |program| programs.contains(&program))
        };
        let all = &["fuse-overlayfs", "fuse2fs"];
        assert_eq!(with(None, all).state, State::Works);
        assert_eq!(with(refusal(), all).state, State::Works);
        let old = with(refusal(), &["fuse2fs"]);
        assert_eq!(old.state, State::Limited);
        assert!(
            old.found.contains("not permitted") && old.found.contains("--writable-tmpfs"),
            "{old:?}"
        );
        let new = with(None, &["fuse2fs"]);
        assert!(
            new.found.contains("NFS") && !new.found.contains("--writable-tmpfs"),
            "{new:?}"
        );
        assert!(
            with(None, &["fuse-overlayfs"])
                .found
                .contains("--overlay FILE.ext3")
        );
    }

    #[test]
    fn a_profile_names_the_program_as_it_is() {
        let profile = apparmor_profile(Path::new("/opt/my tools/{x}/sifon"));
        let line = "profile sifon \"/opt/my tools/\\{x\\}/sifon\" flags=(unconfined) {";
        assert!(
            profile.contains(line) && profile.contains("  userns,\n"),
            "{profile}"
        );
    }
}

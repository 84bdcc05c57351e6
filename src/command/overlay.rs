//! `sifon overlay`: files for `--overlay`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use rustix::fs::FallocateFlags;
use sifon_mount::source::sif::{
    FILE_SYSTEM_EXT3, GROUP, ROLE_OVERLAY, RawPartition, TYPE_PARTITION,
};
use zerocopy::{FromBytes, IntoBytes};

use super::compact::time_of_change;
use crate::container::ext::{self, Ext};
use crate::pack::sif::{Appended, Object, ObjectKind, PARTITION_ALIGNMENT, Sif, SifError, append};
use crate::pack::with_copy;
use crate::setting::Error;

/// Make a file that programs can write into an image by
///
/// What `sifon exec --overlay FILE` and Apptainer's option of that name take: an ext3 file system in a file. What
/// `sifon exec --writable FILE.sif` takes: the same in a SIF.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make such a file, or such a file system in a SIF
    ///
    /// In a SIF it is what --writable writes into. A copy gets it and takes the file's place, so that containers that run
    /// from the file go on. Needs the programs mke2fs and, with --fakeroot, debugfs (Debian's e2fsprogs).
    Create(Create),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Size of the file system, in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 64)]
    size: u64,
    /// Take space on the disk only for what is written
    #[arg(short = 'S', long)]
    sparse: bool,
    /// A directory that is to be there, with those above it
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    create_dir: Vec<PathBuf>,
    /// For programs that are started with --fakeroot
    #[arg(short, long)]
    fakeroot: bool,
    /// The file: a SIF, or one that is not there yet
    file: PathBuf,
}

/// Singularity's smallest, because the journal takes some of it.
const LEAST_MIB: u64 = 64;

/// Makes the file, or changes it; if that fails, none is left, or it is as it was.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let Verb::Create(create) = &args.verb;
    if create.size < LEAST_MIB {
        return Err(format!("image size must be equal or greater than {LEAST_MIB} MiB").into());
    }
    let bytes = create.size.checked_mul(1 << 20);
    let bytes = bytes.filter(|&bytes| i64::try_from(bytes).is_ok());
    let bytes = bytes.ok_or("--size: larger than any file")?;
    let path = &create.file;
    let is_there = fs::symlink_metadata(path).is_ok();
    let made = match is_there {
        true => create.in_sif(bytes),
        false => create.in_new_file(bytes),
    };
    made.map_err(|err| Failure(path.display().to_string(), err))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(String, #[source] Error);

impl Create {
    fn in_new_file(&self, bytes: u64) -> Result<(), Error> {
        let file = File::create_new(&self.file)?;
        let made = filled(&file, 0..bytes, self.sparse)
            .map_err(Error::from)
            .and_then(|()| {
                let place = Ext::new(self.file.clone(), 0)?;
                self.lay_out(&place, bytes)
            });
        if made.is_err() {
            // The error that is told is the first one.
            let _ = fs::remove_file(&self.file);
        }
        made
    }

    fn in_sif(&self, bytes: u64) -> Result<(), Error> {
        // The name may be a link, which stays one.
        let path = self.file.canonicalize()?;
        let sif = match Sif::open(File::open(&path)?) {
            Err(SifError::NotSif(_)) => return Err("is there already, and is no SIF".into()),
            sif => sif?,
        };
        if let Some(overlay) = sif.writable_overlay() {
            let id = overlay.id;
            let problem = format!("a writable overlay partition already exists in it (ID: {id})");
            return Err(problem.into());
        }
        let is_signature = |object: &Object| object.kind == ObjectKind::Signature;
        if sif.objects.iter().any(is_signature) {
            return Err(
                "SIF image is signed: could not add writable overlay; give it a file of its own"
                    .into(),
            );
        }
        let Some(system) = sif.primary_partition() else {
            return Err("the SIF has no root file system".into());
        };
        let (raw, _) = RawPartition::read_from_prefix(&system.raw.extra)
            .map_err(|_| "the SIF's root file system is of no kind")?;
        let extra = RawPartition {
            file_system: FILE_SYSTEM_EXT3.into(),
            role: ROLE_OVERLAY.into(),
            ..raw
        };
        let object = Appended {
            object_type: TYPE_PARTITION,
            group: GROUP | 1,
            linked: 0,
            extra: extra.as_bytes(),
            alignment: PARTITION_ALIGNMENT,
        };
        let now = time_of_change()?;
        with_copy(&path, |copy| {
            append(copy, &sif, &object, now, |at| {
                filled(copy, at..at + bytes, self.sparse)?;
                let file = format!("/proc/{}/fd/{}", std::process::id(), copy.as_raw_fd()).into();
                self.lay_out(&Ext::new(file, at)?, bytes)?;
                Ok(bytes)
            })
        })
    }

    fn lay_out(&self, place: &Ext, bytes: u64) -> Result<(), Error> {
        let scratch = tempfile::tempdir()?;
        let mut made = Vec::new();
        for name in ext::DIRECTORIES {
            directory(scratch.path(), Path::new(name), &mut made)?;
        }
        for wanted in &self.create_dir {
            let mut path = PathBuf::from(ext::DIRECTORIES[0]);
            for part in wanted.components() {
                match part {
                    Component::Normal(name) => path.push(name),
                    Component::RootDir | Component::CurDir => continue,
                    Component::ParentDir | Component::Prefix(_) => {
                        let wanted = wanted.display();
                        return Err(format!("--create-dir: {wanted} leads out of the image").into());
                    }
                }
                directory(scratch.path(), &path, &mut made)?;
            }
        }
        let caller = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let owner = if self.fakeroot { (0, 0) } else { caller };
        ext::create(place, bytes, scratch.path(), owner)?;
        if owner != caller {
            ext::own(place, &made, owner)?;
        }
        Ok(())
    }
}

/// Makes `path` below `root`, if that is not there yet, and notes that.
fn directory(root: &Path, path: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let has_control = path.as_os_str().as_bytes().iter().any(u8::is_ascii_control);
    if has_control {
        return Err("--create-dir: a name has a control character in it".into());
    }
    let full = root.join(path);
    match DirBuilder::new().create(&full) {
        Ok(()) => made.push(path.to_path_buf()),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(err) => return Err(format!("{}: {err}", full.display()).into()),
    }
    // Whatever the umask says.
    fs::set_permissions(&full, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Makes the file so long that it has `bytes`, which are zeros.
fn filled(file: &File, bytes: Range<u64>, is_sparse: bool) -> io::Result<()> {
    if !is_sparse {
        let len = bytes.end - bytes.start;
        match rustix::fs::fallocate(file, FallocateFlags::empty(), bytes.start, len) {
            Ok(()) => return Ok(()),
            // A file system that cannot promise space.
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err.into()),
        }
    }
    file.set_len(bytes.end)
}

//! `sifon overlay`: files for `--overlay`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use rustix::fs::FallocateFlags;

use crate::container::ext;
use crate::setting::Error;

/// Make a file that programs can write into an image by
///
/// What `sifon exec --overlay FILE` and Apptainer's option of that name take: an ext3 file system in a file.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make such a file
    ///
    /// Needs the programs mke2fs and, with --fakeroot, debugfs (Debian's e2fsprogs).
    Create(Create),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Size of the file, in MiB
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
    /// The file, which must not be there
    file: PathBuf,
}

/// Singularity's smallest, because the journal takes some of it.
const LEAST_MIB: u64 = 64;

/// Makes the file; leaves none if that fails.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let Verb::Create(create) = &args.verb;
    if create.size < LEAST_MIB {
        return Err(format!("image size must be equal or greater than {LEAST_MIB} MiB").into());
    }
    let bytes = create.size.checked_mul(1 << 20);
    let bytes = bytes.filter(|&bytes| i64::try_from(bytes).is_ok());
    let bytes = bytes.ok_or("--size: larger than any file")?;
    let path = &create.file;
    let file = File::create_new(path).map_err(|err| refusal(path, &err))?;
    let made = filled(&file, bytes, create.sparse)
        .map_err(|err| Error::from(format!("{}: {err}", path.display())))
        .and_then(|()| create.laid_out());
    if made.is_err() {
        // The error that is told is the first one.
        let _ = fs::remove_file(path);
    }
    made?;
    Ok(ExitCode::SUCCESS)
}

impl Create {
    fn laid_out(&self) -> Result<(), Error> {
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
        ext::create(&self.file, scratch.path(), owner)?;
        if owner != caller {
            ext::own(&self.file, &made, owner)?;
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

/// Makes the file as long as it is to be.
fn filled(file: &File, bytes: u64, is_sparse: bool) -> io::Result<()> {
    if !is_sparse {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            // A file system that cannot promise space.
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err.into()),
        }
    }
    file.set_len(bytes)
}

fn refusal(path: &Path, err: &io::Error) -> String {
    let path = path.display();
    match err.kind() {
        io::ErrorKind::AlreadyExists => {
            format!(
                "{path}: is there already; an overlay is not added to a SIF, give it a file of its own"
            )
        }
        _ => format!("{path}: {err}"),
    }
}

//! Tar headers: POSIX ustar, with a PAX header before it for what ustar cannot say.

use sifon_mount::layer::entry::Timestamp;

use super::{Entry, Kind, WriteError};

/// An entry as the tar has it.
pub struct Member<'a> {
    /// The entry it comes from.
    pub entry: &'a Entry,
    /// Its name in the tar: directories end with a slash, whiteouts have AUFS's names.
    pub name: String,
    /// Where a link points; empty for others.
    pub target: &'a str,
    /// Its header blocks.
    pub header: Vec<u8>,
}

impl<'a> Member<'a> {
    /// The member for `entry`.
    pub fn of(entry: &'a Entry) -> Result<Self, WriteError> {
        let utf8 =
            |bytes| std::str::from_utf8(bytes).map_err(|_| WriteError::NotUtf8(entry.path.clone()));
        let path = utf8(&entry.path)?;
        let target = match &entry.kind {
            Kind::Symlink { target } | Kind::Hardlink { target } => utf8(target)?,
            Kind::Socket => return Err(WriteError::Socket(entry.path.clone())),
            _ => "",
        };
        for (name, _) in &entry.xattrs {
            utf8(name)?;
        }
        let mut member = Self {
            entry,
            name: name_of(path, &entry.kind),
            target,
            header: Vec::new(),
        };
        member.header = member.blocks();
        Ok(member)
    }

    /// How many bytes of content follow its header.
    pub fn size(&self) -> u64 {
        match self.entry.kind {
            Kind::Regular { size } | Kind::Hidden { size } => size,
            _ => 0,
        }
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> (u32, u32) {
        match self.entry.kind {
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                (major, minor)
            }
            _ => (0, 0),
        }
    }

    /// POSIX's type flag, and the word that a TOC has for it.
    pub fn kind(&self) -> (u8, &'static str) {
        match self.entry.kind {
            Kind::Regular { .. } | Kind::Hidden { .. } | Kind::Whiteout | Kind::Opaque => {
                (b'0', "reg")
            }
            Kind::Hardlink { .. } => (b'1', "hardlink"),
            Kind::Symlink { .. } => (b'2', "symlink"),
            Kind::CharDevice { .. } => (b'3', "char"),
            Kind::BlockDevice { .. } => (b'4', "block"),
            Kind::Directory => (b'5', "dir"),
            Kind::Fifo => (b'6', "fifo"),
            Kind::Socket => unreachable!("refused when the member was made"),
        }
    }

    fn blocks(&self) -> Vec<u8> {
        let records = self.pax_records();
        let mut blocks = Vec::new();
        if !records.is_empty() {
            let header = Ustar {
                name: b"PaxHeader",
                kind: b'x',
                mode: 0o644,
                size: records.len() as u64,
                ..Ustar::default()
            };
            blocks.extend_from_slice(&header.block());
            blocks.extend_from_slice(&records);
            blocks.resize(blocks.len().next_multiple_of(512), 0);
        }
        let (major, minor) = self.device();
        let header = Ustar {
            name: self.name.as_bytes(),
            target: self.target.as_bytes(),
            kind: self.kind().0,
            mode: self.entry.mode.into(),
            uid: self.entry.uid,
            gid: self.entry.gid,
            mtime: u64::try_from(self.entry.mtime.secs).unwrap_or(0),
            size: self.size(),
            major,
            minor,
        };
        blocks.extend_from_slice(&header.block());
        blocks
    }

    /// What does not fit the ustar header (POSIX `pax`, "pax Extended Header").
    fn pax_records(&self) -> Vec<u8> {
        let Entry {
            uid, gid, mtime, ..
        } = *self.entry;
        let mut records = Vec::new();
        let mut record = |is_needed: bool, key: &str, value: &[u8]| {
            if is_needed {
                pax_record(&mut records, key, value);
            }
        };
        record(self.name.len() > 100, "path", self.name.as_bytes());
        record(self.target.len() > 100, "linkpath", self.target.as_bytes());
        record(uid > SHORT_MAX, "uid", uid.to_string().as_bytes());
        record(gid > SHORT_MAX, "gid", gid.to_string().as_bytes());
        let size = self.size();
        record(size > LONG_MAX, "size", size.to_string().as_bytes());
        let fits = mtime.nanos == 0 && (0..=LONG_MAX as i64).contains(&mtime.secs);
        record(!fits, "mtime", decimal(mtime).as_bytes());
        for (name, value) in &self.entry.xattrs {
            let name = String::from_utf8_lossy(name);
            record(true, &format!("SCHILY.xattr.{name}"), value);
        }
        records
    }
}

/// The largest number in a field of 8 bytes: seven octal digits and a NUL.
const SHORT_MAX: u32 = 0o7_777_777;

/// The largest number in a field of 12 bytes.
const LONG_MAX: u64 = 0o77_777_777_777;

fn name_of(path: &str, kind: &Kind) -> String {
    let (directory, last) = match path.rfind('/') {
        Some(slash) => path.split_at(slash + 1),
        None => ("", path),
    };
    match kind {
        Kind::Directory if path.is_empty() => "./".to_owned(),
        Kind::Directory => format!("{path}/"),
        Kind::Whiteout => format!("{directory}.wh.{last}"),
        Kind::Opaque if path.is_empty() => ".wh..wh..opq".to_owned(),
        Kind::Opaque => format!("{path}/.wh..wh..opq"),
        _ => path.to_owned(),
    }
}

/// Seconds since 1970 as PAX writes them: the fraction belongs to the number, also of a negative one.
fn decimal(time: Timestamp) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let (secs, fraction) = (
        nanos.unsigned_abs() / 1_000_000_000,
        nanos.unsigned_abs() % 1_000_000_000,
    );
    let text = format!("{sign}{secs}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    records.extend_from_slice(format!("{len} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The fields of a ustar header (POSIX `pax`, "ustar Interchange Format"). What does not fit is cut or
/// zero: a PAX record says it.
#[derive(Default)]
struct Ustar<'a> {
    name: &'a [u8],
    target: &'a [u8],
    kind: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    size: u64,
    major: u32,
    minor: u32,
}

impl Ustar<'_> {
    fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut text = |at: usize, len: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(len)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        text(0, 100, self.name);
        text(100, 8, &octal(self.mode.into(), 7));
        text(108, 8, &octal(self.uid.into(), 7));
        text(116, 8, &octal(self.gid.into(), 7));
        text(124, 12, &octal(self.size, 11));
        text(136, 12, &octal(self.mtime, 11));
        text(148, 8, b"        ");
        text(156, 1, &[self.kind]);
        text(157, 100, self.target);
        text(257, 8, b"ustar\x0000");
        if matches!(self.kind, b'3' | b'4') {
            text(329, 8, &octal(self.major.into(), 7));
            text(337, 8, &octal(self.minor.into(), 7));
        }
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..155].copy_from_slice(&[&octal(sum, 6)[..], b"\0"].concat());
        block
    }
}

/// `number` with `digits` octal digits; 0 if it has more.
fn octal(number: u64, digits: usize) -> Vec<u8> {
    let number = if number >> (3 * digits) == 0 {
        number
    } else {
        0
    };
    format!("{number:0digits$o}").into_bytes()
}

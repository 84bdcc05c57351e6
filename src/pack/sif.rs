//! SIF, version 1: the file that Singularity and Apptainer run. Writing one, and reading its table.
//!
//! ```text
//! header | descriptors | objects      the header says where the others begin
//! ```
//!
//! The format is defined by github.com/apptainer/sif, `pkg/sif`; integers are little-endian and nothing is padded.
//! A descriptor tells an object's type, place and name; the object with the root file system is the primary
//! system partition.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{I32, I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first 128 bytes of the file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    /// What a shell runs when the file is started: [`LAUNCH`], padded with zeros.
    launch: [u8; 32],
    magic: [u8; 10],
    version: [u8; 3],
    /// Of the primary partition, one of [`ARCHITECTURES`].
    architecture: [u8; 3],
    uuid: [u8; 16],
    created: I64,
    modified: I64,
    descriptors_free: I64,
    descriptors_total: I64,
    descriptors_at: I64,
    descriptors_len: I64,
    data_at: I64,
    data_len: I64,
}

/// One object. An unused descriptor is all zeros.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDescriptor {
    /// One of the `TYPE_` numbers.
    object_type: I32,
    used: u8,
    id: U32,
    group: U32,
    linked: U32,
    at: I64,
    len: I64,
    /// The gap before the object counts too.
    len_with_padding: I64,
    created: I64,
    modified: I64,
    uid: I64,
    gid: I64,
    name: [u8; 128],
    extra: [u8; 384],
}

/// [`RawDescriptor::extra`] of a partition, in its first bytes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPartition {
    file_system: I32,
    role: I32,
    architecture: [u8; 3],
}

const _: () = assert!(size_of::<RawHeader>() == 128 && size_of::<RawDescriptor>() == 585);
const _: () = assert!(std::mem::offset_of!(RawHeader, data_at) == 112);
const _: () = assert!(std::mem::offset_of!(RawDescriptor, name) == 73);
const _: () = assert!(size_of::<RawPartition>() == 11);

/// The line that makes a SIF a program: `run-singularity` is looked up in `PATH`.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";
const MAGIC: [u8; 10] = *b"SIF_MAGIC\0";
const VERSION: [u8; 3] = *b"01\0";

/// As many as Apptainer makes room for; the free ones are for signatures.
const DESCRIPTORS: usize = 48;
/// More than any tool writes; a header that asks for more is damaged.
const DESCRIPTORS_LIMIT: i64 = 4096;
const DESCRIPTORS_AT: u64 = 4096;
const DATA_AT: u64 = DESCRIPTORS_AT + (DESCRIPTORS * size_of::<RawDescriptor>()) as u64;
/// A loop device maps whole pages.
const PARTITION_ALIGNMENT: u64 = 4096;

/// Marks group numbers, so that they are no object's.
const GROUP: u32 = 0xf000_0000;

const TYPE_DEFFILE: i32 = 0x4001;
const TYPE_PARTITION: i32 = 0x4004;
const TYPE_GENERIC_JSON: i32 = 0x4006;

const FILE_SYSTEM_SQUASHFS: i32 = 1;
const ROLE_PRIMARY_SYSTEM: i32 = 2;

/// Architectures as OCI names them, and their codes.
const ARCHITECTURES: [(&str, [u8; 3]); 13] = [
    ("386", *b"01\0"),
    ("amd64", *b"02\0"),
    ("arm", *b"03\0"),
    ("arm64", *b"04\0"),
    ("ppc64", *b"05\0"),
    ("ppc64le", *b"06\0"),
    ("mips", *b"07\0"),
    ("mipsle", *b"08\0"),
    ("mips64", *b"09\0"),
    ("mips64le", *b"10\0"),
    ("s390x", *b"11\0"),
    ("riscv64", *b"12\0"),
    ("loong64", *b"13\0"),
];

/// The code of an architecture; `00`, which every host accepts, for one that SIF does not know.
fn architecture_code(name: &str) -> [u8; 3] {
    ARCHITECTURES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(*b"00\0", |(_, code)| *code)
}

/// The name of an architecture's code.
fn architecture_name(code: [u8; 3]) -> Option<&'static str> {
    ARCHITECTURES
        .iter()
        .find(|(_, known)| *known == code)
        .map(|(name, _)| *name)
}

/// What the file says about itself as a whole.
#[derive(Clone, Debug)]
pub struct Identity {
    /// A name for these contents.
    pub uuid: [u8; 16],
    /// Seconds since 1970, for the file and all its objects.
    pub created: i64,
    /// As OCI names it, such as `amd64`.
    pub architecture: String,
}

/// Writes a SIF, object by object, into an empty file.
pub struct Writer<'a> {
    file: &'a File,
    identity: Identity,
    descriptors: Vec<RawDescriptor>,
    end: u64,
}

impl<'a> Writer<'a> {
    /// Nothing is written before the first object.
    pub fn new(file: &'a File, identity: Identity) -> Self {
        Self {
            file,
            identity,
            descriptors: Vec::new(),
            end: DATA_AT,
        }
    }

    /// Appends the text that `inspect --deffile` shows.
    pub fn deffile(&mut self, text: &str) -> io::Result<()> {
        self.small(TYPE_DEFFILE, "", text.as_bytes())
    }

    /// Appends a JSON object under a name that `inspect` or another tool looks for.
    pub fn json(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        self.small(TYPE_GENERIC_JSON, name, text)
    }

    /// Appends the primary system partition. `write` gets the offset where it begins, writes a squashfs there and
    /// returns its length; what it left behind its end is cut off.
    pub fn partition<E: From<io::Error>>(
        &mut self,
        write: impl FnOnce(&'a File, u64) -> Result<u64, E>,
    ) -> Result<(), E> {
        let at = self.end.next_multiple_of(PARTITION_ALIGNMENT);
        let len = write(self.file, at)?;
        self.file.set_len(at + len)?;
        let partition = RawPartition {
            file_system: FILE_SYSTEM_SQUASHFS.into(),
            role: ROLE_PRIMARY_SYSTEM.into(),
            architecture: architecture_code(&self.identity.architecture),
        };
        self.describe(TYPE_PARTITION, "", partition.as_bytes(), at, len)?;
        Ok(())
    }

    /// Writes the table and the header; without them the file is no SIF. Returns its length.
    pub fn finish(self) -> io::Result<u64> {
        let time = I64::new(self.identity.created);
        let mut launch = [0; 32];
        launch[..LAUNCH.len()].copy_from_slice(LAUNCH);
        let header = RawHeader {
            launch,
            magic: MAGIC,
            version: VERSION,
            architecture: architecture_code(&self.identity.architecture),
            uuid: self.identity.uuid,
            created: time,
            modified: time,
            descriptors_free: ((DESCRIPTORS - self.descriptors.len()) as i64).into(),
            descriptors_total: (DESCRIPTORS as i64).into(),
            descriptors_at: (DESCRIPTORS_AT as i64).into(),
            descriptors_len: ((DATA_AT - DESCRIPTORS_AT) as i64).into(),
            data_at: (DATA_AT as i64).into(),
            data_len: ((self.end - DATA_AT) as i64).into(),
        };
        self.file
            .write_all_at(self.descriptors.as_bytes(), DESCRIPTORS_AT)?;
        self.file.write_all_at(header.as_bytes(), 0)?;
        Ok(self.end)
    }

    fn small(&mut self, object_type: i32, name: &str, bytes: &[u8]) -> io::Result<()> {
        let at = self.end;
        self.file.write_all_at(bytes, at)?;
        self.describe(object_type, name, &[], at, bytes.len() as u64)
    }

    fn describe(
        &mut self,
        object_type: i32,
        name: &str,
        extra: &[u8],
        at: u64,
        len: u64,
    ) -> io::Result<()> {
        let signed = |value: u64| i64::try_from(value).map(I64::new).map_err(io::Error::other);
        let mut descriptor = RawDescriptor {
            object_type: object_type.into(),
            used: 1,
            id: (self.descriptors.len() as u32 + 1).into(),
            group: (GROUP | 1).into(),
            linked: 0.into(),
            at: signed(at)?,
            len: signed(len)?,
            len_with_padding: signed(at - self.end + len)?,
            created: self.identity.created.into(),
            modified: self.identity.created.into(),
            uid: 0.into(),
            gid: 0.into(),
            name: [0; 128],
            extra: [0; 384],
        };
        // One byte stays for the zero that ends a name.
        let name = &name.as_bytes()[..name.len().min(127)];
        descriptor.name[..name.len()].copy_from_slice(name);
        descriptor.extra[..extra.len()].copy_from_slice(extra);
        self.descriptors.push(descriptor);
        self.end = at + len;
        Ok(())
    }
}

/// The table of a SIF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sif {
    /// The name of these contents.
    pub uuid: [u8; 16],
    /// Seconds since 1970.
    pub created: i64,
    /// The architecture of the primary partition, as OCI names it, where it is known.
    pub architecture: Option<&'static str>,
    /// How many descriptors the table has room for.
    pub capacity: u64,
    /// Where objects begin.
    pub data_at: u64,
    /// All objects, in the order of the table.
    pub objects: Vec<Object>,
}

/// One object of a SIF. Its bytes lie inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Counted from 1.
    pub id: u32,
    /// The group whose members are signed together.
    pub group: Option<u32>,
    /// The object's name, often empty.
    pub name: Vec<u8>,
    /// Where its bytes begin.
    pub at: u64,
    /// How many they are.
    pub len: u64,
    /// What they are.
    pub kind: ObjectKind,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// The text an image was made from.
    Deffile,
    /// JSON that its name explains.
    GenericJson,
    /// A file system.
    Partition {
        /// Whether it is the root file system, of which a file has one.
        is_primary: bool,
        /// Whether it is a squashfs that nothing encrypts.
        is_squashfs: bool,
    },
    /// Anything else, by its number.
    Other(i32),
}

/// Why a file is no SIF that can be read.
#[derive(Debug, thiserror::Error)]
pub enum SifError {
    /// It does not begin like one.
    #[error("not a SIF: {0}")]
    NotSif(&'static str),
    /// It begins like one.
    #[error("SIF, {part} {index}: {problem}")]
    Damaged {
        /// Header or descriptor.
        part: &'static str,
        /// Which one, counted from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Reading failed.
    #[error("SIF")]
    Io(#[from] io::Error),
}

impl Sif {
    /// Reads header and table; the objects stay where they are.
    pub fn open(mut file: impl Read + Seek) -> Result<Self, SifError> {
        let file_len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(size_of::<RawHeader>() as u64)
            .read_to_end(&mut bytes)?;
        let header = Header::parse(&bytes, file_len)?;
        bytes.clear();
        file.seek(SeekFrom::Start(header.descriptors_at))?;
        file.take(header.descriptors_len())
            .read_to_end(&mut bytes)?;
        header.table(&bytes)
    }

    /// The root file system.
    pub fn primary_partition(&self) -> Option<&Object> {
        self.objects.iter().find(|object| {
            matches!(
                object.kind,
                ObjectKind::Partition {
                    is_primary: true,
                    ..
                }
            )
        })
    }

    /// The first object of this kind and name.
    pub fn named(&self, kind: ObjectKind, name: &str) -> Option<&Object> {
        self.objects
            .iter()
            .find(|object| object.kind == kind && object.name == name.as_bytes())
    }
}

/// A header whose places lie inside the file.
struct Header {
    raw: RawHeader,
    file_len: u64,
    descriptors_at: u64,
    descriptors: usize,
    data_at: u64,
}

impl Header {
    fn parse(bytes: &[u8], file_len: u64) -> Result<Self, SifError> {
        let (raw, _) = RawHeader::read_from_prefix(bytes)
            .map_err(|_| SifError::NotSif("shorter than a header"))?;
        if raw.magic != MAGIC {
            return Err(SifError::NotSif("the magic number is missing"));
        }
        if raw.version != VERSION {
            return Err(SifError::NotSif("a version other than 01"));
        }
        let damaged = |problem| SifError::Damaged {
            part: "header",
            index: 0,
            problem,
        };
        let total = raw.descriptors_total.get();
        if !(0..=DESCRIPTORS_LIMIT).contains(&total) {
            return Err(damaged("it has room for too many objects"));
        }
        let mut header = Self {
            raw,
            file_len,
            descriptors_at: 0,
            descriptors: total as usize,
            data_at: 0,
        };
        header.descriptors_at = header
            .inside(raw.descriptors_at, header.descriptors_len())
            .ok_or_else(|| damaged("its descriptors lie outside the file"))?;
        header.data_at = header
            .inside(raw.data_at, 0)
            .ok_or_else(|| damaged("its objects lie outside the file"))?;
        Ok(header)
    }

    fn descriptors_len(&self) -> u64 {
        (self.descriptors * size_of::<RawDescriptor>()) as u64
    }

    /// `at`, if `len` bytes from there are in the file.
    fn inside(&self, at: I64, len: u64) -> Option<u64> {
        let at = u64::try_from(at.get()).ok()?;
        (at.checked_add(len)? <= self.file_len).then_some(at)
    }

    fn table(&self, bytes: &[u8]) -> Result<Sif, SifError> {
        let (descriptors, _) =
            <[RawDescriptor]>::ref_from_prefix_with_elems(bytes, self.descriptors).map_err(
                |_| SifError::Damaged {
                    part: "descriptor",
                    index: bytes.len() / size_of::<RawDescriptor>(),
                    problem: "the file ends here",
                },
            )?;
        let objects = descriptors
            .iter()
            .enumerate()
            .filter(|(_, raw)| raw.used != 0)
            .map(|(index, raw)| {
                self.object(raw).map_err(|problem| SifError::Damaged {
                    part: "descriptor",
                    index,
                    problem,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Sif {
            uuid: self.raw.uuid,
            created: self.raw.created.get(),
            architecture: architecture_name(self.raw.architecture),
            capacity: self.descriptors as u64,
            data_at: self.data_at,
            objects,
        })
    }

    fn object(&self, raw: &RawDescriptor) -> Result<Object, &'static str> {
        let len = u64::try_from(raw.len.get()).map_err(|_| "its length is negative")?;
        let at = self
            .inside(raw.at, len)
            .ok_or("its object lies outside the file")?;
        let name_len = raw.name.iter().position(|&byte| byte == 0);
        let kind = match raw.object_type.get() {
            TYPE_DEFFILE => ObjectKind::Deffile,
            TYPE_GENERIC_JSON => ObjectKind::GenericJson,
            TYPE_PARTITION => {
                let (partition, _) = RawPartition::read_from_prefix(&raw.extra)
                    .expect("a partition's part fits into the extra bytes");
                ObjectKind::Partition {
                    is_primary: partition.role.get() == ROLE_PRIMARY_SYSTEM,
                    is_squashfs: partition.file_system.get() == FILE_SYSTEM_SQUASHFS,
                }
            }
            other => ObjectKind::Other(other),
        };
        Ok(Object {
            id: raw.id.get(),
            group: (raw.group.get() != GROUP).then_some(raw.group.get() & !GROUP),
            name: raw.name[..name_len.unwrap_or(raw.name.len())].to_vec(),
            at,
            len,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const DEFFILE: &str = "bootstrap: docker\nfrom: a:b\n\n";

    fn sample() -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        let identity = Identity {
            uuid: [7; 16],
            created: 1_700_000_000,
            architecture: "amd64".into(),
        };
        let mut writer = Writer::new(&file, identity);
        writer.deffile(DEFFILE).unwrap();
        writer.json("inspect-metadata.json", b"{}").unwrap();
        writer.json("oci-config.json", b"[1]").unwrap();
        writer
            .partition(|file, at| {
                file.write_all_at(b"hsqs, and a stale tail", at)?;
                Ok::<_, io::Error>(4)
            })
            .unwrap();
        let len = writer.finish().unwrap();
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), len);
        bytes
    }

    /// The numbers are those of a file that Apptainer wrote.
    #[test]
    fn the_layout_is_apptainers() {
        let bytes = sample();
        let number = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(&bytes[..32], b"#!/usr/bin/env run-singularity\n\0");
        assert_eq!(&bytes[32..48], b"SIF_MAGIC\x0001\x0002\0");
        assert_eq!(&bytes[48..64], [7; 16]);
        assert_eq!((number(64), number(72)), (1_700_000_000, 1_700_000_000));
        let places = [44, 48, 4096, 28_080, 32_176];
        assert_eq!([80, 88, 96, 104, 112].map(number), places);
        assert_eq!(number(120), bytes.len() as i64 - 32_176);

        let partition = 4096 + 3 * 585;
        assert_eq!(&bytes[partition..partition + 4], 0x4004_i32.to_le_bytes());
        assert_eq!(&bytes[partition + 4..partition + 9], [1, 4, 0, 0, 0]);
        assert_eq!(&bytes[partition + 9..partition + 13], [1, 0, 0, 0xf0]);
        assert_eq!(number(partition + 17), 32_768);
        assert_eq!(number(partition + 25), 4);
        let before = 32_176 + DEFFILE.len() as i64 + 2 + 3;
        assert_eq!(number(partition + 33), 32_768 - before + 4);
        assert_eq!(
            &bytes[partition + 201..partition + 212],
            b"\x01\0\0\0\x02\0\0\x0002\0"
        );
        assert_eq!(&bytes[32_768..], b"hsqs");
    }

    #[test]
    fn a_sif_reads_back_as_written() {
        let bytes = sample();
        let sif = Sif::open(Cursor::new(&bytes)).unwrap();
        assert_eq!((sif.capacity, sif.data_at), (48, 32_176));
        assert_eq!(sif.architecture, Some("amd64"));
        let objects: Vec<_> = sif
            .objects
            .iter()
            .map(|object| {
                let at = object.at as usize;
                (object.kind, &bytes[at..at + object.len as usize])
            })
            .collect();
        assert_eq!(objects[0], (ObjectKind::Deffile, DEFFILE.as_bytes()));
        assert_eq!(objects[1], (ObjectKind::GenericJson, &b"{}"[..]));
        let config = sif.named(ObjectKind::GenericJson, "oci-config.json");
        assert_eq!(config.unwrap().id, 3);
        let partition = sif.primary_partition().unwrap();
        assert_eq!((partition.at, partition.group), (32_768, Some(1)));
        assert_eq!(objects[3].1, b"hsqs");
    }

    #[test]
    fn architectures_have_the_codes_of_the_specification() {
        assert_eq!(architecture_code("amd64"), *b"02\0");
        assert_eq!(architecture_code("loong64"), *b"13\0");
        assert_eq!(architecture_code("z80"), *b"00\0");
        assert_eq!(architecture_name(*b"04\0"), Some("arm64"));
        assert_eq!(architecture_name(*b"99\0"), None);
    }

    #[test]
    fn a_damaged_sif_is_an_error_and_never_a_crash() {
        let bytes = sample();
        for len in (0..bytes.len())
            .step_by(7)
            .chain(bytes.len() - 5..bytes.len())
        {
            assert!(
                Sif::open(Cursor::new(&bytes[..len])).is_err(),
                "{len} bytes"
            );
        }
        for at in (0..128).chain(4096..4096 + 6 * 585) {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                if let Ok(sif) = Sif::open(Cursor::new(&damaged)) {
                    for object in sif.objects {
                        assert!(object.at + object.len <= damaged.len() as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn a_header_that_asks_for_memory_is_refused() {
        for total in [i64::MAX, -1, 4097] {
            let mut bytes = sample();
            bytes[88..96].copy_from_slice(&total.to_le_bytes());
            assert!(Sif::open(Cursor::new(&bytes)).is_err());
        }
    }
}

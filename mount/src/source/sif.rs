//! SIF, version 1: the file that Singularity and Apptainer run. Its records, and reading its table.
//!
//! ```text
//! header | descriptors | objects      the header says where the others begin
//! ```
//!
//! The format is defined by github.com/apptainer/sif, `pkg/sif`; integers are little-endian and nothing is padded.
//! A descriptor tells an object's type, place and name; the object with the root file system is the primary
//! system partition.

use std::io::{self, Read, Seek, SeekFrom};

use zerocopy::little_endian::{I32, I64, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::digest::Digest;

/// The first 128 bytes of the file.
#[expect(missing_docs, reason = "the names are those of the format")]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RawHeader {
    /// What a shell runs when the file is started: `#!/usr/bin/env run-singularity`, padded with zeros.
    pub launch: [u8; 32],
    pub magic: [u8; 10],
    pub version: [u8; 3],
    /// Of the primary partition, see [`architecture_code`].
    pub architecture: [u8; 3],
    pub uuid: [u8; 16],
    pub created: I64,
    pub modified: I64,
    pub descriptors_free: I64,
    pub descriptors_total: I64,
    pub descriptors_at: I64,
    pub descriptors_len: I64,
    pub data_at: I64,
    pub data_len: I64,
}

/// One object. An unused descriptor is all zeros.
#[expect(missing_docs, reason = "the names are those of the format")]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RawDescriptor {
    /// One of the `TYPE_` numbers.
    pub object_type: I32,
    pub used: u8,
    pub id: U32,
    pub group: U32,
    pub linked: U32,
    pub at: I64,
    pub len: I64,
    /// The gap before the object counts too.
    pub len_with_padding: I64,
    pub created: I64,
    pub modified: I64,
    pub uid: I64,
    pub gid: I64,
    pub name: [u8; 128],
    pub extra: [u8; 384],
}

impl RawDescriptor {
    /// The group whose members are signed together; 0 for none.
    pub fn group_number(&self) -> u32 {
        self.group.get() & !GROUP
    }
}

/// [`RawDescriptor::extra`] of a signature, in its first bytes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSignature {
    /// Of what was signed: 1 is SHA-256.
    pub hash: I32,
    /// Who signed: the fingerprint of a PGP key, then zeros.
    pub entity: [u8; 256],
}

/// [`RawDescriptor::extra`] of a partition, in its first bytes.
#[expect(missing_docs, reason = "the names are those of the format")]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawPartition {
    pub file_system: I32,
    pub role: I32,
    pub architecture: [u8; 3],
}

const _: () = assert!(size_of::<RawHeader>() == 128 && size_of::<RawDescriptor>() == 585);
const _: () = assert!(std::mem::offset_of!(RawHeader, data_at) == 112);
const _: () = assert!(std::mem::offset_of!(RawDescriptor, name) == 73);
const _: () = assert!(size_of::<RawPartition>() == 11);

/// Of every SIF, after the launch line.
pub const MAGIC: [u8; 10] = *b"SIF_MAGIC\0";
/// Of the format.
pub const VERSION: [u8; 3] = *b"01\0";

/// More than any tool writes; a header that asks for more is damaged.
const DESCRIPTORS_LIMIT: i64 = 4096;
/// Marks group numbers, so that they are no object's.
pub const GROUP: u32 = 0xf000_0000;

/// A text that an image was made from.
pub const TYPE_DEFFILE: i32 = 0x4001;
/// A file system.
pub const TYPE_PARTITION: i32 = 0x4004;
/// What vouches for other objects.
pub const TYPE_SIGNATURE: i32 = 0x4005;
/// JSON under a name.
pub const TYPE_GENERIC_JSON: i32 = 0x4006;

/// The index of an image whose blobs are objects (SingularityCE's OCI-SIF).
pub const TYPE_OCI_INDEX: i32 = 0x400a;
/// A blob of such an image.
pub const TYPE_OCI_BLOB: i32 = 0x400b;
/// In [`RawSignature::hash`].
pub const HASH_SHA256: i32 = 1;

/// In [`RawPartition::file_system`].
pub const FILE_SYSTEM_SQUASHFS: i32 = 1;
/// In [`RawPartition::file_system`]: one of the ext family.
pub const FILE_SYSTEM_EXT3: i32 = 2;
/// In [`RawPartition::role`]: the root file system.
pub const ROLE_PRIMARY_SYSTEM: i32 = 2;
/// In [`RawPartition::role`]: files that belong to no system.
pub const ROLE_DATA: i32 = 3;
/// In [`RawPartition::role`]: what lies over the root file system.
pub const ROLE_OVERLAY: i32 = 4;

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
pub fn architecture_code(name: &str) -> [u8; 3] {
    ARCHITECTURES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(*b"00\0", |(_, code)| *code)
}

/// The name of an architecture's code.
pub fn architecture_name(code: [u8; 3]) -> Option<&'static str> {
    ARCHITECTURES
        .iter()
        .find(|(_, known)| *known == code)
        .map(|(name, _)| *name)
}

/// The table of a SIF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sif {
    /// All that the header says; nothing but magic number, version and places was checked.
    pub header: RawHeader,
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
    /// All that the table says; nothing but its place was checked.
    pub raw: RawDescriptor,
    /// Which of the table's descriptors it has, counted from 0.
    pub slot: usize,
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
    /// What vouches for other objects.
    Signature,
    /// A file system.
    Partition {
        /// What it is for: [`ROLE_PRIMARY_SYSTEM`] is the root file system, of which a file has one.
        role: i32,
        /// What kind of file system it is.
        format: Format,
    },
    /// The index of an image whose blobs are objects.
    OciIndex,
    /// A blob of such an image, with the name that its bytes should hash to.
    OciBlob(Digest),
    /// Anything else, by its number.
    Other(i32),
}

/// The kind of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A squashfs that nothing encrypts.
    Squashfs,
    /// One of the ext family, which can be written to.
    Ext,
    /// Another one, or an encrypted one.
    Other,
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
        self.partition(ROLE_PRIMARY_SYSTEM)
    }

    /// The first file system with files that belong to no system.
    pub fn data_partition(&self) -> Option<&Object> {
        self.partition(ROLE_DATA)
    }

    /// The first file system that is to lie over the root file system and can be written to.
    pub fn writable_overlay(&self) -> Option<&Object> {
        let wanted = ObjectKind::Partition {
            role: ROLE_OVERLAY,
            format: Format::Ext,
        };
        self.objects.iter().find(|object| object.kind == wanted)
    }

    fn partition(&self, wanted: i32) -> Option<&Object> {
        self.objects.iter().find(
            |object| matches!(object.kind, ObjectKind::Partition { role, .. } if role == wanted),
        )
    }

    /// The object of this number, which the table must not give twice.
    pub fn by_id(&self, id: u32) -> Option<&Object> {
        let mut found = self.objects.iter().filter(|object| object.id == id);
        found.next().filter(|_| found.next().is_none())
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
                self.object(raw, index)
                    .map_err(|problem| SifError::Damaged {
                        part: "descriptor",
                        index,
                        problem,
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Sif {
            header: self.raw,
            uuid: self.raw.uuid,
            created: self.raw.created.get(),
            architecture: architecture_name(self.raw.architecture),
            capacity: self.descriptors as u64,
            data_at: self.data_at,
            objects,
        })
    }

    fn object(&self, raw: &RawDescriptor, slot: usize) -> Result<Object, &'static str> {
        let len = u64::try_from(raw.len.get()).map_err(|_| "its length is negative")?;
        let at = self
            .inside(raw.at, len)
            .ok_or("its object lies outside the file")?;
        let name_len = raw.name.iter().position(|&byte| byte == 0);
        let kind = match raw.object_type.get() {
            TYPE_DEFFILE => ObjectKind::Deffile,
            TYPE_GENERIC_JSON => ObjectKind::GenericJson,
            TYPE_SIGNATURE => ObjectKind::Signature,
            TYPE_PARTITION => {
                let (partition, _) = RawPartition::read_from_prefix(&raw.extra)
                    .expect("a partition's part fits into the extra bytes");
                ObjectKind::Partition {
                    role: partition.role.get(),
                    format: match partition.file_system.get() {
                        FILE_SYSTEM_SQUASHFS => Format::Squashfs,
                        FILE_SYSTEM_EXT3 => Format::Ext,
                        _ => Format::Other,
                    },
                }
            }
            TYPE_OCI_INDEX => ObjectKind::OciIndex,
            TYPE_OCI_BLOB => {
                let end = raw.extra.iter().position(|&byte| byte == 0);
                let name = str::from_utf8(&raw.extra[..end.unwrap_or(raw.extra.len())]).ok();
                let digest = name.and_then(|name| name.parse().ok());
                ObjectKind::OciBlob(digest.ok_or("its digest cannot be read")?)
            }
            other => ObjectKind::Other(other),
        };
        Ok(Object {
            raw: *raw,
            slot,
            id: raw.id.get(),
            group: Some(raw.group_number()).filter(|&number| number != 0),
            name: raw.name[..name_len.unwrap_or(raw.name.len())].to_vec(),
            at,
            len,
            kind,
        })
    }
}

//! Writing SIF, version 1, see [`sifon_mount::source::sif`].

pub mod listing;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sifon_mount::source::sif::{
    FILE_SYSTEM_SQUASHFS, GROUP, MAGIC, ROLE_PRIMARY_SYSTEM, RawDescriptor, RawHeader,
    RawPartition, TYPE_DEFFILE, TYPE_GENERIC_JSON, TYPE_PARTITION, VERSION, architecture_code,
};
pub use sifon_mount::source::sif::{Object, ObjectKind, Sif, SifError};
use zerocopy::IntoBytes;
use zerocopy::little_endian::I64;

/// The line that makes a SIF a program: `run-singularity` is looked up in `PATH`.
const LAUNCH: &[u8] = b"#!/usr/bin/env run-singularity\n";

/// As many as Apptainer makes room for; the free ones are for signatures.
const DESCRIPTORS: usize = 48;
const DESCRIPTORS_AT: u64 = 4096;
const DATA_AT: u64 = DESCRIPTORS_AT + (DESCRIPTORS * size_of::<RawDescriptor>()) as u64;
/// A loop device maps whole pages.
pub const PARTITION_ALIGNMENT: u64 = 4096;

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

/// An object to be added to a SIF.
#[derive(Clone, Copy, Debug)]
pub struct Appended<'a> {
    /// One of the `TYPE_` numbers.
    pub object_type: i32,
    /// With its mark, see [`GROUP`].
    pub group: u32,
    /// An object's number, or a group's with its mark.
    pub linked: u32,
    /// What the type adds to a descriptor.
    pub extra: &'a [u8],
    /// Its place is a multiple of this.
    pub alignment: u64,
}

/// Adds an object behind all others and writes table and header anew; `sif` is what the file has now, `now` counts seconds
/// since 1970. `write` gets the offset where the object begins, writes it there and returns its length.
pub fn append<E: From<io::Error>>(
    file: &File,
    sif: &Sif,
    object: &Appended<'_>,
    now: i64,
    write: impl FnOnce(u64) -> Result<u64, E>,
) -> Result<(), E> {
    let slot = (0..sif.capacity)
        .find(|&slot| sif.objects.iter().all(|object| object.slot as u64 != slot))
        .ok_or_else(|| io::Error::other("insufficient descriptor capacity: the table is full"))?;
    let ends = sif.objects.iter().map(|object| object.at + object.len);
    let table = u64::try_from(sif.header.descriptors_at.get()).map_err(io::Error::other)?;
    let table_end = table + sif.capacity * size_of::<RawDescriptor>() as u64;
    // The format lets the table lie behind the objects.
    let end = ends.max().unwrap_or(0).max(sif.data_at).max(table_end);
    let at = end.next_multiple_of(object.alignment);
    let len = write(at)?;
    let signed = |value: u64| i64::try_from(value).map(I64::new).map_err(io::Error::other);
    let mut descriptor = RawDescriptor {
        object_type: object.object_type.into(),
        used: 1,
        id: (slot as u32 + 1).into(),
        group: object.group.into(),
        linked: object.linked.into(),
        at: signed(at)?,
        len: signed(len)?,
        len_with_padding: signed(at - end + len)?,
        created: now.into(),
        modified: now.into(),
        uid: 0.into(),
        gid: 0.into(),
        name: [0; 128],
        extra: [0; 384],
    };
    descriptor.extra[..object.extra.len()].copy_from_slice(object.extra);
    let header = RawHeader {
        modified: now.into(),
        descriptors_free: signed(sif.capacity - sif.objects.len() as u64 - 1)?,
        data_len: signed(at + len - sif.data_at)?,
        ..sif.header
    };
    let place = table + slot * size_of::<RawDescriptor>() as u64;
    file.write_all_at(descriptor.as_bytes(), place)?;
    Ok(file.write_all_at(header.as_bytes(), 0)?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use sifon_mount::source::sif::architecture_name;

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
    fn what_is_added_lies_behind_a_table_that_lies_behind_the_objects() {
        let mut bytes = sample();
        let end = bytes.len() as i64;
        bytes.extend_from_within(4096..32_176);
        bytes[96..104].copy_from_slice(&end.to_le_bytes());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let before = Sif::open(&file).unwrap();
        let appended = Appended {
            object_type: 0x4005,
            group: GROUP,
            linked: GROUP | 1,
            extra: &[],
            alignment: 4096,
        };
        let write = |at| {
            file.write_all_at(&[7; 2000], at)?;
            Ok::<_, io::Error>(2000)
        };
        append(&file, &before, &appended, 1, write).unwrap();
        let after = Sif::open(&file).unwrap();
        assert_eq!(after.objects[..4], before.objects);
        assert_eq!(
            after.objects[4].at,
            (bytes.len() as u64).next_multiple_of(4096)
        );
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

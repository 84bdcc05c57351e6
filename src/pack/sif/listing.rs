//! A SIF's table as Apptainer prints it (`internal/app/siftool` of github.com/apptainer/sif): scripts read that.

use std::fmt;

use sifon_mount::source::sif::{
    GROUP, Object, RawPartition, RawSignature, Sif, TYPE_PARTITION, TYPE_SIGNATURE,
    architecture_name,
};
use zerocopy::FromBytes;
use zerocopy::little_endian::{I32, I64};

use super::super::date::Date;
use crate::output::plain;

const TYPE_CRYPTO_MESSAGE: i32 = 0x4008;
const TYPE_SBOM: i32 = 0x4009;
const TYPE_OCI_ROOT_INDEX: i32 = 0x400a;
const TYPE_OCI_BLOB: i32 = 0x400b;

/// What Go's clock says before it is set, the year 1; a time that is not shown.
const NO_TIME: i64 = -62_135_596_800;

/// What an object is, as the last column of `list` begins.
pub fn type_name(object: &Object) -> &'static str {
    match object.raw.object_type.get() {
        0x4001 => "Def.FILE",
        0x4002 => "Env.Vars",
        0x4003 => "JSON.Labels",
        TYPE_PARTITION => "FS",
        TYPE_SIGNATURE => "Signature",
        0x4006 => "JSON.Generic",
        0x4007 => "Generic/Raw",
        TYPE_CRYPTO_MESSAGE => "Cryptographic Message",
        TYPE_SBOM => "SBOM",
        TYPE_OCI_ROOT_INDEX => "OCI.RootIndex",
        TYPE_OCI_BLOB => "OCI.Blob",
        _ => "Unknown",
    }
}

/// A name out of a list that is counted from 1.
fn one_of<'a>(names: &[&'a str], number: i32, unknown: &'a str) -> &'a str {
    let index = usize::try_from(i64::from(number) - 1).ok();
    index
        .and_then(|index| names.get(index).copied())
        .unwrap_or(unknown)
}

struct Partition {
    file_system: &'static str,
    role: &'static str,
    architecture: &'static str,
}

fn partition(object: &Object) -> Partition {
    let (raw, _) = RawPartition::read_from_prefix(&object.raw.extra)
        .expect("a partition's part fits into the extra bytes");
    let file_systems = [
        "Squashfs",
        "Ext3",
        "Archive",
        "Raw",
        "Encrypted squashfs",
        "Gocryptfs squashfs",
    ];
    Partition {
        file_system: one_of(&file_systems, raw.file_system.get(), "Unknown"),
        role: one_of(
            &["System", "*System", "Data", "Overlay"],
            raw.role.get(),
            "Unknown",
        ),
        architecture: architecture_name(raw.architecture).unwrap_or("unknown"),
    }
}

fn signature(object: &Object) -> (&'static str, String) {
    let (raw, _) = RawSignature::read_from_prefix(&object.raw.extra)
        .expect("a signature's part fits into the extra bytes");
    let hashes = [
        "SHA-256",
        "SHA-384",
        "SHA-512",
        "BLAKE2s-256",
        "BLAKE2b-256",
    ];
    let fingerprint = &raw.entity[..20];
    let entity = match fingerprint.iter().all(|&byte| byte == 0) {
        true => String::new(),
        false => fingerprint
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect(),
    };
    (one_of(&hashes, raw.hash.get(), "Unknown"), entity)
}

/// The `index`-th number in the extra bytes.
fn number(object: &Object, index: usize) -> i32 {
    let (numbers, _) = <[I32; 2]>::read_from_prefix(&object.raw.extra)
        .expect("two numbers fit into the extra bytes");
    numbers[index].get()
}

fn crypto_message(object: &Object) -> (&'static str, &'static str) {
    let message = match number(object, 1) {
        0x100 => "Clear Signature",
        0x200 => "RSA-OAEP",
        _ => "Unknown",
    };
    (
        one_of(&["OpenPGP", "PEM"], number(object, 0), "Unknown"),
        message,
    )
}

fn sbom_format(object: &Object) -> &'static str {
    let formats = [
        "cyclonedx-json",
        "cyclonedx-xml",
        "github-json",
        "spdx-json",
        "spdx-rdf",
        "spdx-tag-value",
        "spdx-yaml",
        "syft-json",
    ];
    one_of(&formats, number(object, 0), "unknown")
}

/// Text that zeros end.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&bytes[..len.unwrap_or(bytes.len())]).into_owned()
}

/// The group that an object is in, or `NONE`.
pub fn group(object: &Object) -> String {
    object
        .group
        .map_or_else(|| "NONE".into(), |group| group.to_string())
}

/// What an object belongs to: another one, or a group; the number takes `width` columns.
pub fn link(object: &Object, width: usize) -> String {
    let linked = object.raw.linked.get();
    match (linked & !GROUP, linked & GROUP == GROUP) {
        (0, _) => "NONE".into(),
        (number, true) => format!("{number:<width$} (G)"),
        (number, false) => number.to_string(),
    }
}

/// A time as Go prints it, if it is one.
fn time(seconds: I64) -> Option<String> {
    let seconds = Some(seconds.get()).filter(|&seconds| seconds != NO_TIME)?;
    let date = Date::from_seconds(seconds);
    Some(format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
        date.year, date.month, date.day, date.hour, date.minute, date.second
    ))
}

/// A number of bytes, rounded to whole units of powers of 1024.
fn size(bytes: i64) -> String {
    let mut size = bytes as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.0} {}", units[unit])
}

/// `apptainer sif list`.
pub struct List<'a>(pub &'a Sif);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "-".repeat(78);
        writeln!(f, "{line}")?;
        let head = ["ID", "GROUP", "LINK", "SIF POSITION (start-end)", "TYPE"];
        row(f, head)?;
        writeln!(f, "{line}")?;
        for object in &self.0.objects {
            let position = format!("{}-{}", object.at, object.at + object.len);
            let cells = [
                &*object.id.to_string(),
                &group(object),
                &link(object, 3),
                &position,
                &kind(object),
            ];
            row(f, cells)?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, [id, group, link, position, kind]: [&str; 5]) -> fmt::Result {
    writeln!(f, "{id:<4} |{group:<7} |{link:<7} |{position:<25} |{kind}")
}

/// What an object is, with the details that `list` shows.
fn kind(object: &Object) -> String {
    let name = type_name(object);
    match object.raw.object_type.get() {
        TYPE_PARTITION => {
            let partition = partition(object);
            let (file_system, role) = (partition.file_system, partition.role);
            format!("{name} ({file_system}/{role}/{})", partition.architecture)
        }
        TYPE_SIGNATURE => format!("{name} ({})", signature(object).0),
        TYPE_CRYPTO_MESSAGE => {
            let (format, message) = crypto_message(object);
            format!("{name} ({format}/{message})")
        }
        TYPE_SBOM => format!("{name} ({})", sbom_format(object)),
        _ => name.to_owned(),
    }
}

/// Names and what they stand for, the second in one column.
type Lines = Vec<(&'static str, String)>;

fn write_lines(
    f: &mut fmt::Formatter<'_>,
    lines: &Lines,
    indent: usize,
    gap: usize,
) -> fmt::Result {
    let widest = lines.iter().map(|(name, _)| name.len()).max();
    let width = widest.unwrap_or(0) + gap + 1;
    for (name, value) in lines {
        let name = format!("{name}:");
        writeln!(f, "{:indent$}{name:<width$}{}", "", plain(value))?;
    }
    Ok(())
}

/// `apptainer sif header`.
pub struct Header<'a>(pub &'a Sif);

impl fmt::Display for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.0.header;
        let launch = text(&header.launch).trim_end_matches('\n').to_owned();
        let id = self.0.uuid;
        let all: [(&'static str, Option<String>); 12] = [
            (
                "Launch Script",
                Some(launch).filter(|text| !text.is_empty()),
            ),
            ("Version", Some(text(&header.version))),
            (
                "Primary Architecture",
                self.0.architecture.map(str::to_owned),
            ),
            ("ID", id.iter().any(|&byte| byte != 0).then(|| uuid(&id))),
            ("Created At", time(header.created)),
            ("Modified At", time(header.modified)),
            (
                "Descriptors Free",
                Some(header.descriptors_free.get().to_string()),
            ),
            (
                "Descriptors Total",
                Some(header.descriptors_total.get().to_string()),
            ),
            (
                "Descriptors Offset",
                Some(header.descriptors_at.get().to_string()),
            ),
            ("Descriptors Size", Some(size(header.descriptors_len.get()))),
            ("Data Offset", Some(header.data_at.get().to_string())),
            ("Data Size", Some(size(header.data_len.get()))),
        ];
        let lines = all
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        write_lines(f, &lines, 0, 1)
    }
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

/// `apptainer sif info`.
pub struct Info<'a>(pub &'a Object);

impl fmt::Display for Info<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = self.0;
        let mut lines = vec![
            ("Data Type", type_name(object).to_owned()),
            ("ID", object.id.to_string()),
            ("Group ID", group(object)),
            ("Linked ID", link(object, 0)),
            ("Offset", object.at.to_string()),
            ("Size", object.len.to_string()),
        ];
        let times = [
            ("Created At", time(object.raw.created)),
            ("Modified At", time(object.raw.modified)),
        ];
        lines.extend(
            times
                .into_iter()
                .filter_map(|(name, time)| Some((name, time?))),
        );
        let name = String::from_utf8_lossy(&object.name).into_owned();
        lines.extend(Some(("Name", name)).filter(|(_, name)| !name.is_empty()));
        lines.extend(details(object));
        write_lines(f, &lines, 2, 2)
    }
}

fn details(object: &Object) -> Lines {
    match object.raw.object_type.get() {
        TYPE_PARTITION => {
            let partition = partition(object);
            vec![
                ("Filesystem Type", partition.file_system.to_owned()),
                ("Partition Type", partition.role.to_owned()),
                ("Architecture", partition.architecture.to_owned()),
            ]
        }
        TYPE_SIGNATURE => {
            let (hash, entity) = signature(object);
            let mut lines = vec![("Hash Type", hash.to_owned())];
            lines.extend(Some(("Entity", entity)).filter(|(_, entity)| !entity.is_empty()));
            lines
        }
        TYPE_CRYPTO_MESSAGE => {
            let (format, message) = crypto_message(object);
            vec![
                ("Format Type", format.to_owned()),
                ("Message Type", message.to_owned()),
            ]
        }
        TYPE_SBOM => vec![("Format", sbom_format(object).to_owned())],
        TYPE_OCI_ROOT_INDEX | TYPE_OCI_BLOB => vec![("Digest", text(&object.raw.extra))],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::{Identity, Writer};
    use super::*;

    fn sample() -> Sif {
        let file = tempfile::tempfile().unwrap();
        let identity = Identity {
            uuid: *b"\x01\x23\x45\x67\x89\xab\xcd\xef0123abcd",
            created: 1_700_000_000,
            architecture: "arm64".into(),
        };
        let mut writer = Writer::new(&file, identity);
        writer.deffile("bootstrap: docker\n").unwrap();
        writer.json("a.json", b"{}").unwrap();
        let partition = |file: &std::fs::File, at| {
            file.write_all_at(&[1; 5000], at)?;
            Ok::<_, std::io::Error>(5000)
        };
        writer.partition(partition).unwrap();
        writer.finish().unwrap();
        Sif::open(&file).unwrap()
    }

    /// The texts are those that Apptainer 1.4.5 prints of such a file.
    #[test]
    fn a_table_is_printed_as_apptainer_prints_it() {
        let sif = sample();
        let line = "-".repeat(78);
        let list = format!(
            "{line}\n\
             ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE\n\
             {line}\n\
             1    |1       |NONE    |32176-32194               |Def.FILE\n\
             2    |1       |NONE    |32194-32196               |JSON.Generic\n\
             3    |1       |NONE    |32768-37768               |FS (Squashfs/*System/arm64)\n"
        );
        assert_eq!(List(&sif).to_string(), list);
        let header = "\
            Launch Script:        #!/usr/bin/env run-singularity\n\
            Version:              01\n\
            Primary Architecture: arm64\n\
            ID:                   01234567-89ab-cdef-3031-323361626364\n\
            Created At:           2023-11-14 22:13:20 +0000 UTC\n\
            Modified At:          2023-11-14 22:13:20 +0000 UTC\n\
            Descriptors Free:     45\n\
            Descriptors Total:    48\n\
            Descriptors Offset:   4096\n\
            Descriptors Size:     27 KiB\n\
            Data Offset:          32176\n\
            Data Size:            5 KiB\n";
        assert_eq!(Header(&sif).to_string(), header);
        let info = [
            "  Data Type:    JSON.Generic",
            "  ID:           2",
            "  Group ID:     1",
            "  Linked ID:    NONE",
            "  Offset:       32194",
            "  Size:         2",
            "  Created At:   2023-11-14 22:13:20 +0000 UTC",
            "  Modified At:  2023-11-14 22:13:20 +0000 UTC",
            "  Name:         a.json\n",
        ];
        assert_eq!(Info(&sif.objects[1]).to_string(), info.join("\n"));
    }

    #[test]
    fn every_kind_of_object_has_its_details() {
        let mut sif = sample();
        let object = &mut sif.objects[1];
        object.group = None;
        let numbers =
            |first: i32, second: i32| [first.to_le_bytes(), second.to_le_bytes()].concat();
        for (kind, linked, extra, line, last) in [
            (
                0x4002,
                0,
                vec![],
                "NONE    |32194-32196               |Env.Vars",
                "a.json",
            ),
            (
                0x4004,
                7,
                [numbers(6, 4), b"12\0".to_vec()].concat(),
                "7       |32194-32196               |FS (Gocryptfs squashfs/Overlay/riscv64)",
                "riscv64",
            ),
            (
                0x4005,
                0xf000_0001,
                [numbers(1, -1), vec![0xff; 16]].concat(),
                "1   (G) |32194-32196               |Signature (SHA-256)",
                "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
            ),
            (
                0x4008,
                0,
                numbers(1, 0x100),
                "NONE    |32194-32196               |Cryptographic Message (OpenPGP/Clear Signature)",
                "Clear Signature",
            ),
            (
                0x4009,
                0,
                numbers(8, 0),
                "NONE    |32194-32196               |SBOM (syft-json)",
                "syft-json",
            ),
            (
                0x400b,
                0,
                b"sha256:ab".to_vec(),
                "NONE    |32194-32196               |OCI.Blob",
                "sha256:ab",
            ),
            (
                -1,
                0,
                vec![],
                "NONE    |32194-32196               |Unknown",
                "a.json",
            ),
        ] {
            let object = &mut sif.objects[1];
            object.raw.object_type = kind.into();
            object.raw.linked = linked.into();
            object.raw.extra = [0; 384];
            object.raw.extra[..extra.len()].copy_from_slice(&extra);
            let list = List(&sif).to_string();
            let row = list.lines().nth(4).unwrap();
            assert_eq!(row, format!("2    |NONE    |{line}"));
            let info = Info(&sif.objects[1]).to_string();
            assert_eq!(
                info.split_whitespace().next_back(),
                last.split(' ').next_back()
            );
        }
    }

    #[test]
    fn sizes_are_rounded_to_whole_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (2047, "2 KiB"),
            (28_080, "27 KiB"),
            (1_048_575, "1024 KiB"),
            (5_500_000_000, "5 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_is_not_set_is_not_shown() {
        let mut sif = sample();
        sif.header.launch = [0; 32];
        sif.header.created = NO_TIME.into();
        sif.uuid = [0; 16];
        sif.architecture = None;
        let header = Header(&sif).to_string();
        assert!(header.starts_with("Version:            01\nModified At:        2023"));
    }
}

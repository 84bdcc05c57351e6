//! What is signed: the digests of a SIF's header, and of each object with its descriptor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use aws_lc_rs::digest::{self, Algorithm, Context};
use serde::{Deserialize, Serialize};
use sifon_mount::source::sif::{Object, ObjectKind, Sif};
use zerocopy::IntoBytes;

/// Bytes of an object that are hashed at a time.
const READ_BYTES: u64 = 1 << 20;

/// The version of statements that we know.
const VERSION: u32 = 1;

/// Which objects are signed, or checked: all groups, unless some are named.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Groups, each as a whole.
    pub groups: Vec<u32>,
    /// Objects by themselves.
    pub objects: Vec<u32>,
}

/// Objects of one group.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    pub group: u32,
    pub objects: Vec<&'a Object>,
    /// Whether these are all objects of the group.
    pub is_whole: bool,
    /// The group's least number; a statement counts from there.
    first: u32,
}

impl Selection {
    /// The parts of groups that are meant. An object outside of all groups that is no signature is refused where everything is meant: it
    /// would look as if it were signed.
    pub(super) fn parts<'a>(&self, sif: &'a Sif) -> Result<Vec<Part<'a>>, String> {
        let everything = self.groups.is_empty() && self.objects.is_empty();
        let mut groups = self.groups.clone();
        if everything {
            groups = sif
                .objects
                .iter()
                .filter_map(|object| object.group)
                .collect();
            let is_bare =
                |object: &&Object| object.group.is_none() && object.kind != ObjectKind::Signature;
            if let Some(bare) = sif.objects.iter().find(is_bare) {
                return Err(format!(
                    "object {}: it is in no group, so that no signature covers it",
                    bare.id
                ));
            }
            if groups.is_empty() {
                return Err("no groups found".into());
            }
        }
        groups.sort_unstable();
        groups.dedup();
        let mut parts = Vec::new();
        for group in groups {
            parts.push(Part::whole(sif, group)?);
        }
        for &id in &self.objects {
            let object = sif
                .by_id(id)
                .ok_or_else(|| format!("object {id}: object not found"))?;
            let group = object
                .group
                .ok_or_else(|| format!("object {id}: it is in no group"))?;
            let mut part = Part::whole(sif, group)?;
            part.objects = vec![object];
            part.is_whole = false;
            parts.push(part);
        }
        Ok(parts)
    }
}

impl<'a> Part<'a> {
    fn whole(sif: &'a Sif, group: u32) -> Result<Self, String> {
        let objects: Vec<_> = sif
            .objects
            .iter()
            .filter(|object| object.group == Some(group))
            .collect();
        let first = objects.iter().map(|object| object.id).min();
        Ok(Self {
            group,
            first: first.ok_or_else(|| format!("group {group}: group not found"))?,
            objects,
            is_whole: true,
        })
    }

    /// The signatures that are linked to the group.
    pub(super) fn signatures(&self, sif: &'a Sif) -> impl Iterator<Item = &'a Object> {
        let linked = sifon_mount::source::sif::GROUP | self.group;
        sif.objects.iter().filter(move |object| {
            object.kind == ObjectKind::Signature && object.raw.linked.get() == linked
        })
    }
}

/// A statement, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statement {
    version: u32,
    header: HeaderDigest,
    objects: Vec<ObjectDigests>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeaderDigest {
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectDigests {
    /// Counted from the least number in the group.
    relative_id: u32,
    descriptor_digest: String,
    object_digest: String,
}

/// Why a statement is not about these objects.
#[derive(Debug)]
pub(super) enum Mismatch {
    /// What is wrong, and with what.
    Wrong(String),
    /// The file cannot be read.
    Io(io::Error),
}

impl Statement {
    /// What is so of `part`.
    pub(super) fn of(file: &File, sif: &Sif, part: &Part<'_>) -> io::Result<Self> {
        let algorithm = &digest::SHA256;
        let named = |digest: digest::Digest| format!("sha256:{}", hex(digest.as_ref()));
        let mut objects = Vec::new();
        for object in &part.objects {
            objects.push(ObjectDigests {
                relative_id: object.id - part.first,
                descriptor_digest: named(descriptor(algorithm, object, object.id - part.first)),
                object_digest: named(contents(algorithm, file, object)?),
            });
        }
        Ok(Self {
            version: VERSION,
            header: HeaderDigest {
                digest: named(header(algorithm, sif)),
            },
            objects,
        })
    }

    /// Reads what [`Statement::json`] writes.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let statement: Self = serde_json::from_slice(json)
            .map_err(|err| format!("what is signed is no statement about objects: {err}"))?;
        match statement.version {
            VERSION => Ok(statement),
            other => Err(format!("a statement of version {other}, not {VERSION}")),
        }
    }

    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }

    /// Whether it holds of all objects in `part`, and, where that is a whole group, of no others.
    pub(super) fn check(&self, file: &File, sif: &Sif, part: &Part<'_>) -> Result<(), Mismatch> {
        let wrong = |text: String| Err(Mismatch::Wrong(text));
        let stated = |id: u32| {
            let is_it =
                |digests: &&ObjectDigests| part.first.checked_add(digests.relative_id) == Some(id);
            self.objects.iter().find(is_it)
        };
        for object in &part.objects {
            if stated(object.id).is_none() {
                return wrong(format!("object {}: object not signed", object.id));
            }
        }
        if part.is_whole {
            for digests in &self.objects {
                let id = part.first.checked_add(digests.relative_id);
                if !part.objects.iter().any(|object| Some(object.id) == id) {
                    let number = u64::from(part.first) + u64::from(digests.relative_id);
                    return wrong(format!("object {number}: signed object not found"));
                }
            }
        }
        if !is_digest(&self.header.digest, |algorithm| Ok(header(algorithm, sif)))? {
            return wrong("header integrity compromised".into());
        }
        for object in &part.objects {
            let digests = stated(object.id).expect("looked for above");
            let is_described = is_digest(&digests.descriptor_digest, |algorithm| {
                Ok(descriptor(algorithm, object, digests.relative_id))
            })?;
            if !is_described {
                let id = object.id;
                return wrong(format!(
                    "data object descriptor integrity compromised: {id}"
                ));
            }
            if !is_digest(&digests.object_digest, |algorithm| {
                contents(algorithm, file, object)
            })? {
                return wrong(format!("data object integrity compromised: {}", object.id));
            }
        }
        Ok(())
    }
}

/// Whether `text`, as in `sha256:…`, is what `computed` gives with that algorithm.
fn is_digest(
    text: &str,
    computed: impl FnOnce(&'static Algorithm) -> io::Result<digest::Digest>,
) -> Result<bool, Mismatch> {
    let unknown = || Mismatch::Wrong(format!("digest {text:?}: not of a kind that is accepted"));
    let (name, expected) = text.split_once(':').ok_or_else(unknown)?;
    let algorithm = match name {
        "sha224" => &digest::SHA224,
        "sha256" => &digest::SHA256,
        "sha384" => &digest::SHA384,
        "sha512" => &digest::SHA512,
        "sha512_256" => &digest::SHA512_256,
        _ => return Err(unknown()),
    };
    let digest = computed(algorithm).map_err(Mismatch::Io)?;
    Ok(hex(digest.as_ref()) == expected.to_ascii_lowercase())
}

/// Not covered: architecture, times, and where the table is.
fn header(algorithm: &'static Algorithm, sif: &Sif) -> digest::Digest {
    let raw = &sif.header;
    let parts: [&[u8]; 4] = [&raw.launch, &raw.magic, &raw.version, &raw.uuid];
    digest::digest(algorithm, &parts.concat())
}

/// Not covered: where the object is, its group, and when it was changed.
fn descriptor(algorithm: &'static Algorithm, object: &Object, relative: u32) -> digest::Digest {
    let raw = &object.raw;
    let parts: [&[u8]; 10] = [
        raw.object_type.as_bytes(),
        raw.used.as_bytes(),
        &relative.to_le_bytes(),
        raw.linked.as_bytes(),
        raw.len.as_bytes(),
        raw.created.as_bytes(),
        raw.uid.as_bytes(),
        raw.gid.as_bytes(),
        &raw.name,
        &raw.extra,
    ];
    digest::digest(algorithm, &parts.concat())
}

fn contents(
    algorithm: &'static Algorithm,
    file: &File,
    object: &Object,
) -> io::Result<digest::Digest> {
    let mut context = Context::new(algorithm);
    let mut buffer = vec![0; object.len.min(READ_BYTES) as usize];
    let mut at = 0;
    while at < object.len {
        let len = (object.len - at).min(READ_BYTES) as usize;
        file.read_exact_at(&mut buffer[..len], object.at + at)?;
        context.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(context.finish())
}

/// Lower case.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

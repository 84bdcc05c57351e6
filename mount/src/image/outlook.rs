//! How each layer of an image would be read, told without reading more of any than the last bytes.

use std::sync::Arc;

use super::documents::Opener;
use super::index::Index;
use super::layers::{foreign_format, unreadable};
use super::open::{Description, OpenError, Options};
use crate::layer::soci;
use crate::layer::table;
use crate::layer::zstd_seekable::{self, SeekTable};
use crate::reference::Reference;
use crate::source::manifest::Descriptor;
use crate::store::{Name, Store};

/// A zstd layer whose frames could be read one by one, if anything vouched for the table of them.
const SEEKABLE: &str = "zstd:seekable";

/// How a layer would be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The layer's format, as people call it.
    pub format: String,
    /// Whether files can be read before all of the layer has been fetched.
    pub is_lazy: bool,
    /// By what, if so.
    pub index: Option<&'static str>,
    /// Why what is read is believed, or why nothing can be.
    pub trust: String,
    /// Whether the store has what is needed to open it.
    pub is_stored: bool,
}

/// What the image that `reference` names says of itself, and how its layers, bottom first, would be read. A SOCI index is
/// fetched; of a layer a few bytes at its end are, where they tell its format.
pub fn describe(
    reference: &Reference,
    options: &Options,
    store: &Arc<Store>,
) -> Result<(Description, Vec<Outlook>), OpenError> {
    let opener = Opener::new(reference, options, store)?;
    let description = opener.description()?;
    let manifest = &description.manifest;
    let soci = opener.soci_index(description.manifest_digest, manifest);
    let outlooks = manifest.layers.iter().map(|layer| {
        if let Some(problem) = unreadable(layer) {
            return unread(layer, problem);
        }
        let by_soci = || {
            let (_, index, trust) = soci.as_ref()?;
            let part = Box::new(soci::part(index, layer.digest)?);
            let trust = *trust;
            Some(Index::Soci { part, trust })
        };
        let promised = opener.promised(layer).ok().flatten();
        opener.outlook(layer, promised.or_else(by_soci))
    });
    let outlooks = outlooks.collect();
    Ok((description, outlooks))
}

impl Opener<'_> {
    fn outlook(&self, layer: &Descriptor, index: Option<Index>) -> Outlook {
        let digest = layer.digest;
        let is_streamed =
            self.store.has(Name::Native(digest)) && self.store.has(Name::Table(digest));
        let has_own = self.store.has(Name::Index(digest));
        if let Some(index) = index {
            let key = table::key(digest, Some(index.digest()));
            return Outlook {
                format: index.format().into(),
                is_lazy: true,
                index: Some(index.description()),
                trust: index.trust().into(),
                is_stored: is_streamed || has_own || self.store.has(Name::Table(key)),
            };
        }
        let format = format(&layer.media_type);
        let is_seekable = format == "zstd" && self.has_seek_table(layer);
        Outlook {
            format: if is_seekable { SEEKABLE } else { format }.into(),
            is_lazy: has_own,
            index: has_own.then_some("checkpoints of our own"),
            trust: if has_own {
                "they were made here, from the whole layer, which matched its digest".into()
            } else if is_seekable {
                "the manifest names the digest of the whole layer, but none of its table of frames"
                    .into()
            } else {
                "the manifest names the digest of the whole layer".into()
            },
            is_stored: is_streamed || has_own,
        }
    }

    /// Whether the layer's blob ends in a table of zstd frames; not, if that cannot be found out.
    fn has_seek_table(&self, layer: &Descriptor) -> bool {
        let found = || {
            let size = layer.size;
            let footer_at = size.checked_sub(zstd_seekable::FOOTER_BYTES)?;
            let tail = self.range(layer, footer_at..size).ok()?;
            let table = SeekTable::at_end_of(&tail)?;
            let start = table.start(size)?;
            let header = self
                .range(layer, start..start + zstd_seekable::HEADER_BYTES)
                .ok()?;
            Some(table.is_begun_by(header[..].try_into().ok()?))
        };
        !self.is_offline() && found().unwrap_or(false)
    }
}

fn unread(layer: &Descriptor, problem: String) -> Outlook {
    Outlook {
        format: foreign_format(layer)
            .unwrap_or(format(&layer.media_type))
            .into(),
        is_lazy: false,
        index: None,
        trust: problem,
        is_stored: false,
    }
}

/// The compression that a media type names; readers go by the bytes.
fn format(media_type: &str) -> &'static str {
    match media_type.rsplit_once(['+', '.']).map(|(_, last)| last) {
        Some("gzip") => "gzip",
        Some("zstd") => "zstd",
        Some("tar") => "tar",
        Some("encrypted") => "encrypted",
        Some("squashfs") => "squashfs",
        Some("ext3") => "ext3",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_those_of_the_media_types() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "zstd"),
            ("application/vnd.oci.image.layer.v1.tar", "tar"),
            ("application/vnd.docker.image.rootfs.diff.tar", "tar"),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "encrypted",
            ),
            ("", "unknown"),
        ] {
            assert_eq!(format(media_type), expected, "{media_type}");
        }
    }
}

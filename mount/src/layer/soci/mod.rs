//! SOCI's indexes: what makes an unmodified gzip or tar layer seekable (soci-snapshotter `docs/index.md`).
//!
//! An index is a manifest that names a *zTOC* for some of an image's layers. A zTOC is a FlatBuffer with the layer's files,
//! checkpoints at which its gzip stream can be resumed, and a digest of the packed bytes between two of them, a *span*. Here
//! a span is a chunk.

mod build;
mod flatbuffer;
mod prefetch;
mod resumable;
mod write;
mod ztoc;

pub use build::{Indexed, SPACING_BYTES, indexed};
pub use prefetch::{PREFETCH_BYTES_LIMIT, PrefetchError, prefetched};
pub use write::{Version, index_manifest};
pub use ztoc::{Trust, ZTOC_BYTES_LIMIT, ZtocError, table};

use crate::digest::Digest;
use crate::source::manifest::{Descriptor, Document, Manifest};

/// Annotation of an image's manifest: its index, which is thereby as trustworthy as the image (version 2).
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// Annotation of a zTOC's descriptor: the layer that it is for.
pub const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// Annotation of a zTOC's descriptor: the layer's media type.
pub const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";

/// Annotation of an index in an image index: the image that it is for.
pub const IMAGE_DIGEST: &str = "com.amazon.soci.image-manifest-digest";

/// Type of an index that anybody can attach to an image (version 1).
pub const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";

/// Type of an index that an image names (version 2).
pub const INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";

/// Type of a zTOC.
pub const ZTOC: &str = "application/octet-stream";

/// Type of a list of spans that are worth fetching ahead.
pub const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// The index that a manifest promises.
pub fn promised(manifest: &Manifest) -> Option<Digest> {
    manifest.annotations.get(INDEX_DIGEST)?.parse().ok()
}

/// The index in the document `bytes`; `None` if it is something else.
pub fn index(bytes: &[u8]) -> Option<Manifest> {
    match Document::parse(bytes) {
        Ok(Document::Manifest(index)) if is_index(&index) => Some(index),
        _ => None,
    }
}

fn is_index(manifest: &Manifest) -> bool {
    [INDEX_V1, INDEX_V2].contains(&manifest.config.media_type.as_str())
}

/// What an index has for one layer.
#[derive(Clone, Debug)]
pub struct Part {
    /// The layer's zTOC.
    pub ztoc: Descriptor,
    /// Which of its spans are worth fetching ahead, if the index's builder said so.
    pub prefetch: Option<Descriptor>,
}

/// What `index` has for `layer`; some layers have nothing.
pub fn part(index: &Manifest, layer: Digest) -> Option<Part> {
    let layer = layer.to_string();
    let of_type = |wanted: &str| {
        let of_layer = |blob: &&Descriptor| blob.annotations.get(LAYER_DIGEST) == Some(&layer);
        let is_wanted = |blob: &&Descriptor| blob.media_type == wanted;
        index
            .layers
            .iter()
            .filter(is_wanted)
            .find(of_layer)
            .cloned()
    };
    Some(Part {
        ztoc: of_type(ZTOC)?,
        prefetch: of_type(PREFETCH),
    })
}

#[cfg(test)]
mod tests;

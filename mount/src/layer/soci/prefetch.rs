//! Which spans of a layer the builder of an index wants fetched before anybody asks (soci-snapshotter `docs/prefetch.md`).

use std::ops::Range;

use serde::Deserialize;

/// Bytes in a prefetch artifact at most: some ten thousand stretches.
pub const PREFETCH_BYTES_LIMIT: u64 = 1 << 20;

/// The only version there is.
const VERSION: &str = "1.0";

#[derive(Deserialize)]
struct Artifact {
    version: String,
    prefetch_spans: Vec<Stretch>,
}

#[derive(Deserialize)]
struct Stretch {
    start_span: u32,
    /// The last one that belongs to it.
    end_span: u32,
    /// Lower is more urgent.
    #[serde(default)]
    priority: i64,
}

/// The spans that a prefetch artifact names, the most urgent ones first.
pub fn prefetched(artifact: &[u8]) -> Result<Vec<Range<u32>>, PrefetchError> {
    let artifact: Artifact = serde_json::from_slice(artifact)?;
    if artifact.version != VERSION {
        return Err(PrefetchError::Version(artifact.version));
    }
    let mut stretches = artifact.prefetch_spans;
    stretches.sort_by_key(|stretch| stretch.priority);
    let spans = stretches.iter().map(|stretch| {
        let (first, last) = (stretch.start_span, stretch.end_span);
        let end = last.checked_add(1).filter(|&end| first < end);
        Ok(first..end.ok_or(PrefetchError::Stretch { first, last })?)
    });
    spans.collect()
}

/// Why nothing is fetched ahead by a prefetch artifact.
#[derive(Debug, thiserror::Error)]
pub enum PrefetchError {
    /// It is no such document.
    #[error("prefetch artifact: not what its type says")]
    Malformed(#[from] serde_json::Error),
    /// One that came later.
    #[error("prefetch artifact: version {0:?} is not known, {VERSION} is")]
    Version(String),
    /// One that ends before it begins.
    #[error("prefetch artifact: spans {first} to {last} are no stretch")]
    Stretch {
        /// Where it begins.
        first: u32,
        /// Where it ends.
        last: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_come_in_the_order_of_their_urgency_and_then_of_the_document() {
        let artifact = br#"{"version":"1.0","prefetch_spans":[
            {"start_span":10,"end_span":15,"priority":2},
            {"start_span":50,"end_span":50},
            {"start_span":3,"end_span":4,"note":"unknown keys say nothing"},
            {"start_span":0,"end_span":0,"priority":-1}]}"#;
        assert_eq!(prefetched(artifact).unwrap(), [0..1, 50..51, 3..5, 10..16]);
    }

    #[test]
    fn what_is_no_prefetch_artifact_is_refused_and_told_why() {
        let last = u32::MAX;
        for (artifact, problem) in [
            (r"".into(), "not what its type says"),
            (
                r#"{"version":"1.0","prefetch_spans":[]} {}"#.into(),
                "not what its type says",
            ),
            (
                r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":2}]}"#.into(),
                "not what its type says",
            ),
            (
                r#"{"version":"2.0","prefetch_spans":[]}"#.into(),
                r#"version "2.0" is not known"#,
            ),
            (
                r#"{"version":"1.0","prefetch_spans":[{"start_span":5,"end_span":4}]}"#.into(),
                "spans 5 to 4 are no stretch",
            ),
            (
                format!(
                    r#"{{"version":"1.0","prefetch_spans":[{{"start_span":0,"end_span":{last}}}]}}"#
                ),
                "are no stretch",
            ),
        ] {
            let err = prefetched(artifact.as_bytes()).unwrap_err().to_string();
            assert!(err.contains(problem), "{artifact}: {err}");
        }
    }
}

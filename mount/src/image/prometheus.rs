//! Statistics as Prometheus reads them (its text format, version 0.0.4).

use std::fmt::{Display, Write as _};

use super::stats::Stats;
use crate::fetch::Why;
use crate::metric;

/// All numbers of one mount, and those of this process.
pub fn text(stats: &Stats) -> String {
    let mut page = Page {
        image: quoted(&stats.subject.reference),
        text: String::new(),
    };
    let fetched = || Why::ALL.into_iter().zip(&stats.moved.fetched);
    let by_why = |why: Why| format!(",why={}", quoted(why.name()));
    page.many(
        "sifon_fetched_bytes_total",
        "counter",
        "Packed bytes fetched for ranges of layers",
        fetched().map(|(why, count)| (by_why(why), count.bytes)),
    );
    page.many(
        "sifon_fetch_requests_total",
        "counter",
        "Requests for ranges of layers",
        fetched().map(|(why, count)| (by_why(why), count.requests)),
    );
    page.many(
        "sifon_fetch_failures_total",
        "counter",
        "Requests for ranges that failed",
        fetched().map(|(why, count)| (by_why(why), count.failures)),
    );
    let (reads, moved, share) = (&stats.reads, &stats.moved, &stats.share);
    for (name, help, value) in [
        ("sifon_reads_total", "Reads by programs", reads.reads),
        (
            "sifon_read_bytes_total",
            "Bytes that programs read",
            reads.bytes,
        ),
        (
            "sifon_reads_from_memory_total",
            "Reads answered from memory",
            reads.from_memory,
        ),
        (
            "sifon_read_failures_total",
            "Reads that failed",
            reads.failures,
        ),
        (
            "sifon_chunks_from_store_total",
            "Chunks that the store had",
            moved.chunks_from_store,
        ),
        (
            "sifon_chunks_waited_for_total",
            "Chunks that a reader waited for",
            moved.chunks_waited_for,
        ),
        (
            "sifon_fetched_again_bytes_total",
            "Bytes fetched again because they were wrong",
            moved.fetched_again,
        ),
    ] {
        page.one(name, "counter", help, value);
    }
    page.one(
        "sifon_read_wait_seconds_total",
        "counter",
        "How long reads waited for store and source",
        reads.waited_us as f64 / 1e6,
    );
    for (name, help, value) in [
        ("sifon_image_bytes", "Bytes of all files", share.bytes),
        (
            "sifon_image_read_bytes",
            "Bytes of files that were ever read",
            share.read_bytes,
        ),
    ] {
        page.one(name, "gauge", help, value);
    }
    page.many(
        "sifon_layer_kept_bytes",
        "gauge",
        "Packed bytes of a layer in the store",
        stats.layers.iter().map(|kept| {
            let layer = quoted(&kept.layer.to_string());
            (format!(",layer={layer}"), kept.kept_bytes)
        }),
    );
    for counter in metric::ALL {
        let name = format!("sifon_{}_total", counter.name());
        page.one(&name, "counter", counter.meaning(), counter.count());
    }
    page.text
}

struct Page {
    image: String,
    text: String,
}

impl Page {
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.many(name, kind, help, [(String::new(), value)].into_iter());
    }

    fn many<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl Iterator<Item = (String, V)>,
    ) {
        let image = &self.image;
        let mut write = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            writeln!(write, "{name}{{image={image}{labels}}} {value}")
                .expect("a string takes everything");
        }
        self.text.push_str(&write);
    }
}

/// A label's value.
fn quoted(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_ends_where_it_should() {
        assert_eq!(quoted("a\"b\\c\nd"), r#""a\"b\\c\nd""#);
    }
}

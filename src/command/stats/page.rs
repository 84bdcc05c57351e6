//! Statistics as one page for a browser, without scripts and without anything from elsewhere. Names in it were chosen by whoever
//! built the image: none is written without [`escaped`].

use std::fmt::Write as _;

use sifon_mount::fetch::{Request, Why};
use sifon_mount::image::stats::{MapPart, Stats};

use super::treemap::{Area, areas};
use super::{NO_RANGES, percent, time};
use crate::output::{bytes, plain};

const MAP: Area = Area {
    x: 0.0,
    y: 0.0,
    width: 1200.0,
    height: 640.0,
};

const TIMELINE_WIDTH: f64 = 1200.0;

/// Requests beside each other in time are drawn below each other.
const LANE_HEIGHT: f64 = 12.0;

/// Lanes at most.
const LANES: usize = 64;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin-top:2em}svg{width:100%;height:auto;display:block}\
table{border-collapse:collapse}td,th{padding:.15em 1em .15em 0;text-align:right}td:last-child,th:last-child{text-align:left;overflow-wrap:anywhere}\
.key{display:inline-block;width:.9em;height:.9em;margin:0 .4em 0 1em;vertical-align:-.1em}\
.muted{color:#666}rect:hover{stroke:#000;stroke-width:1.5}text{font-size:11px;pointer-events:none}";

/// The page.
pub(super) fn page(stats: &Stats) -> String {
    let name = escaped(&stats.subject.reference);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{name} – sifon</title>\n<style>{STYLE}</style>\n<h1>{name}</h1>\n"
    );
    let mut put = |part: String| page.push_str(&part);
    put(summary(stats));
    put("<h2>What was ever read</h2>\n".into());
    put(map(&stats.map));
    put("<h2>Requests</h2>\n".into());
    put(timeline(&stats.requests));
    put("<h2>Files that programs waited for longest</h2>\n".into());
    put(costly(stats));
    page.push_str("</html>\n");
    page
}

fn summary(stats: &Stats) -> String {
    let (share, reads) = (&stats.share, &stats.reads);
    let counts = &stats.moved.fetched;
    let sum = |numbers: &mut dyn Iterator<Item = u64>| numbers.fold(0, u64::saturating_add);
    let fetched = sum(&mut counts.iter().map(|count| count.bytes));
    let requests = sum(&mut counts.iter().map(|count| count.requests));
    format!(
        "<p class=\"muted\">{}</p>\n<p>{} fetched in {requests} requests. {} of {} ({}) in {} of {} files were ever read. \
         Programs waited {} in {} reads, {} of which were answered from memory.</p>\n",
        stats.subject.manifest,
        bytes(fetched),
        bytes(share.read_bytes),
        bytes(share.bytes),
        percent(share.read_bytes, share.bytes),
        share.read_files,
        share.files,
        time(reads.waited_us),
        reads.reads,
        percent(reads.from_memory, reads.reads),
    )
}

fn map(parts: &[MapPart]) -> String {
    let mut parts: Vec<&MapPart> = parts.iter().filter(|part| part.bytes > 0).collect();
    if parts.is_empty() {
        return "<p>No file has a byte.</p>\n".into();
    }
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    let sizes: Vec<f64> = parts.iter().map(|part| part.bytes as f64).collect();
    let mut svg = format!(
        "<p>Each area is a file, or the small files of a directory, by size; point at one for its name.\
         <span class=\"key\" style=\"background:{}\"></span>not read<span class=\"key\" style=\"background:{}\"></span>half \
         <span class=\"key\" style=\"background:{}\"></span>all of it</p>\n<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"map of the image by size\">\n",
        colour(0.0),
        colour(0.5),
        colour(1.0),
        MAP.width,
        MAP.height
    );
    for (part, area) in parts.iter().zip(areas(&sizes, MAP)) {
        let read = part.read_bytes as f64 / part.bytes as f64;
        let path = escaped(&part.path);
        let files = match part.files {
            1 => String::new(),
            count => format!(" ({count} small files)"),
        };
        let title = format!(
            "/{path}{files}\n{}, {} read",
            bytes(part.bytes),
            percent(part.read_bytes, part.bytes)
        );
        let Area {
            x,
            y,
            width,
            height,
        } = area;
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{}\" stroke=\"#fff\" stroke-width=\".5\"><title>{title}</title></rect>\n",
                colour(read)
            ),
        );
        if width > 60.0 && height > 16.0 {
            let letters = (width / 6.5) as usize;
            let name = part
                .path
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default();
            let name = shortened(name, letters);
            let (x, y) = (x + 3.0, y + 12.0);
            put(
                &mut svg,
                format_args!(
                    "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n",
                    escaped(&name)
                ),
            );
        }
    }
    svg + "</svg>\n"
}

/// The first letters of a name, and that these are not all.
fn shortened(name: &str, letters: usize) -> String {
    match name.chars().count() > letters {
        true => name.chars().take(letters - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

/// From grey to green.
fn colour(read: f64) -> String {
    let mix = |from: f64, to: f64| (from + (to - from) * read.clamp(0.0, 1.0)) as u8;
    format!(
        "rgb({},{},{})",
        mix(225.0, 60.0),
        mix(225.0, 170.0),
        mix(225.0, 90.0)
    )
}

fn colour_of(why: Why) -> &'static str {
    match why {
        Why::Read => "#d1495b",
        Why::ReadAhead => "#edae49",
        Why::Profile => "#00798c",
        Why::Background => "#9aa5b1",
    }
}

fn timeline(requests: &[Request]) -> String {
    let (Some(first), Some(end)) = (
        requests.iter().map(|request| request.at_us).min(),
        requests
            .iter()
            .map(|request| request.at_us.saturating_add(request.took_us))
            .max(),
    ) else {
        return format!("<p>{NO_RANGES}</p>\n");
    };
    let scale = TIMELINE_WIDTH / (end - first).max(1) as f64;
    let mut lanes: Vec<u64> = Vec::new();
    let mut bars = String::new();
    let mut sorted: Vec<&Request> = requests.iter().collect();
    sorted.sort_by_key(|request| request.at_us);
    for request in sorted {
        let free = lanes.iter().position(|&until| until <= request.at_us);
        let lane = free.unwrap_or_else(|| lanes.len().min(LANES - 1));
        if lane == lanes.len() {
            lanes.push(0);
        }
        lanes[lane] = request.at_us.saturating_add(request.took_us);
        let x = (request.at_us - first) as f64 * scale;
        let width = (request.took_us as f64 * scale).max(1.0);
        let y = lane as f64 * LANE_HEIGHT;
        let failed = if request.failed { ", failed" } else { "" };
        put(
            &mut bars,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{} at {}{failed}\n{} of layer {} from {}\nfirst byte after {}, all after {}</title></rect>\n",
                LANE_HEIGHT - 2.0,
                colour_of(request.why),
                request.why.name(),
                time(request.at_us),
                bytes(request.bytes),
                request.layer,
                request.from,
                time(request.first_byte_us),
                time(request.took_us)
            ),
        );
    }
    let keys: String = Why::ALL
        .into_iter()
        .map(|why| {
            format!(
                "<span class=\"key\" style=\"background:{}\"></span>{}",
                colour_of(why),
                why.name()
            )
        })
        .collect();
    let height = lanes.len() as f64 * LANE_HEIGHT;
    format!(
        "<p>{} requests, {} from the first to the last.{keys}</p>\n<svg viewBox=\"0 0 {TIMELINE_WIDTH} {height}\" role=\"img\" aria-label=\"requests over time\">\n{bars}</svg>\n",
        requests.len(),
        time(end - first)
    )
}

fn costly(stats: &Stats) -> String {
    let mut table =
        String::from("<table>\n<tr><th>waited</th><th>read</th><th>reads</th><th>file</th></tr>\n");
    for file in &stats.costly {
        put(
            &mut table,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>/{}</td></tr>\n",
                time(file.reads.waited_us),
                bytes(file.reads.bytes),
                file.reads.reads,
                escaped(&file.path)
            ),
        );
    }
    table + "</table>\n"
}

fn put(to: &mut String, text: std::fmt::Arguments<'_>) {
    to.write_fmt(text).expect("a string takes everything");
}

/// `text` as text of a page, whatever it says.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in plain(text).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_text() {
        assert_eq!(
            escaped("</title><script>alert('\"&')</script>\u{202e}\n"),
            "&lt;/title&gt;&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;\\u{202e}\\n"
        );
    }

    #[test]
    fn a_name_that_does_not_fit_says_so() {
        assert_eq!(shortened("libé.so", 7), "libé.so");
        assert_eq!(shortened("libé.so.1", 7), "libé.s…");
    }

    #[test]
    fn requests_at_the_same_time_are_drawn_below_each_other() {
        let request = |at_us| Request {
            at_us,
            first_byte_us: 1,
            took_us: 10,
            layer: sifon_mount::digest::Digest::of(b""),
            from: 0,
            bytes: 5,
            why: Why::Read,
            failed: false,
        };
        let drawn = timeline(&[request(0), request(5), request(10)]);
        let lanes: Vec<&str> = drawn
            .lines()
            .filter_map(|line| line.split("y=\"").nth(1)?.split('"').next())
            .collect();
        assert_eq!(lanes, ["0.0", "12.0", "0.0"]);
        let many: Vec<Request> = (0..200).map(|_| request(0)).collect();
        assert!(timeline(&many).contains(&format!("viewBox=\"0 0 1200 {}\"", 64 * 12)));
    }
}

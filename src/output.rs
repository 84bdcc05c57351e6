//! What the user sees: data on stdout, messages and progress on stderr.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use sifon_mount::digest::Digest;
use sifon_mount::image::open::{OnProgress, Progress};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How much a user wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Warnings, state changes, progress.
    #[default]
    Normal,
    /// Also what is decided and why.
    Verbose,
    /// Everything, of the libraries too.
    Debug,
}

impl Verbosity {
    fn filter(self) -> &'static str {
        match self {
            Self::Quiet => "off",
            Self::Normal => "sifon=info,sifon_mount=info",
            Self::Verbose => "sifon=debug,sifon_mount=debug",
            Self::Debug => "trace",
        }
    }
}

/// Where messages and progress go.
#[derive(Clone, Debug)]
pub struct Output {
    verbosity: Verbosity,
    is_terminal: bool,
}

impl Output {
    /// Sends messages of this process to stderr from now on.
    pub fn start(verbosity: Verbosity) -> Self {
        let filter = tracing_subscriber::EnvFilter::new(verbosity.filter());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .event_format(SingularityFormat)
            .finish();
        // Fails only where a test has set its own.
        let _ = tracing::subscriber::set_global_default(subscriber);
        Self {
            verbosity,
            is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Sends messages of this process, and debugging ones of ours, to `lines` from now on.
    pub fn to(lines: Arc<dyn Lines>) {
        let filter = tracing_subscriber::EnvFilter::new(Verbosity::Verbose.filter());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(LineWriters(lines))
            .event_format(SingularityFormat)
            .finish();
        let _ = tracing::subscriber::set_global_default(subscriber);
    }

    /// Shows progress bars on a terminal, and nothing elsewhere.
    pub fn progress(&self) -> OnProgress {
        if !self.is_terminal || self.verbosity == Verbosity::Quiet {
            return Arc::new(|_| {});
        }
        let bars = Bars::default();
        Arc::new(move |progress| bars.show(progress))
    }

    /// A bar for work on `total` bytes, on a terminal. It goes when it is dropped.
    pub fn bar(&self, what: &'static str, total: u64) -> ProgressBar {
        if !self.is_terminal || self.verbosity == Verbosity::Quiet {
            return ProgressBar::hidden();
        }
        ProgressBar::new(total)
            .with_style(style())
            .with_prefix(what)
    }
}

/// Takes messages.
pub trait Lines: Send + Sync {
    /// One message as it is printed, with its newline.
    fn line(&self, level: Level, text: &str);
}

struct LineWriters(Arc<dyn Lines>);

struct LineWriter {
    lines: Arc<dyn Lines>,
    level: Level,
}

impl<'a> MakeWriter<'a> for LineWriters {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            lines: Arc::clone(&self.0),
            level: Level::INFO,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter {
        LineWriter {
            lines: Arc::clone(&self.0),
            level: *metadata.level(),
        }
    }
}

impl Write for LineWriter {
    /// Gets each event at once.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.lines.line(self.level, &String::from_utf8_lossy(text));
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn style() -> ProgressStyle {
    let template =
        "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}";
    ProgressStyle::with_template(template)
        .expect("the template is well-formed")
        .progress_chars("=> ")
}

/// Bars by layer; a layer whose work is over has none.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: Progress) {
        let mut layers = self.layers.lock().expect("drawing does not panic");
        match progress {
            Progress::Started { layer, bytes } => {
                let bar = ProgressBar::new(bytes)
                    .with_style(style())
                    .with_prefix(short(layer));
                if let Some(earlier) = layers.insert(layer, self.screen.add(bar)) {
                    earlier.finish_and_clear();
                }
            }
            Progress::Received { layer, bytes } => {
                if let Some(bar) = layers.get(&layer) {
                    bar.inc(bytes);
                }
            }
            Progress::Finished { layer } => {
                if let Some(bar) = layers.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

/// Enough of a digest to tell layers apart.
pub fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// `text` as one line without anything that a terminal would obey: an image's author chose parts of it.
pub fn plain(text: &str) -> String {
    // Unicode's formatting characters can show a line's end before its beginning.
    let reorders = |character| matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(
            |character| match character.is_control() || reorders(character) {
                true => character.escape_default().to_string(),
                false => character.to_string(),
            },
        )
        .collect()
}

/// JSON as Go writes it: without characters that mean something in HTML, which outside of strings it does not have.
pub fn as_go_writes(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// Prints what went wrong and every cause once, then what the user can do about it.
pub fn fatal(error: &(dyn Error + 'static), hint: Option<&str>) {
    let mut stderr = io::stderr().lock();
    // Nothing can be said where stderr is closed.
    let _ = writeln!(stderr, "FATAL:   {}", plain(&Chain(error).to_string()));
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "INFO:    {}", plain(hint));
    }
}

/// An error with its causes, joined by colons.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Messages as Singularity prints them: the level in nine columns, then the text.
struct SingularityFormat;

impl<S, N> FormatEvent<S, N> for SingularityFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR:",
            Level::WARN => "WARNING:",
            Level::INFO => "INFO:",
            Level::DEBUG => "VERBOSE:",
            Level::TRACE => "DEBUG:",
        };
        let mut text = String::new();
        context
            .field_format()
            .format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{level:<9}{}", plain(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_an_image_says() {
        for (text, shown) in [
            ("a b/ü☃", "a b/ü☃"),
            ("\x1b]0;owned\x07", "\\u{1b}]0;owned\\u{7}"),
            ("one\nFATAL: two\r", "one\\nFATAL: two\\r"),
            ("\u{9b}2J\u{202e}gpj", "\\u{9b}2J\\u{202e}gpj"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }
}

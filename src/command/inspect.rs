//! `sifon inspect`: what an image says of itself.

mod metadata;

mod directory;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use sifon_mount::digest::Digest;
use sifon_mount::image::open::Description;
use sifon_mount::image::outlook::Outlook;
use sifon_mount::source::config::ImageConfig;

use self::metadata::Metadata;
use crate::output::{bytes, plain, short};
use crate::setting::{Context, Error, parsed};

/// Show what an image is made of, or what a SIF says of itself
///
/// Prints digest, platform, configuration and layers: their format, size, whether they can be read without being
/// fetched whole, by which index and why that is believed, and whether the store has them. Only the manifest, the
/// configuration and a SOCI index are fetched.
///
/// Of a SIF and of a sandbox it prints what Apptainer prints, by whatever name this program is called: the labels, or what the
/// options from --labels on ask for. With one of them, images from elsewhere answer as their SIF would.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, such as docker://python:3.11 or python_3.11.sif
    image: OsString,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    /// Of a SIF, too, show digest, configuration and layers
    #[arg(long, conflicts_with = "Sections")]
    layers: bool,
    #[command(flatten)]
    sections: metadata::Sections,
    // Apptainer's --deffile has the letter that --debug has elsewhere.
    /// Say everything
    #[arg(long, id = "debug", help_heading = "Global options")]
    _debug: bool,
}

/// Prints an image's description.
pub fn run(context: &Context, args: &Args) -> Result<ExitCode, Error> {
    if !args.layers
        && let Some(described) = described(context, args)?
    {
        let answer = described.answer(&args.sections, args.json);
        metadata::print(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reference = parsed(&args.image)?;
    let (description, outlooks) = context.outlook(&reference)?;
    let inspection = Inspection::new(reference.to_string(), &description, outlooks);
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &inspection)?;
        writeln!(stdout)?;
    } else {
        write!(stdout, "{inspection}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What Apptainer would print, if that is wanted.
fn described(context: &Context, args: &Args) -> Result<Option<Metadata>, Error> {
    let path = Path::new(&args.image);
    if path.is_dir() {
        let attributes =
            directory::attributes(path).map_err(|err| format!("{}: {err}", path.display()))?;
        return Ok(Some(attributes.into()));
    }
    metadata::of(context, &args.image, args.sections.are_asked())
}

/// What is printed. The names of the fields are those of the JSON: scripts depend on them.
#[derive(Debug, Serialize)]
struct Inspection {
    reference: String,
    /// What the reference names: an index or a manifest.
    digest: Digest,
    /// The manifest for the platform.
    manifest: Digest,
    os: String,
    architecture: String,
    created: Option<String>,
    config: Config,
    packed_bytes: u64,
    layers: Vec<Layer>,
}

#[derive(Debug, Serialize)]
struct Config {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    user: String,
    working_dir: String,
    labels: BTreeMap<String, String>,
    exposed_ports: Vec<String>,
    volumes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Layer {
    digest: Digest,
    diff_id: Option<Digest>,
    media_type: String,
    format: String,
    packed_bytes: u64,
    /// Whether its files can be read before all of it has been fetched.
    is_lazy: bool,
    /// By what, if so.
    index: Option<&'static str>,
    /// Why what is read is believed, or why nothing can be read.
    trust: String,
    /// Whether the store has what is needed to open it.
    is_stored: bool,
}

impl Inspection {
    fn new(reference: String, description: &Description, outlooks: Vec<Outlook>) -> Self {
        let (manifest, config) = (&description.manifest, &description.config);
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .zip(outlooks)
            .enumerate()
            .map(|(index, (descriptor, outlook))| Layer {
                digest: descriptor.digest,
                diff_id: config.diff_ids.get(index).copied(),
                media_type: descriptor.media_type.clone(),
                format: outlook.format,
                packed_bytes: descriptor.size,
                is_lazy: outlook.is_lazy,
                index: outlook.index,
                trust: outlook.trust,
                is_stored: outlook.is_stored,
            })
            .collect();
        Self {
            reference,
            digest: description.top,
            manifest: description.manifest_digest,
            os: config.os.clone(),
            architecture: config.architecture.clone(),
            created: config.created.clone(),
            config: Config::from(config),
            packed_bytes: layers.iter().map(|layer| layer.packed_bytes).sum(),
            layers,
        }
    }
}

impl From<&ImageConfig> for Config {
    fn from(config: &ImageConfig) -> Self {
        Self {
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            user: config.user.clone(),
            working_dir: config.working_dir.clone(),
            labels: config.labels.clone(),
            exposed_ports: config.exposed_ports.clone(),
            volumes: config.volumes.clone(),
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        let one = |text: &str| Vec::from_iter((!text.is_empty()).then(|| plain(text)));
        let all = |texts: &[String]| texts.iter().map(|text| plain(text)).collect();
        let words = |words: &[String]| {
            Vec::from_iter(
                (!words.is_empty()).then(|| plain(&serde_json::json!(words).to_string())),
            )
        };
        let labels = config.labels.iter();
        let fields: [(&str, Vec<String>); 14] = [
            ("Image", one(&self.reference)),
            ("Digest", one(&self.digest.to_string())),
            ("Manifest", one(&self.manifest.to_string())),
            (
                "Platform",
                one(&format!("{}/{}", self.os, self.architecture)),
            ),
            ("Created", one(self.created.as_deref().unwrap_or_default())),
            ("Entrypoint", words(&config.entrypoint)),
            ("Cmd", words(&config.cmd)),
            ("User", one(&config.user)),
            ("WorkingDir", one(&config.working_dir)),
            ("Env", all(&config.env)),
            (
                "Labels",
                labels
                    .map(|(name, value)| plain(&format!("{name}={value}")))
                    .collect(),
            ),
            ("Ports", all(&config.exposed_ports)),
            ("Volumes", all(&config.volumes)),
            (
                "Layers",
                vec![format!(
                    "{}, {} packed",
                    self.layers.len(),
                    bytes(self.packed_bytes)
                )],
            ),
        ];
        for (name, values) in &fields {
            for (index, value) in values.iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                writeln!(f, "{name:<11} {value}")?;
            }
        }
        if self.layers.is_empty() {
            return Ok(());
        }
        let row = ["LAYER", "SIZE", "FORMAT", "LAZY", "STORED", "MEDIA TYPE"];
        let mut rows = vec![row.map(str::to_owned)];
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        rows.extend(self.layers.iter().map(|layer| {
            [
                short(layer.digest),
                bytes(layer.packed_bytes),
                plain(&layer.format),
                yes(layer.is_lazy),
                yes(layer.is_stored),
                plain(&layer.media_type),
            ]
        }));
        writeln!(f)?;
        for [layer, size, format, lazy, stored, media_type] in rows {
            writeln!(
                f,
                "{layer:<12}  {size:>10}  {format:<14}  {lazy:<4}  {stored:<6}  {media_type}"
            )?;
        }
        // One line for each way of reading, however many layers are read in it.
        let ways: BTreeSet<_> = self
            .layers
            .iter()
            .map(|layer| {
                (
                    &layer.format,
                    layer.index.unwrap_or("read whole"),
                    &layer.trust,
                )
            })
            .collect();
        writeln!(f)?;
        for (format, index, trust) in ways {
            writeln!(f, "{}: {index}; {}", plain(format), plain(trust))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sifon_mount::source::manifest::Document;

    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    fn inspection() -> Inspection {
        let layer = |text: &str| Digest::of(text.as_bytes());
        let toc = BTreeMap::from([
            (
                "io.github.containers.zstd-chunked.manifest-position",
                "100:50:200:1".to_owned(),
            ),
            (
                "io.github.containers.zstd-chunked.manifest-checksum",
                layer("toc").to_string(),
            ),
        ]);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": layer("config"), "size": 2},
            "layers": [
                {"mediaType": GZIP, "digest": layer("a"), "size": 1000},
                {"mediaType": ZSTD, "digest": layer("b"), "size": 2000, "annotations": toc},
            ],
        });
        let Document::Manifest(manifest) =
            Document::parse(manifest.to_string().as_bytes()).unwrap()
        else {
            panic!("a manifest");
        };
        let config = ImageConfig {
            os: "linux".into(),
            architecture: "arm64".into(),
            entrypoint: vec!["/bin/sh".into(), "-c".into()],
            env: vec!["A=1".into(), "B=\u{1b}[31mred\n".into()],
            diff_ids: vec![layer("A"), layer("B")],
            ..ImageConfig::default()
        };
        let description = Description {
            top: layer("index"),
            manifest_digest: layer("manifest"),
            manifest,
            config,
        };
        let outlook = |format: &str, index| Outlook {
            format: format.into(),
            is_lazy: Option::is_some(&index),
            index,
            trust: "a reason".into(),
            is_stored: index.is_none(),
        };
        let outlooks = vec![
            outlook("gzip", None),
            outlook("zstd:chunked", Some("a table")),
        ];
        Inspection::new("docker://x".into(), &description, outlooks)
    }

    #[test]
    fn the_table_shows_layers_with_what_they_cost() {
        let text = inspection().to_string();
        for line in [
            "Image       docker://x",
            "Platform    linux/arm64",
            "Entrypoint  [\"/bin/sh\",\"-c\"]",
            "Env         A=1",
            "            B=\\u{1b}[31mred\\n",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line}\n{text}");
        }
        let ways = "gzip: read whole; a reason\nzstd:chunked: a table; a reason\n";
        assert!(text.ends_with(ways), "{text}");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .rev()
            .skip(3)
            .take(2)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1][3..], ["gzip", "no", "yes", GZIP]);
        assert_eq!(rows[0][3..], ["zstd:chunked", "yes", "no", ZSTD]);
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_know() {
        let json = serde_json::to_value(inspection()).unwrap();
        let keys = |value: &serde_json::Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let top = "architecture config created digest layers manifest os packed_bytes reference";
        assert_eq!(keys(&json), top);
        let config = "cmd entrypoint env exposed_ports labels user volumes working_dir";
        assert_eq!(keys(&json["config"]), config);
        let layer = "diff_id digest format index is_lazy is_stored media_type packed_bytes trust";
        assert_eq!(keys(&json["layers"][0]), layer);
        assert_eq!(json["packed_bytes"], 3000);
        assert_eq!(json["layers"][1]["diff_id"], Digest::of(b"B").to_string());
    }
}

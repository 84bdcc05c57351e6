//! What Singularity looks for in a root file system and in a SIF, made from an image's configuration.
//!
//! Every path is resolved in the image's own tree; no file of the machine is opened because an image names it.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Map, Value, json};
use sifon_mount::digest::Digest;
use sifon_mount::layer::entry::shown;
use sifon_mount::source::config::ImageConfig;

use super::contents::{Addition, AdditionKind};
use super::date::{self, Date};
use super::node::{Standing, Standings};
use super::path::{Resolved, resolved};
use super::shell;
use super::squashfs::Compression;
use super::touched::Summary;
use super::without::Patterns;

/// What a SIF keeps of an image's configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// As OCI names it, such as `amd64`.
    pub architecture: String,
    /// Seconds since 1970: when the image was made.
    pub created: i64,
    /// The program, with first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, or a name alone.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The object `config` of the configuration, with all that Singularity has no use for.
    pub oci_config: Value,
}

impl Config {
    /// What of an image's own configuration goes into a SIF. A date that cannot be read becomes 1970.
    pub fn of(config: &ImageConfig) -> io::Result<Self> {
        let mut json: Value = serde_json::from_slice(&config.json)?;
        let created = config.created.as_deref().and_then(date::seconds);
        Ok(Self {
            architecture: config.architecture.clone(),
            created: created.unwrap_or_default(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            labels: config.labels.clone(),
            oci_config: match json.get_mut("config").map(Value::take) {
                Some(config @ Value::Object(_)) => config,
                _ => json!({}),
            },
        })
    }
}

/// Where an image came from, as a definition file says it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `docker`, `oci`, `oci-archive`, `docker-archive` or `localimage`.
    pub bootstrap: String,
    /// The reference without the scheme.
    pub from: String,
    /// The manifest that the reference named, where it named one.
    pub manifest: Option<Digest>,
}

impl Origin {
    /// From a reference in its canonical form.
    pub fn of(reference: &str) -> Self {
        let scheme = reference
            .split_once(':')
            .filter(|_| !reference.starts_with('/'));
        let (scheme, rest) = scheme.unwrap_or((LOCAL_IMAGE, reference));
        Self {
            bootstrap: scheme.into(),
            from: rest.strip_prefix("//").unwrap_or(rest).into(),
            manifest: None,
        }
    }

    /// Whether it is a SIF or another file system, whose scripts stay as they are.
    pub fn is_file(&self) -> bool {
        [LOCAL_IMAGE, "oras", "http", "https"].contains(&&*self.bootstrap)
    }

    /// The same with the manifest that was found there.
    pub fn with_manifest(self, manifest: Digest) -> Self {
        Self {
            manifest: Some(manifest),
            ..self
        }
    }

    /// What a SIF tells about itself beyond what Singularity knows: the object `sifon.json`.
    pub fn provenance(
        &self,
        compression: Compression,
        without: Option<&Patterns>,
        untouched: Option<&Summary>,
    ) -> Vec<u8> {
        let mut provenance = json!({
            "bootstrap": self.bootstrap,
            "from": self.from,
            "manifest": self.manifest,
            "compression": compression.to_string(),
            "without": without.map(Patterns::texts).unwrap_or_default(),
            "sifon": env!("CARGO_PKG_VERSION"),
        });
        if let Some(untouched) = untouched {
            provenance["only_touched"] = json!(untouched);
        }
        provenance.to_string().into_bytes()
    }

    /// The definition file that would build the same.
    pub fn deffile(&self) -> String {
        let line = |text: &str| text.replace(|character: char| character.is_control(), "?");
        let (bootstrap, from) = (line(&self.bootstrap), line(&self.from));
        format!("bootstrap: {bootstrap}\nfrom: {from}\n\n")
    }
}

/// How a definition file calls a SIF that is built upon.
const LOCAL_IMAGE: &str = "localimage";

/// All texts that a SIF has beside the image.
#[derive(Clone, Debug)]
pub struct Texts {
    /// The definition file.
    pub deffile: String,
    /// What `run` starts.
    pub runscript: String,
    /// The image's variables as a script.
    pub environment: String,
    /// The image's labels and ours.
    pub labels: BTreeMap<String, String>,
}

/// What `run` starts: who has it was made by Singularity, or by us.
const RUNSCRIPT: &str = ".singularity.d/runscript";

/// Names of the scripts that `inspect --environment` shows, with their directory.
const ENV_IMAGE: &str = ".singularity.d/env/10-docker2singularity.sh";
const ENV_OWN: &str = ".singularity.d/env/90-environment.sh";

/// Directories that have to be there for others to be mounted on.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "root", "tmp", "sys", "home", "var/tmp"];

/// Files that others are mounted on. What the image has in them belongs to the machine that built it.
const EMPTIED: [&str; 2] = ["hosts", "resolv.conf"];

/// Names that older versions used.
const LINKS: [(&str, &str); 6] = [
    ("singularity", ".singularity.d/runscript"),
    ("environment", ENV_OWN),
    (".run", ".singularity.d/actions/run"),
    (".exec", ".singularity.d/actions/exec"),
    (".test", ".singularity.d/actions/test"),
    (".shell", ".singularity.d/actions/shell"),
];

impl Texts {
    /// What the configuration says, in Singularity's words.
    pub fn new(config: &Config, origin: &Origin) -> io::Result<Self> {
        let arguments = config.entrypoint.iter().chain(&config.cmd);
        for argument in arguments {
            if argument.contains('\0') {
                return Err(io::Error::other(format!(
                    "image configuration, ENTRYPOINT or CMD: {:?} contains a zero byte",
                    shown(argument.as_bytes())
                )));
            }
        }
        let mut labels = config.labels.clone();
        let date = Date::from_seconds(config.created).label();
        for (name, value) in [
            ("org.label-schema.schema-version", "1.0"),
            ("org.label-schema.build-date", &date),
            ("org.label-schema.build-arch", &config.architecture),
            (
                "org.label-schema.usage.singularity.deffile.bootstrap",
                &origin.bootstrap,
            ),
            (
                "org.label-schema.usage.singularity.deffile.from",
                &origin.from,
            ),
        ] {
            labels.insert(name.into(), value.into());
        }
        Ok(Self {
            deffile: origin.deffile(),
            runscript: shell::runscript(&config.entrypoint, &config.cmd),
            environment: shell::environment(&config.env),
            labels,
        })
    }

    /// What a root file system has that Singularity, or a SIF of ours, made; `None` if it is none of these. `file` gives the
    /// text of a regular file by its path.
    pub fn kept(file: impl Fn(&str) -> io::Result<Option<String>>) -> io::Result<Option<Self>> {
        let text = |name: &str| file(&format!(".singularity.d/{name}"));
        let Some(runscript) = file(RUNSCRIPT)? else {
            return Ok(None);
        };
        let labels = text("labels.json")?.unwrap_or_default();
        Ok(Some(Self {
            deffile: text("Singularity")?.unwrap_or_default(),
            runscript,
            environment: file(ENV_IMAGE)?.unwrap_or_default(),
            labels: serde_json::from_str(&labels).unwrap_or_default(),
        }))
    }

    /// Whether a root file system in which `standings` are has such scripts, as far as that is told without reading them.
    pub fn are_at(standings: &Standings<'_>) -> io::Result<bool> {
        Ok(standings(RUNSCRIPT.as_bytes())? == Some(Standing::File))
    }

    /// The object that `apptainer inspect` reads, so that it need not start a shell in the image.
    pub fn inspect_metadata(&self) -> Vec<u8> {
        let environment = Map::from_iter([
            (format!("/{ENV_IMAGE}"), Value::from(&*self.environment)),
            (format!("/{ENV_OWN}"), Value::from(shell::ENV_OWN)),
        ]);
        let metadata = json!({
            "data": {
                "attributes": {
                    "deffile": self.deffile,
                    "environment": environment,
                    "labels": self.labels,
                    "runscript": self.runscript,
                    "startscript": shell::STARTSCRIPT,
                }
            },
            "type": "container",
        });
        metadata.to_string().into_bytes()
    }

    /// `.singularity.d/labels.json`.
    fn labels_json(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, tabs);
        serde::Serialize::serialize(&self.labels, &mut serializer)
            .expect("a map of strings is JSON, and memory takes it");
        bytes
    }

    /// Everything to be added to an image in which `standings` are.
    pub fn additions(&self, standings: &Standings<'_>) -> io::Result<Vec<Addition>> {
        let mut additions = self.singularity_d();
        for path in DIRECTORIES {
            if let Resolved::Missing(path) = resolved(standings, path.as_bytes())? {
                additions.push(directory(path));
            }
        }
        let etc = match resolved(standings, b"etc")? {
            Resolved::Found(etc, Standing::Directory) | Resolved::Missing(etc) => etc,
            _ => b"etc".to_vec(),
        };
        for name in EMPTIED {
            let path = [&etc, &b"/"[..], name.as_bytes()].concat();
            additions.push(file(path, Vec::new(), 0o644));
        }
        for (path, target) in LINKS {
            // A link of an earlier Singularity leads to what is about to be added.
            match resolved(standings, path.as_bytes())? {
                Resolved::Found(..) => {}
                _ => additions.push(Addition {
                    path: path.into(),
                    kind: AdditionKind::Symlink(target.into()),
                    mode: 0o777,
                }),
            }
        }
        Ok(additions)
    }

    fn singularity_d(&self) -> Vec<Addition> {
        let mut additions: Vec<_> = [
            ("runscript", self.runscript.as_str()),
            ("startscript", shell::STARTSCRIPT),
            ("env/01-base.sh", shell::ENV_BASE),
            ("env/10-docker2singularity.sh", &self.environment),
            ("env/90-environment.sh", shell::ENV_OWN),
            ("env/94-appsbase.sh", shell::ENV_APPS_BASE),
            ("env/95-apps.sh", shell::ENV_APPS),
            ("env/99-base.sh", shell::ENV_LAST),
            ("env/99-runtimevars.sh", shell::ENV_RUNTIME),
        ]
        .into_iter()
        .map(|(name, text)| script(name, text))
        .collect();
        for (name, last) in shell::ACTIONS {
            additions.push(script(&format!("actions/{name}"), &shell::action(last)));
        }
        additions.push(directory(b".singularity.d/libs".to_vec()));
        for (name, bytes) in [
            ("labels.json", self.labels_json()),
            ("Singularity", self.deffile.clone().into_bytes()),
        ] {
            let path = format!(".singularity.d/{name}");
            additions.push(file(path.into(), bytes, 0o644));
        }
        additions
    }
}

fn directory(path: Vec<u8>) -> Addition {
    Addition {
        path,
        kind: AdditionKind::Directory,
        mode: 0o755,
    }
}

fn file(path: Vec<u8>, bytes: Vec<u8>, mode: u16) -> Addition {
    Addition {
        path,
        kind: AdditionKind::File(bytes),
        mode,
    }
}

fn script(name: &str, text: &str) -> Addition {
    file(format!(".singularity.d/{name}").into(), text.into(), 0o755)
}

#[cfg(test)]
mod tests {
    use sifon_mount::layer::entry::Timestamp;

    use super::super::contents::Contents;
    use super::super::node::{PackKind, Source};
    use super::super::sample::Sample;
    use super::*;

    fn texts() -> Texts {
        let config = Config {
            architecture: "amd64".into(),
            created: 1_795_329_870,
            entrypoint: vec!["/bin/echo".into()],
            labels: BTreeMap::from([("maintainer".into(), "me\n\"x\"".into())]),
            env: vec!["A=b".into()],
            ..Config::default()
        };
        let origin = Origin {
            bootstrap: "docker".into(),
            from: "python:3.11".into(),
            manifest: None,
        };
        Texts::new(&config, &origin).unwrap()
    }

    fn added(source: &Sample) -> BTreeMap<String, (PackKind, u16)> {
        let additions = texts().additions(&|path| source.standing(path)).unwrap();
        Contents::new(source, additions, Timestamp::default())
            .nodes()
            .map(|node| node.unwrap())
            .map(|node| {
                (
                    String::from_utf8(node.path).unwrap(),
                    (node.kind, node.mode),
                )
            })
            .collect()
    }

    fn is_empty_file(seen: &(PackKind, u16)) -> bool {
        matches!(seen, (PackKind::Regular { size: 0, .. }, 0o644))
    }

    fn target(seen: &(PackKind, u16)) -> Option<&[u8]> {
        match &seen.0 {
            PackKind::Symlink { target } => Some(target),
            _ => None,
        }
    }

    #[test]
    fn an_empty_image_gets_everything_that_is_looked_for() {
        let nodes = added(&Sample::new());
        for path in [
            "dev", "proc", "root", "tmp", "var", "var/tmp", "etc", "sys", "home",
        ] {
            assert_eq!(nodes[path], (PackKind::Directory, 0o755), "{path}");
        }
        for path in ["actions", "env", "libs"] {
            let path = format!(".singularity.d/{path}");
            assert_eq!(nodes[&path].0, PackKind::Directory, "{path}");
        }
        for path in [
            "runscript",
            "startscript",
            "actions/exec",
            "actions/run",
            "actions/shell",
            "actions/start",
            "actions/test",
            "env/01-base.sh",
            "env/10-docker2singularity.sh",
            "env/90-environment.sh",
            "env/94-appsbase.sh",
            "env/95-apps.sh",
            "env/99-base.sh",
            "env/99-runtimevars.sh",
        ] {
            let (kind, mode) = &nodes[&format!(".singularity.d/{path}")];
            assert!(
                matches!(kind, PackKind::Regular { .. }) && *mode == 0o755,
                "{path}"
            );
        }
        assert_eq!(
            target(&nodes["singularity"]),
            Some(&b".singularity.d/runscript"[..])
        );
        assert_eq!(
            target(&nodes[".run"]),
            Some(&b".singularity.d/actions/run"[..])
        );
        assert!(is_empty_file(&nodes["etc/hosts"]) && is_empty_file(&nodes["etc/resolv.conf"]));
    }

    /// Each of these made Apptainer 1.4 fail, or write to a file of the host.
    #[test]
    fn links_at_these_places_are_replaced_in_the_image_alone() {
        let source = Sample::new()
            .directory("etc")
            .link("etc/resolv.conf", "/tmp/elsewhere")
            .link("etc/hosts", "../run/x/hosts")
            .link(".singularity.d", "/tmp/elsewhere")
            .link("singularity", "nowhere");
        let nodes = added(&source);
        assert!(is_empty_file(&nodes["etc/hosts"]) && is_empty_file(&nodes["etc/resolv.conf"]));
        assert_eq!(nodes[".singularity.d"], (PackKind::Directory, 0o755));
        assert!(nodes.contains_key(".singularity.d/runscript"));
        assert_eq!(
            target(&nodes["singularity"]),
            Some(&b".singularity.d/runscript"[..])
        );
        assert!(!nodes.contains_key("run") && !nodes.contains_key("tmp/elsewhere"));
    }

    #[test]
    fn directories_that_are_links_stay_links() {
        let source = Sample::new()
            .directory("usr")
            .directory("usr/etc")
            .link("etc", "usr/etc")
            .directory("scratch")
            .link("tmp", "scratch")
            .link("home", "/mnt/home")
            .link("var", "/usr/var");
        let nodes = added(&source);
        assert!(is_empty_file(&nodes["usr/etc/hosts"]));
        assert_eq!(target(&nodes["etc"]), Some(&b"usr/etc"[..]));
        assert_eq!(target(&nodes["tmp"]), Some(&b"scratch"[..]));
        assert_eq!(nodes["mnt/home"].0, PackKind::Directory);
        assert_eq!(nodes["usr/var/tmp"].0, PackKind::Directory);
    }

    #[test]
    fn what_an_earlier_singularity_left_is_brought_up_to_date() {
        let source = Sample::new()
            .directory(".singularity.d")
            .directory(".singularity.d/env")
            .file(".singularity.d/env/91-environment.sh", b"export MINE=1\n")
            .file(".singularity.d/runscript", b"old")
            .link("singularity", ".singularity.d/runscript")
            .file("environment", b"somebody's own");
        let nodes = added(&source);
        assert!(nodes.contains_key(".singularity.d/env/91-environment.sh"));
        assert_eq!(nodes[".singularity.d/runscript"].1, 0o755);
        assert!(matches!(nodes["environment"].0, PackKind::Regular { .. }));
    }

    #[test]
    fn labels_are_sorted_and_indented_with_tabs() {
        let text = String::from_utf8(texts().labels_json()).unwrap();
        assert!(text.starts_with(
            "{\n\t\"maintainer\": \"me\\n\\\"x\\\"\",\n\t\"org.label-schema.build-arch\""
        ));
        assert!(text.contains("\"Sunday_22_November_2026_6:44:30_UTC\"") && text.ends_with("\n}"));
    }

    #[test]
    fn inspect_finds_the_same_texts_as_the_image_has() {
        let texts = texts();
        let metadata: Value = serde_json::from_slice(&texts.inspect_metadata()).unwrap();
        let attributes = &metadata["data"]["attributes"];
        assert_eq!(metadata["type"], "container");
        assert_eq!(
            attributes["deffile"],
            "bootstrap: docker\nfrom: python:3.11\n\n"
        );
        assert_eq!(attributes["runscript"], texts.runscript);
        assert_eq!(
            attributes["labels"]["org.label-schema.schema-version"],
            "1.0"
        );
        assert_eq!(
            attributes["environment"][format!("/{ENV_IMAGE}")],
            texts.environment
        );
    }

    #[test]
    fn an_origin_is_the_reference_in_two_parts() {
        for (reference, bootstrap, from) in [
            ("docker://ghcr.io/a/b:1", "docker", "ghcr.io/a/b:1"),
            ("oci:/some/dir:tag", "oci", "/some/dir:tag"),
            ("docker-archive://x", "docker-archive", "x"),
        ] {
            let origin = Origin::of(reference);
            assert_eq!(
                (origin.bootstrap.as_str(), origin.from.as_str()),
                (bootstrap, from)
            );
        }
    }

    #[test]
    fn a_sif_tells_the_manifest_that_it_was_made_from() {
        let manifest = Digest::of(b"manifest");
        let origin = Origin::of("docker://a/b:1").with_manifest(manifest);
        let json = origin.provenance(Compression::default(), None, None);
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["manifest"], manifest.to_string());
        assert_eq!(
            (&json["from"], &json["compression"]),
            (&json!("a/b:1"), &json!("zstd:1"))
        );
    }

    #[test]
    fn the_configuration_object_is_kept_as_it_is() {
        let json = r#"{"architecture":"arm64","created":"1970-01-01T00:00:05.5Z","config":{"User":"x","Z":1}}"#;
        let config = ImageConfig::parse(json.into()).unwrap();
        let config = Config::of(&config).unwrap();
        assert_eq!((config.architecture.as_str(), config.created), ("arm64", 5));
        assert_eq!(config.oci_config, json!({"User": "x", "Z": 1}));
    }

    #[test]
    fn a_name_with_a_line_feed_adds_no_line_to_the_definition() {
        let origin = Origin {
            bootstrap: "oci".into(),
            from: "/tmp/a\n%post\nrm".into(),
            manifest: None,
        };
        assert_eq!(
            origin.deffile(),
            "bootstrap: oci\nfrom: /tmp/a?%post?rm\n\n"
        );
    }

    #[test]
    fn an_argument_that_no_program_can_get_is_an_error() {
        let config = Config {
            cmd: vec!["a\0b".into()],
            ..Config::default()
        };
        let origin = Origin {
            bootstrap: "docker".into(),
            from: "x".into(),
            manifest: None,
        };
        assert!(Texts::new(&config, &origin).is_err());
    }
}

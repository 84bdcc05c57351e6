//! What a SIF says of itself, as `apptainer inspect` prints it: scripts, variables, labels, and the same for its apps.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sifon_mount::reference::Reference;

use crate::output::{as_go_writes, plain};
use crate::pack::sif::{ObjectKind, Sif, SifError};
use crate::pack::singularity::{Config, Origin, Texts};
use crate::pack::texts;
use crate::setting::{Context, Error, parsed};

/// The object of a SIF that has the metadata.
const OBJECT: &str = "inspect-metadata.json";

/// More than scripts and labels take.
const METADATA_BYTES_LIMIT: u64 = 16 << 20;

/// Which of Apptainer's sections to print.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(multiple = true)]
pub(super) struct Sections {
    /// The labels
    #[arg(short, long)]
    labels: bool,
    /// The definition file
    #[arg(short, long)]
    deffile: bool,
    /// The script that `run` starts
    #[arg(short, long)]
    runscript: bool,
    /// The script that `instance start` starts
    #[arg(short, long)]
    startscript: bool,
    /// The script that tests the image
    #[arg(short, long)]
    test: bool,
    /// The scripts that set variables
    #[arg(short, long)]
    environment: bool,
    /// The help
    #[arg(short = 'H', long)]
    helpfile: bool,
    /// The names of all apps
    #[arg(long)]
    list_apps: bool,
    /// The sections of this app instead of the image's
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// All sections and apps, as JSON
    #[arg(long)]
    all: bool,
}

impl Sections {
    /// Whether the user asked for what Apptainer prints.
    pub(super) fn are_asked(&self) -> bool {
        self.labels || self.all || self.app.is_some() || !self.are_labels_the_default()
    }

    fn are_labels_the_default(&self) -> bool {
        !(self.deffile
            || self.runscript
            || self.startscript
            || self.test
            || self.environment
            || self.helpfile
            || self.list_apps)
    }
}

pub(super) type Texted = BTreeMap<String, String>;

/// The metadata of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    data: Data,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Data {
    attributes: Attributes,
}

/// Its fields come in Apptainer's order, and those that are empty do not come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Attributes {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) apps: BTreeMap<String, App>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) environment: Texted,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: Texted,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) runscript: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) test: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) helpfile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) deffile: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) startscript: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct App {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) environment: Texted,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: Texted,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) runscript: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) test: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) helpfile: String,
}

/// What `image` says of itself in Singularity's way: always if it is a SIF, else if `is_asked`.
pub(super) fn of(
    context: &Context,
    image: &OsStr,
    is_asked: bool,
) -> Result<Option<Metadata>, Error> {
    let reference = parsed(image)?;
    if let Reference::File(path) = &reference
        && let Some(sif) = SifFile::open(path)?
        && let Some(metadata) = sif.metadata()?
    {
        return Ok(Some(metadata));
    }
    if !is_asked {
        return Ok(None);
    }
    let origin = Origin::of(&reference.to_string());
    let texts = if let Reference::File(_) = &reference {
        // Its own scripts are in its files.
        let opened = context.open(&reference)?;
        let timeout = context.settings.open.registry.timeout;
        texts(&opened.image, &opened.description.config, &origin, timeout)?
    } else {
        let (description, _) = context.outlook(&reference)?;
        Texts::new(&Config::of(&description.config)?, &origin)?
    };
    Ok(Some(Metadata::of(&texts)?))
}

/// A SIF that is a file here.
struct SifFile {
    file: File,
    sif: Sif,
    path: String,
}

impl SifFile {
    /// `None` if the file does not begin like a SIF; that it cannot be read is for others to say.
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        let Ok(file) = File::open(path) else {
            return Ok(None);
        };
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Ok(None);
        }
        let path = path.display().to_string();
        match Sif::open(&file) {
            Ok(sif) => Ok(Some(Self { file, sif, path })),
            Err(SifError::NotSif(_)) => Ok(None),
            Err(err) => Err(format!("{path}: {err}").into()),
        }
    }

    fn metadata(mut self) -> Result<Option<Metadata>, Error> {
        let Some(object) = self.sif.named(ObjectKind::GenericJson, OBJECT) else {
            return Ok(None);
        };
        let wrong = |problem: &dyn std::fmt::Display| -> Error {
            format!("{}, object {} ({OBJECT}): {problem}", self.path, object.id).into()
        };
        if object.len > METADATA_BYTES_LIMIT {
            return Err(wrong(&"larger than 16 MiB"));
        }
        self.file.seek(SeekFrom::Start(object.at))?;
        let mut bytes = Vec::new();
        (&self.file).take(object.len).read_to_end(&mut bytes)?;
        let metadata = serde_json::from_slice(&bytes).map_err(|err| wrong(&err))?;
        Ok(Some(metadata))
    }
}

impl From<Attributes> for Metadata {
    fn from(attributes: Attributes) -> Self {
        Self {
            data: Data { attributes },
            kind: "container".into(),
        }
    }
}

impl Metadata {
    fn of(texts: &Texts) -> Result<Self, Error> {
        Ok(serde_json::from_slice(&texts.inspect_metadata())?)
    }

    /// What Apptainer prints when it is asked for `sections`.
    pub(super) fn answer(self, sections: &Sections, is_json: bool) -> String {
        let app = sections.app.clone().filter(|_| !sections.all);
        let shown = self.asked(sections, app.as_deref());
        match is_json || sections.all {
            true => shown.json(),
            false => shown.text(sections.list_apps, app.as_deref()),
        }
    }

    /// Only what was asked for.
    fn asked(self, sections: &Sections, app: Option<&str>) -> Self {
        let all = self.data.attributes;
        let is_wanted = |flag: bool| flag || sections.all;
        let labels = is_wanted(sections.labels || sections.are_labels_the_default());
        let mut shown = Attributes::default();
        if sections.list_apps || sections.all {
            shown.apps = all.apps;
        } else if let Some(name) = app
            && let Some(found) = all.apps.get(name)
        {
            let texts = |flag, texts: &Texted| match is_wanted(flag) {
                true => texts.clone(),
                false => Texted::new(),
            };
            let text = |flag, text: &String| match is_wanted(flag) {
                true => text.clone(),
                false => String::new(),
            };
            let app = App {
                environment: texts(sections.environment, &found.environment),
                labels: texts(labels, &found.labels),
                runscript: text(sections.runscript, &found.runscript),
                test: text(sections.test, &found.test),
                helpfile: text(sections.helpfile, &found.helpfile),
            };
            shown.apps.insert(name.to_owned(), app);
        }
        if is_wanted(sections.deffile) {
            shown.deffile = all.deffile;
        }
        if app.is_none() {
            let take = |flag, text: String| match is_wanted(flag) {
                true => text,
                false => String::new(),
            };
            shown.runscript = take(sections.runscript, all.runscript);
            shown.startscript = take(sections.startscript, all.startscript);
            shown.test = take(sections.test, all.test);
            shown.helpfile = take(sections.helpfile, all.helpfile);
            if is_wanted(sections.environment) {
                shown.environment = all.environment;
            }
            if labels {
                shown.labels = all.labels;
            }
        }
        Self {
            data: Data { attributes: shown },
            kind: "container".into(),
        }
    }

    /// As Go writes JSON, with tabs.
    fn json(&self) -> String {
        let mut bytes = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, tabs);
        self.serialize(&mut serializer)
            .expect("texts by name are JSON, and memory takes it");
        let json = String::from_utf8(bytes).expect("JSON is UTF-8");
        as_go_writes(&json) + "\n"
    }

    fn text(&self, lists_apps: bool, app: Option<&str>) -> String {
        let all = &self.data.attributes;
        let nothing = App::default();
        let app = app.and_then(|name| all.apps.get(name)).unwrap_or(&nothing);
        let mut text = String::new();
        let mut line = |line: &str| writeln!(text, "{line}").expect("a string takes everything");
        if lists_apps {
            all.apps.keys().for_each(|name| line(name));
        }
        let either = |one: &'_ String, other: &'_ String| match one.is_empty() {
            true => other.clone(),
            false => one.clone(),
        };
        for section in [
            all.deffile.clone(),
            either(&all.runscript, &app.runscript),
            all.startscript.clone(),
            either(&all.test, &app.test),
            either(&all.helpfile, &app.helpfile),
        ] {
            if !section.is_empty() {
                line(&section);
            }
        }
        let either = |one, other| match BTreeMap::is_empty(one) {
            true => other,
            false => one,
        };
        for (path, script) in either(&all.environment, &app.environment) {
            line(&format!("=== {path} ===\n{script}\n"));
        }
        for (name, value) in either(&all.labels, &app.labels) {
            line(&format!("{name}: {value}"));
        }
        text
    }
}

/// To a terminal without anything that it would obey, elsewhere as it is.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if !stdout.is_terminal() {
        return stdout.write_all(text.as_bytes());
    }
    for line in text.lines() {
        writeln!(
            stdout,
            "{}",
            line.split('\t').map(plain).collect::<Vec<_>>().join("\t")
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"data": {"attributes": {
        "apps": {
            "one": {
                "environment": {"/scif/apps/one/scif/env/90-environment.sh": "  export ONE=1"},
                "labels": {"X": "y"}, "runscript": "app one", "helpfile": "help of one"
            },
            "two": {"test": "t"}
        },
        "environment": {"/.singularity.d/env/90-environment.sh": "export A=1"},
        "labels": {"b": "<2>", "a": "1"},
        "runscript": "run", "test": "tested", "deffile": "bootstrap: x", "startscript": "start"
    }}, "type": "container"}"#;

    fn answer(words: &[&str]) -> String {
        use clap::Parser;

        #[derive(Parser)]
        struct Command {
            #[command(flatten)]
            sections: Sections,
            #[arg(short, long)]
            json: bool,
        }
        let command = Command::parse_from([&["inspect"], words].concat());
        let metadata: Metadata = serde_json::from_str(METADATA).unwrap();
        metadata.answer(&command.sections, command.json)
    }

    #[test]
    fn sections_come_in_apptainers_order_and_labels_without_being_asked_for() {
        let labels = "a: 1\nb: <2>\n";
        let environment = "=== /.singularity.d/env/90-environment.sh ===\nexport A=1\n\n";
        let of_one = "=== /scif/apps/one/scif/env/90-environment.sh ===\n  export ONE=1\n\n";
        for (words, text) in [
            (&[][..], labels.to_owned()),
            (&["-l"], labels.to_owned()),
            (&["-d"], "bootstrap: x\n".to_owned()),
            (&["-r"], "run\n".to_owned()),
            (&["-s"], "start\n".to_owned()),
            (&["-H"], String::new()),
            (&["-e"], environment.to_owned()),
            (
                &["-l", "-e", "-t", "-s"],
                format!("start\ntested\n{environment}{labels}"),
            ),
            (&["--list-apps"], "one\ntwo\n".to_owned()),
            (&["--app", "one"], "X: y\n".to_owned()),
            (&["--app", "one", "-e", "-r"], format!("app one\n{of_one}")),
            (&["--app", "one", "-H", "-s"], "help of one\n".to_owned()),
            (&["--app", "no", "-r"], String::new()),
        ] {
            assert_eq!(answer(words), text, "{words:?}");
        }
    }

    #[test]
    fn json_is_written_as_go_writes_it() {
        let labels = "{\n\t\"data\": {\n\t\t\"attributes\": {\n\t\t\t\"labels\": {\n\t\t\t\t\"a\": \"1\",\n\t\t\t\t\
                      \"b\": \"\\u003c2\\u003e\"\n\t\t\t}\n\t\t}\n\t},\n\t\"type\": \"container\"\n}\n";
        assert_eq!(answer(&["-j"]), labels);
        let nothing =
            "{\n\t\"data\": {\n\t\t\"attributes\": {}\n\t},\n\t\"type\": \"container\"\n}\n";
        assert_eq!(answer(&["-j", "-H"]), nothing);
        let all: Metadata = serde_json::from_str(&answer(&["--all", "--app", "one"])).unwrap();
        assert_eq!(all, serde_json::from_str(METADATA).unwrap());
    }
}

//! The program's environment: the image's, the host's and the user's, as Singularity joins them.
//!
//! `--env` wins over `SIFONENV_`, `APPTAINERENV_`, `SINGULARITYENV_` (in that order), these over the
//! image, the image over the host. No shell is involved: `$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}` in the user's
//! values stand for the container's variables, other shell syntax for itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

pub use super::variables::Variables;
use super::variables::{Map, expanded, is_name};

/// Searched for programs after the image's own PATH, or without one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where libraries of the host are shown to the program.
const HOST_LIBRARIES: &[u8] = b"/.singularity.d/libs";

/// Host variables with these names never reach the program as they are.
const NEVER_FROM_HOST: [&[u8]; 10] = [
    b"HOME",
    b"PATH",
    b"LD_LIBRARY_PATH",
    b"APPTAINER_SHELL",
    b"SINGULARITY_SHELL",
    b"APPTAINER_APPNAME",
    b"SINGULARITY_APPNAME",
    // A password for the registry is none of the image's business.
    b"SIFON_DOCKER_PASSWORD",
    b"APPTAINER_DOCKER_PASSWORD",
    b"SINGULARITY_DOCKER_PASSWORD",
];

/// Host variables that `--cleanenv` lets through.
const ALWAYS_FROM_HOST: [&[u8]; 11] = [
    b"TERM",
    b"http_proxy",
    b"HTTP_PROXY",
    b"https_proxy",
    b"HTTPS_PROXY",
    b"no_proxy",
    b"NO_PROXY",
    b"all_proxy",
    b"ALL_PROXY",
    b"ftp_proxy",
    b"FTP_PROXY",
];

/// Prefixes of host variables that are meant for the program, weakest first.
const PREFIXES: [&[u8]; 3] = [b"SINGULARITYENV_", b"APPTAINERENV_", b"SIFONENV_"];

/// What an environment is made from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The caller's own variables.
    pub host: Variables,
    /// `Env` of the image's configuration.
    pub image: Variables,
    /// `--env`, in order.
    pub asked: Variables,
    /// `--cleanenv`: nearly nothing from the host.
    pub is_clean: bool,
    /// `--no-eval`: values are taken as they are.
    pub is_literal: bool,
    /// The home directory in the container; cannot be overridden.
    pub home: Option<Vec<u8>>,
    /// Name of the image, without a path.
    pub name: Vec<u8>,
    /// The image as the user named it, a file by its absolute path.
    pub container: Vec<u8>,
    /// The user's bind mounts, joined by commas.
    pub bind: Vec<u8>,
    /// The verb: `exec`.
    pub command: Vec<u8>,
    /// `--app`: an app of the image.
    pub app: Option<OsString>,
    /// Name of the instance that the program joins.
    pub instance: Option<Vec<u8>>,
    /// Who the program is inside, for `$UID` and `$GID` in values; the shell inside Apptainer knows these.
    pub ids: (u32, u32),
}

/// The environment that the program gets.
pub fn variables(sources: &Sources) -> Variables {
    let mut variables = of_image(&sources.image);
    if sources.is_clean {
        variables.insert(b"LANG".to_vec(), b"C".to_vec());
    }
    set(&mut variables, b"HOME", sources.home.clone());
    let prompt = variables.entry(b"PS1".to_vec());
    prompt.or_insert_with(|| b"Apptainer> ".to_vec());
    add_asked(&mut variables, sources);
    add_host(&mut variables, sources);
    add_libraries(&mut variables);
    add_facts(&mut variables, sources);
    set(&mut variables, b"HOME", sources.home.clone());
    variables.into_iter().collect()
}

fn set(variables: &mut Map, name: &[u8], value: Option<Vec<u8>>) {
    if let Some(value) = value {
        variables.insert(name.to_vec(), value);
    }
}

/// The image's variables, with the default directories at the end of its PATH.
fn of_image(image: &Variables) -> Map {
    let mut variables: Map = image
        .iter()
        .filter(|(name, _)| is_name(name))
        .cloned()
        .collect();
    let path = variables.entry(b"PATH".to_vec()).or_default();
    for directory in DEFAULT_PATH.as_bytes().split(|&byte| byte == b':') {
        if !path
            .split(|&byte| byte == b':')
            .any(|known| known == directory)
        {
            append(path, directory);
        }
    }
    variables
}

/// The user's own values, and the three ways to say PATH.
fn add_asked(variables: &mut Map, sources: &Sources) {
    let mut asked: Map = Map::new();
    for prefix in PREFIXES {
        for (name, value) in &sources.host {
            if let Some(name) = name.strip_prefix(prefix).filter(|name| is_name(name)) {
                asked.insert(name.to_vec(), value.clone());
            }
        }
    }
    asked.extend(
        sources
            .asked
            .iter()
            .filter(|(name, _)| is_name(name))
            .cloned(),
    );
    // A PATH of the user's is the whole of it.
    let has_path = asked.contains_key(&b"PATH"[..]);
    let prepended = asked.remove(&b"PREPEND_PATH"[..]).filter(|_| !has_path);
    let appended = asked.remove(&b"APPEND_PATH"[..]).filter(|_| !has_path);
    let known = with_ids(variables, sources.ids);
    let expanded: Map = asked
        .into_iter()
        .map(|(name, value)| match sources.is_literal {
            true => (name, value),
            false => {
                let value = expanded(&value, &known);
                (name, value)
            }
        })
        .collect();
    variables.extend(expanded);
    let mut path = variables.remove(&b"PATH"[..]).unwrap_or_default();
    if let Some(first) = prepended {
        let mut joined = expanded_once(&first, variables, &path);
        append(&mut joined, &path);
        path = joined;
    }
    if let Some(last) = appended {
        let last = expanded_once(&last, variables, &path);
        append(&mut path, &last);
    }
    variables.insert(b"PATH".to_vec(), path);
}

/// The host's variables that nobody above has set. One that was set to nothing goes away.
fn add_host(variables: &mut Map, sources: &Sources) {
    for (name, value) in &sources.host {
        if NEVER_FROM_HOST.contains(&name.as_slice())
            || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || (sources.is_clean && !ALWAYS_FROM_HOST.contains(&name.as_slice()))
        {
            continue;
        }
        match variables.get(name) {
            None => {
                variables.insert(name.clone(), value.clone());
            }
            Some(empty) if empty.is_empty() => {
                variables.remove(name);
            }
            Some(_) => {}
        }
    }
    let host_path = sources.host.iter().find(|(name, _)| name == b"PATH");
    if let Some((_, path)) = host_path.filter(|_| !sources.is_clean) {
        variables.insert(b"USER_PATH".to_vec(), path.clone());
    }
}

fn add_libraries(variables: &mut Map) {
    let directories = variables.entry(b"LD_LIBRARY_PATH".to_vec()).or_default();
    if !directories
        .split(|&byte| byte == b':')
        .any(|known| known == HOST_LIBRARIES)
    {
        append(directories, HOST_LIBRARIES);
    }
}

/// What scripts test for to know that they run in a container, and in which.
fn add_facts(variables: &mut Map, sources: &Sources) {
    let app = sources.app.as_deref().unwrap_or_default().as_bytes();
    for prefix in ["APPTAINER", "SINGULARITY"] {
        for (suffix, value) in [
            ("NAME", sources.name.as_slice()),
            ("CONTAINER", &sources.container),
            ("BIND", &sources.bind),
            ("COMMAND", &sources.command),
            ("ENVIRONMENT", b"/.singularity.d/env/91-environment.sh"),
            ("APPNAME", app),
        ] {
            variables.insert(format!("{prefix}_{suffix}").into_bytes(), value.to_vec());
        }
    }
    for prefix in ["APPTAINER", "SINGULARITY"] {
        if sources.is_literal {
            // A runscript asks for it.
            variables.insert(format!("{prefix}_NO_EVAL").into_bytes(), b"1".to_vec());
        }
        if let Some(name) = &sources.instance {
            variables.insert(format!("{prefix}_INSTANCE").into_bytes(), name.clone());
        }
    }
}

/// Adds one more directory to a list separated by colons.
fn append(list: &mut Vec<u8>, directory: &[u8]) {
    if directory.is_empty() {
        return;
    }
    if !list.is_empty() {
        list.push(b':');
    }
    list.extend_from_slice(directory);
}

/// The variables of the container with those that only shells have.
fn with_ids(variables: &Map, (uid, gid): (u32, u32)) -> Map {
    let mut known = variables.clone();
    for (name, id) in [("UID", uid), ("GID", gid)] {
        let own = known.entry(name.into());
        own.or_insert_with(|| id.to_string().into_bytes());
    }
    known
}

fn expanded_once(value: &[u8], variables: &Map, path: &[u8]) -> Vec<u8> {
    let mut variables = variables.clone();
    variables.insert(b"PATH".to_vec(), path.to_vec());
    expanded(value, &variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect()
    }

    fn got(sources: &Sources, name: &str) -> Option<String> {
        variables(sources)
            .into_iter()
            .find(|(known, _)| known == name.as_bytes())
            .map(|(_, value)| String::from_utf8(value).unwrap())
    }

    #[test]
    fn the_users_value_wins_over_the_image_and_the_image_over_the_host() {
        let host = [("A", "host"), ("B", "host"), ("C", "host"), ("D", "host")];
        let prefixed = [
            ("SINGULARITYENV_C", "singularity"),
            ("SINGULARITYENV_D", "singularity"),
            ("APPTAINERENV_D", "apptainer"),
            ("APPTAINERENV_E", "apptainer"),
            ("SIFONENV_E", "sifon"),
            ("SIFONENV_F", "sifon"),
        ];
        let sources = Sources {
            host: list(&[&host[..], &prefixed[..]].concat()),
            image: list(&[("B", "image"), ("C", "image"), ("F", "image")]),
            asked: list(&[("F", "asked")]),
            ..Sources::default()
        };
        for (name, expected) in [
            ("A", "host"),
            ("B", "image"),
            ("C", "singularity"),
            ("D", "apptainer"),
            ("E", "sifon"),
            ("F", "asked"),
        ] {
            assert_eq!(got(&sources, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(got(&sources, "APPTAINERENV_E"), None);
    }

    #[test]
    fn the_search_paths_are_the_images_and_never_the_hosts() {
        let host = list(&[
            ("PATH", "/host/bin"),
            ("LD_LIBRARY_PATH", "/host/lib"),
            ("HOME", "/h"),
            ("APPTAINER_DOCKER_PASSWORD", "secret"),
        ]);
        let bare = Sources {
            host: host.clone(),
            ..Sources::default()
        };
        assert_eq!(got(&bare, "PATH").as_deref(), Some(DEFAULT_PATH));
        assert_eq!(got(&bare, "USER_PATH").as_deref(), Some("/host/bin"));
        assert_eq!(
            got(&bare, "LD_LIBRARY_PATH").as_deref(),
            Some("/.singularity.d/libs")
        );
        assert_eq!(got(&bare, "HOME"), None);
        assert_eq!(got(&bare, "APPTAINER_DOCKER_PASSWORD"), None);
        let image = list(&[
            ("PATH", "/opt/bin:/usr/bin"),
            ("LD_LIBRARY_PATH", "/opt/lib"),
        ]);
        let sources = Sources {
            host,
            image,
            ..Sources::default()
        };
        let path = "/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin";
        assert_eq!(got(&sources, "PATH").as_deref(), Some(path));
        let libraries = "/opt/lib:/.singularity.d/libs";
        assert_eq!(got(&sources, "LD_LIBRARY_PATH").as_deref(), Some(libraries));
    }

    #[test]
    fn values_stay_as_they_are_where_nothing_is_to_be_evaluated() {
        let sources = Sources {
            asked: list(&[("A", "$HOME \\$")]),
            is_literal: true,
            ..Sources::default()
        };
        assert_eq!(got(&sources, "A").as_deref(), Some("$HOME \\$"));
    }

    #[test]
    fn path_can_be_replaced_prepended_and_appended_to() {
        let image = list(&[("PATH", "/i")]);
        let with = |asked: &[(&str, &str)]| {
            got(
                &Sources {
                    image: image.clone(),
                    asked: list(asked),
                    ..Sources::default()
                },
                "PATH",
            )
            .unwrap()
        };
        assert_eq!(with(&[("PATH", "/only")]), "/only");
        assert_eq!(
            with(&[("PATH", "/x:$PATH")]),
            format!("/x:/i:{DEFAULT_PATH}")
        );
        assert_eq!(
            with(&[("PREPEND_PATH", "/p")]),
            format!("/p:/i:{DEFAULT_PATH}")
        );
        assert_eq!(
            with(&[("APPEND_PATH", "/a")]),
            format!("/i:{DEFAULT_PATH}:/a")
        );
    }

    #[test]
    fn home_is_the_callers_whatever_anyone_asks() {
        let sources = Sources {
            host: list(&[("HOME", "/host"), ("SIFONENV_HOME", "/x")]),
            image: list(&[("HOME", "/image")]),
            asked: list(&[("HOME", "/asked"), ("IN_HOME", "$HOME/data")]),
            home: Some(b"/home/ada".to_vec()),
            ..Sources::default()
        };
        assert_eq!(got(&sources, "HOME").as_deref(), Some("/home/ada"));
        assert_eq!(got(&sources, "IN_HOME").as_deref(), Some("/home/ada/data"));
    }

    #[test]
    fn a_clean_environment_keeps_the_terminal_and_the_proxies_only() {
        let sources = Sources {
            host: list(&[
                ("TERM", "xterm"),
                ("http_proxy", "p"),
                ("SLURM_JOB_ID", "7"),
                ("LANG", "de_DE.UTF-8"),
                ("APPTAINERENV_X", "x"),
            ]),
            is_clean: true,
            ..Sources::default()
        };
        for (name, expected) in [
            ("TERM", Some("xterm")),
            ("http_proxy", Some("p")),
            ("SLURM_JOB_ID", None),
            ("LANG", Some("C")),
            ("X", Some("x")),
        ] {
            assert_eq!(got(&sources, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_variable_that_the_image_left_empty_hides_the_hosts() {
        let sources = Sources {
            host: list(&[("A", "host")]),
            image: list(&[("A", ""), ("B", "")]),
            ..Sources::default()
        };
        assert_eq!(got(&sources, "A"), None);
        assert_eq!(got(&sources, "B").as_deref(), Some(""));
    }

    #[test]
    fn functions_of_bash_and_values_of_several_lines_survive() {
        let sources = Sources {
            host: list(&[("BASH_FUNC_ml%%", "() {  eval\n}"), ("TWO", "a\nb $HOME")]),
            ..Sources::default()
        };
        assert_eq!(
            got(&sources, "BASH_FUNC_ml%%").as_deref(),
            Some("() {  eval\n}")
        );
        assert_eq!(got(&sources, "TWO").as_deref(), Some("a\nb $HOME"));
    }

    #[test]
    fn names_in_the_users_values_stand_for_the_containers_variables() {
        let variables: Map = list(&[("A", "1"), ("_b2", "2")]).into_iter().collect();
        for (value, expected) in [
            ("", ""),
            ("$A", "1"),
            ("${A}x$_b2", "1x2"),
            ("$A-${_b2}-$none", "1-2-"),
            (r"\$A", "$A"),
            (r"a\b", r"a\b"),
            ("$", "$"),
            ("$1", "$1"),
            ("${A", "${A"),
            ("${A:-x}${none:-y}", "1y"),
            ("${A:+$_b2}${none:+y}", "2"),
            ("${A:-${none}}", "${A:-}"),
            ("${A#x}", "${A#x}"),
            (r"a\\b\`c", r"a\b`c"),
            ("$(id)", "$(id)"),
            ("`id`", "`id`"),
        ] {
            assert_eq!(
                expanded(value.as_bytes(), &variables),
                expected.as_bytes(),
                "{value}"
            );
        }
    }

    #[test]
    fn scripts_find_the_variables_that_they_test_for() {
        let sources = Sources {
            name: b"py.sif".to_vec(),
            container: b"/data/py.sif".to_vec(),
            command: b"exec".to_vec(),
            host: list(&[("APPTAINER_NAME", "outer")]),
            ..Sources::default()
        };
        for prefix in ["APPTAINER", "SINGULARITY"] {
            assert_eq!(
                got(&sources, &format!("{prefix}_NAME")).as_deref(),
                Some("py.sif")
            );
            assert_eq!(
                got(&sources, &format!("{prefix}_CONTAINER")).as_deref(),
                Some("/data/py.sif")
            );
            assert_eq!(
                got(&sources, &format!("{prefix}_COMMAND")).as_deref(),
                Some("exec")
            );
            assert_eq!(
                got(&sources, &format!("{prefix}_BIND")).as_deref(),
                Some("")
            );
        }
    }
}

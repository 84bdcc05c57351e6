//! The scripts that Singularity looks for in a root file system, and how values are quoted in them.
//!
//! They are read by dash, by busybox, and by the shell inside Apptainer (mvdan.cc/sh), so they use what POSIX has;
//! they start no other program, because an image may have none.

use std::fmt::Write as _;

/// `text` as one word that no shell looks into.
pub fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

/// `text` as one word of a line that is going to be evaluated, in which nothing is expanded.
fn evaluated_as_itself(text: &str) -> String {
    let mut word = String::with_capacity(text.len() + 2);
    word.push('"');
    for character in text.chars() {
        if matches!(character, '\\' | '"' | '`' | '$') {
            word.push('\\');
        }
        word.push(character);
    }
    word.push('"');
    word
}

fn joined(words: &[String], quoted: impl Fn(&str) -> String) -> String {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

/// `.singularity.d/runscript`: what `run` starts.
///
/// ENTRYPOINT stands before the arguments, CMD in place of missing ones. As Singularity always did, the arguments
/// are evaluated once more by a shell, unless `SINGULARITY_NO_EVAL` is set. Apptainer recognises the line with
/// `eval` and then interprets the script itself, so that images without a shell run too; that line must stand
/// exactly so.
pub fn runscript(entrypoint: &[String], cmd: &[String]) -> String {
    let mut script = String::from("#!/bin/sh\n# Starts ENTRYPOINT and CMD of the image.\n");
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(script, "{text}").expect("a String takes everything");
    };
    let evaluated = |words| single_quoted(&joined(words, evaluated_as_itself));
    line(format_args!("OCI_ENTRYPOINT={}", evaluated(entrypoint)));
    line(format_args!("OCI_CMD={}", evaluated(cmd)));
    if entrypoint.is_empty() && cmd.is_empty() {
        line(format_args!("{NOTHING_TO_RUN}"));
    }
    line(format_args!(
        "if [ -n \"${{SINGULARITY_NO_EVAL:-}}\" ]; then"
    ));
    if !cmd.is_empty() {
        let words = joined(cmd, single_quoted);
        line(format_args!("    if [ $# -eq 0 ]; then set -- {words}; fi"));
    }
    if !entrypoint.is_empty() {
        let words = joined(entrypoint, single_quoted);
        line(format_args!("    set -- {words} \"$@\""));
    }
    line(format_args!("    exec \"$@\"\nfi"));
    line(format_args!("{EVALUATION}"));
    script
}

const NOTHING_TO_RUN: &str = r#"if [ $# -eq 0 ]; then
    echo "this image has neither ENTRYPOINT nor CMD: say what to run" >&2
    exit 0
fi"#;

/// `--` keeps a first word that begins with a dash from being an option of `set`.
const EVALUATION: &str = r#"SINGULARITY_OCI_RUN="-- $OCI_ENTRYPOINT"
if [ $# -eq 0 ]; then
    SINGULARITY_OCI_RUN="$SINGULARITY_OCI_RUN $OCI_CMD"
fi
for argument in "$@"; do
    SINGULARITY_OCI_RUN="$SINGULARITY_OCI_RUN \"$argument\""
done
eval "set ${SINGULARITY_OCI_RUN}"
exec "$@""#;

/// `.singularity.d/env/10-docker2singularity.sh`: the image's environment. A variable that is already set, and not
/// empty, stays; only `PATH` is always the image's. Names that no shell takes, and values with a zero byte, which no
/// environment can hold, are left out.
pub fn environment(variables: &[String]) -> String {
    let mut script = String::from("#!/bin/sh\n");
    for variable in variables {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(single_quoted(value))),
            None => (variable.as_str(), None),
        };
        if !is_name(name) || variable.contains('\0') {
            continue;
        }
        match value {
            Some(value) if name == "PATH" => writeln!(script, "export PATH={value}"),
            Some(value) => writeln!(
                script,
                "if [ -z \"${{{name}:-}}\" ]; then {name}={value}; fi\nexport {name}"
            ),
            None => writeln!(script, "export {name}=\"${{{name}:-}}\""),
        }
        .expect("a String takes everything");
    }
    script
}

/// Whether a shell takes it as the name of a variable.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// `.singularity.d/startscript`: what an instance starts; a registry image names nothing for that.
pub const STARTSCRIPT: &str = "#!/bin/sh\n# This image defines nothing that an instance starts.\n";

/// `.singularity.d/env/01-base.sh`.
pub const ENV_BASE: &str = "#!/bin/sh\n# First of the scripts that set up the environment.\n";

/// `.singularity.d/env/90-environment.sh`, also `/environment`.
pub const ENV_OWN: &str = "#!/bin/sh\n# Place for variables of this container's own.\n";

/// `.singularity.d/env/94-appsbase.sh`.
pub const ENV_APPS_BASE: &str = "";

/// `.singularity.d/env/95-apps.sh`: `--app NAME` of the Scientific Filesystem.
pub const ENV_APPS: &str = r#"#!/bin/sh
# Environment of the application that --app chose.
app=${APPTAINER_APPNAME:-${SINGULARITY_APPNAME:-}}
if [ -n "$app" ] && [ -d "/scif/apps/$app" ]; then
    SCIF_APPNAME=$app
    SCIF_APPROOT=/scif/apps/$app
    export SCIF_APPNAME SCIF_APPROOT
    PATH=$SCIF_APPROOT/bin:$PATH
    LD_LIBRARY_PATH=$SCIF_APPROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export PATH LD_LIBRARY_PATH
    for script in "$SCIF_APPROOT/scif/env/"*.sh; do
        if [ -f "$script" ]; then . "$script"; fi
    done
fi
unset app
"#;

/// `.singularity.d/env/99-base.sh`: libraries of the host, such as the graphics driver's, are found last.
pub const ENV_LAST: &str = r#"#!/bin/sh
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs
PS1="Apptainer> "
export LD_LIBRARY_PATH PS1
"#;

/// `.singularity.d/env/99-runtimevars.sh`: Apptainer puts its own in its place.
pub const ENV_RUNTIME: &str = r#"#!/bin/sh
# What the user asked for at run time.
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PREPEND_PATH:$PATH; fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then PATH=$PATH:$SING_USER_DEFINED_APPEND_PATH; fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then PATH=$SING_USER_DEFINED_PATH; fi
export PATH
"#;

/// `.singularity.d/actions/`, also `/.exec` and others: what very old programs start. Newer ones have their own.
pub const ACTIONS: [(&str, &str); 5] = [
    ("exec", r#"exec "$@""#),
    ("run", r#"exec /.singularity.d/runscript "$@""#),
    (
        "shell",
        r#"if [ -x /bin/bash ]; then exec /bin/bash --norc "$@"; fi
exec /bin/sh "$@""#,
    ),
    ("start", r#"exec /.singularity.d/startscript "$@""#),
    (
        "test",
        r#"if [ -x /.singularity.d/test ]; then exec /.singularity.d/test "$@"; fi
echo "this container has no test" >&2"#,
    ),
];

/// An action: the environment is set up, then `last` follows.
pub fn action(last: &str) -> String {
    format!(
        r#"#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    if [ -f "$script" ]; then . "$script"; fi
done
{last}
"#
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// The shells that scripts have to get along with, as far as this machine has them.
    fn shells() -> Vec<Vec<&'static str>> {
        let mut shells = vec![vec!["/bin/sh"]];
        for (path, argument) in [
            ("/bin/bash", "--posix"),
            ("/bin/busybox", "sh"),
            ("/usr/bin/busybox", "sh"),
        ] {
            if std::path::Path::new(path).exists() {
                shells.push(vec![path, argument]);
            }
        }
        shells
    }

    fn run_in(shell: &[&str], script: &str, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(script.as_bytes()).unwrap();
        Command::new(shell[0])
            .args(&shell[1..])
            .arg(file.path())
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    const NASTY: [&str; 9] = [
        "$HOME `id` $(id)",
        "it's \"quoted\"",
        "back\\slash\\\\ and \\n",
        "two\nlines\n\nand more",
        "",
        " spaces  inside ",
        "*?[a]~#;&|<>(){}!%",
        "-e",
        "ünïcödé ☃",
    ];

    /// `ENTRYPOINT`, `CMD`, arguments and what is run, each word in brackets.
    #[test]
    fn run_joins_entrypoint_command_and_arguments_as_docker_does() {
        let print = ["printf", "[%s]"];
        for (entrypoint, cmd, args, expected) in [
            (&print[..], &[][..], &[][..], "[]"),
            (&print, &[], &["a b", "c"], "[a b][c]"),
            (&[], &["printf", "[%s]", "cmd"], &[], "[cmd]"),
            (&[], &["false"], &["printf", "[%s]", "arg"], "[arg]"),
            (&print, &["c d"], &[], "[c d]"),
            (&print, &["c d"], &["a", ""], "[a][]"),
            (&[], &[], &["printf", "[%s]", "arg"], "[arg]"),
        ] {
            let script = runscript(&words(entrypoint), &words(cmd));
            for shell in shells() {
                for exact in ["", "1"] {
                    let variables = [("SINGULARITY_NO_EVAL", exact)];
                    let output = run_in(&shell, &script, &variables, args);
                    let text = String::from_utf8_lossy(&output.stdout);
                    assert_eq!(text, expected, "{shell:?} {script} {args:?} {output:?}");
                    assert!(output.status.success());
                }
            }
        }
    }

    #[test]
    fn words_of_the_image_arrive_as_they_are() {
        let mut entrypoint = words(&["printf", "[%s]"]);
        entrypoint.extend(words(&NASTY));
        let expected: String = NASTY.iter().map(|word| format!("[{word}]")).collect();
        for (entrypoint, cmd) in [
            (entrypoint.clone(), vec![]),
            (vec![], entrypoint.clone()),
            (words(&["printf", "[%s]"]), words(&NASTY)),
        ] {
            let script = runscript(&entrypoint, &cmd);
            for shell in shells() {
                for exact in ["", "1"] {
                    let output = run_in(&shell, &script, &[("SINGULARITY_NO_EVAL", exact)], &[]);
                    assert_eq!(
                        String::from_utf8_lossy(&output.stdout),
                        expected,
                        "{shell:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn arguments_are_evaluated_once_more_unless_that_is_switched_off() {
        let script = runscript(&words(&["printf", "[%s]"]), &[]);
        let args = ["$WHO", "`echo a b`", "a  b"];
        for shell in shells() {
            let output = run_in(&shell, &script, &[("WHO", "me")], &args);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "[me][a b][a  b]");
            let exact = [("WHO", "me"), ("SINGULARITY_NO_EVAL", "1")];
            let output = run_in(&shell, &script, &exact, &NASTY);
            let expected: String = NASTY.iter().map(|word| format!("[{word}]")).collect();
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }
    }

    #[test]
    fn an_image_that_names_nothing_to_run_says_so_and_succeeds() {
        for shell in shells() {
            for exact in ["", "1"] {
                let variables = [("SINGULARITY_NO_EVAL", exact)];
                let output = run_in(&shell, &runscript(&[], &[]), &variables, &[]);
                assert!(output.status.success() && output.stdout.is_empty());
                assert!(
                    String::from_utf8_lossy(&output.stderr).contains("neither ENTRYPOINT nor CMD")
                );
            }
        }
    }

    /// Apptainer compares whole lines.
    #[test]
    fn the_line_that_apptainer_looks_for_stands_alone() {
        let script = runscript(&words(&["a"]), &[]);
        let tail = "eval \"set ${SINGULARITY_OCI_RUN}\"\nexec \"$@\"\n";
        assert!(script.ends_with(&format!("\n{tail}")));
    }

    #[test]
    fn variables_arrive_as_the_image_has_them() {
        let values: Vec<_> = NASTY.iter().enumerate().collect();
        let variables: Vec<_> = values
            .iter()
            .map(|(at, value)| format!("V{at}={value}"))
            .collect();
        let print: String = values
            .iter()
            .map(|(at, _)| format!("printf '[%s]' \"$V{at}\"\n"))
            .collect();
        let expected: String = NASTY.iter().map(|word| format!("[{word}]")).collect();
        let script = environment(&variables) + &print;
        for shell in shells() {
            let output = run_in(&shell, &script, &[], &[]);
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                expected,
                "{shell:?}"
            );
            assert!(output.stderr.is_empty());
        }
    }

    #[test]
    fn a_variable_that_is_set_and_not_empty_stays() {
        let variables = words(&["A=image", "B=image", "C", "PATH=/image:/usr/bin:/bin"]);
        let print = "printf '%s' \"$A,$B,${C-unset},$PATH\"";
        let script = environment(&variables) + print;
        for shell in shells() {
            let output = run_in(&shell, &script, &[("A", "host"), ("B", "")], &[]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(text, "host,image,,/image:/usr/bin:/bin");
        }
    }

    #[test]
    fn names_that_no_shell_takes_are_left_out() {
        let variables = words(&["A-B=1", "=x", "1A=1", "", "A;id=1", "é=1", "N=\0", "OK_1=1"]);
        let script = "#!/bin/sh\nif [ -z \"${OK_1:-}\" ]; then OK_1='1'; fi\nexport OK_1\n";
        assert_eq!(environment(&variables), script);
    }

    #[test]
    fn every_script_is_understood() {
        let mut scripts = [
            ENV_BASE,
            ENV_OWN,
            ENV_APPS,
            ENV_LAST,
            ENV_RUNTIME,
            STARTSCRIPT,
        ]
        .join("\n");
        for (_, last) in ACTIONS {
            scripts += &format!("if false; then\n{}\nfi\n", action(last));
        }
        scripts += "printf '%s' \"$LD_LIBRARY_PATH\"";
        for shell in shells() {
            let output = run_in(
                &shell,
                &format!("set -eu\n{scripts}"),
                &[("LD_LIBRARY_PATH", "/x")],
                &[],
            );
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "/x:/.singularity.d/libs",
                "{output:?}"
            );
        }
    }
}

//! The runscript of an image that came from a registry, read without a shell.
//!
//! Such a script has ENTRYPOINT and CMD in two lines, quoted for an evaluation, and a line with that evaluation by which Apptainer
//! knows it. What it does is known then, and images without a shell can be run.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The line by which Apptainer knows such a script (`getDockerRunscript` in its process_linux.go).
const EVALUATION: &[u8] = b"eval \"set ${SINGULARITY_OCI_RUN}\"";

/// ENTRYPOINT and CMD; none if the script is another one.
pub fn entrypoint_and_command(script: &[u8]) -> Option<(Vec<OsString>, Vec<OsString>)> {
    script
        .split(|&byte| byte == b'\n')
        .find(|line| *line == EVALUATION)?;
    Some((
        words_of(script, b"OCI_ENTRYPOINT=")?,
        words_of(script, b"OCI_CMD=")?,
    ))
}

/// Whether the argument says more than variables can stand for.
pub fn needs_shell(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    let after_dollar = |at: usize| bytes.get(at + 1).copied().unwrap_or(b' ');
    let is_special = |at: usize| match bytes[at] {
        b'`' => true,
        b'$' => {
            let next = after_dollar(at);
            b"({#?$!@*-".contains(&next) || next.is_ascii_digit()
        }
        _ => false,
    };
    (0..bytes.len()).any(is_special)
}

/// The words that the line beginning with `name` assigns: in single quotes, and each in double quotes there.
fn words_of(script: &[u8], name: &[u8]) -> Option<Vec<OsString>> {
    let starts = |at: &usize| {
        script[*at..].starts_with(name) && (*at == 0 || script.get(at - 1) == Some(&b'\n'))
    };
    let at = (0..script.len()).find(starts)?;
    let line = single_quoted(&script[at + name.len()..])?;
    double_quoted(&line)
}

/// What stands in single quotes; `'"'"'` or `'\''` within is one of them.
fn single_quoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let mut rest = text.strip_prefix(b"'")?;
    loop {
        let end = rest.iter().position(|&byte| byte == b'\'')?;
        plain.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        let quote = [&b"\"'\"'"[..], b"\\''"]
            .iter()
            .find_map(|quote| rest.strip_prefix(*quote));
        match quote {
            Some(after) => {
                plain.push(b'\'');
                rest = after;
            }
            None => {
                let is_end = rest.first().is_none_or(|&byte| byte == b'\n');
                return is_end.then_some(plain);
            }
        }
    }
}

/// The words in a list of them, each in double quotes.
fn double_quoted(text: &[u8]) -> Option<Vec<OsString>> {
    let mut words = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let mut word = Vec::new();
        rest = rest.strip_prefix(b"\"")?;
        loop {
            match rest {
                [b'"', after @ ..] => {
                    rest = after.trim_ascii_start();
                    break;
                }
                [b'\\', escaped @ (b'\\' | b'"' | b'`' | b'$'), after @ ..] => {
                    word.push(*escaped);
                    rest = after;
                }
                // What stands for something else is the shell's to say.
                [b'$' | b'`', ..] | [] => return None,
                [byte, after @ ..] => {
                    word.push(*byte);
                    rest = after;
                }
            }
        }
        words.push(OsString::from_vec(word));
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::shell;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn what_we_write_into_a_runscript_is_read_again() {
        let tricky = [
            "it's", "\"q\"", "$FOO", "`id`", "a  b", "x\ny", "b\\s", "", "'",
        ];
        for (entrypoint, cmd) in [
            (&["show"][..], &[][..]),
            (&[], &["show"]),
            (&tricky, &tricky),
            (&[], &[]),
        ] {
            let script = shell::runscript(&owned(entrypoint), &owned(cmd));
            let read = entrypoint_and_command(script.as_bytes()).unwrap();
            let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
            assert_eq!(read, (words(entrypoint), words(cmd)), "{script}");
        }
    }

    #[test]
    fn other_scripts_are_the_shells() {
        let known = "eval \"set ${SINGULARITY_OCI_RUN}\"\n";
        for text in [
            "",
            "#!/bin/sh\nexec true\n",
            "OCI_ENTRYPOINT='\"a\"'\nOCI_CMD=''\n",
            &format!("OCI_ENTRYPOINT='\"a\"'\n{known}"),
            &format!("OCI_ENTRYPOINT='\"a\"\nOCI_CMD=\n{known}"),
            &format!("OCI_ENTRYPOINT='\"$HOME\"'\nOCI_CMD=''\n{known}"),
            &format!("OCI_ENTRYPOINT='\"a'\nOCI_CMD=''\n{known}"),
            &format!("OCI_ENTRYPOINT='a'\nOCI_CMD=''\n{known}"),
            &format!("OCI_ENTRYPOINT='\"a\"'x\nOCI_CMD=''\n{known}"),
        ] {
            assert_eq!(entrypoint_and_command(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_argument_needs_a_shell_for_more_than_variables() {
        for (argument, needs) in [
            ("", false),
            ("a b 'c' \"d\"", false),
            ("$HOME $", false),
            ("`id`", true),
            ("$(id)", true),
            ("${a%b}", true),
            ("$1", true),
        ] {
            assert_eq!(needs_shell(OsStr::new(argument)), needs, "{argument}");
        }
    }
}

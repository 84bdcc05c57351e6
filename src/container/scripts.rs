//! What the environment scripts of a SIF set, read without a shell.
//!
//! Singularity runs `/.singularity.d/env/*.sh` in their order before a program. Understood here is what its builders and ours write
//! into them, and what people write under `%environment`: assignments, `export`, and the test for a variable that is not
//! set yet. A line that needs a shell (a command, a loop, another test) sets nothing.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sifon_mount::image::{Enough, Image};
use sifon_mount::tree::{NodeId, NodeKind};

use super::variables::{Map, Variables};

/// Bytes of a script at most.
const SCRIPT_BYTES_LIMIT: u32 = 1 << 20;

/// Scripts that are not about the image: what they do at run time is done here otherwise.
const OF_THE_RUNTIME: [&[u8]; 4] = [b"01-", b"94-", b"95-", b"99-"];

/// The variables that the scripts of `image` export, on top of those in `from`; these, if it has no scripts. A script
/// that cannot be read within `timeout` sets nothing.
pub fn of_image(image: &Image, from: Variables, timeout: Duration) -> Variables {
    let scripts = scripts(image, Instant::now() + timeout).unwrap_or_default();
    exported(&from, scripts.iter().map(|script| &script[..]))
}

/// The variables that the scripts of the container that this process is in export, such as they are at this moment.
pub fn of_container() -> Variables {
    let directory = Path::new("/.singularity.d/env");
    let scripts = match directory.is_dir() {
        true => in_directory(directory),
        // What builders before Singularity 2.3 made.
        false => text(Path::new("/environment")).into_iter().collect(),
    };
    exported(&Variables::new(), scripts.iter().map(Vec::as_slice))
}

/// The texts of `*.sh` in `directory` that are about the image, in the order of their names.
pub fn in_directory(directory: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.retain(|name| is_own(name.as_bytes()));
    names.sort();
    let paths = names.iter().map(|name| directory.join(name));
    paths.filter_map(|path| text(&path)).collect()
}

/// The beginning of a regular file.
fn text(path: &Path) -> Option<Vec<u8>> {
    // Opened only if it is one: a pipe would be waited for.
    fs::metadata(path).ok().filter(|found| found.is_file())?;
    let file = File::open(path).ok()?.take(SCRIPT_BYTES_LIMIT.into());
    let mut text = Vec::new();
    { file }.read_to_end(&mut text).ok()?;
    Some(text)
}

/// Whether a file of this name is a script that is about the image.
fn is_own(name: &[u8]) -> bool {
    let is_of_the_runtime = OF_THE_RUNTIME.iter().any(|start| name.starts_with(start));
    name.ends_with(b".sh") && !is_of_the_runtime
}

/// The texts of `/.singularity.d/env/*.sh`, in the order of their names.
fn scripts(image: &Image, deadline: Instant) -> Option<Vec<Vec<u8>>> {
    let child = |directory, name| image.lookup(directory, name).ok()?;
    let directory = child(child(NodeId::ROOT, b".singularity.d")?, b"env")?;
    let mut found = Vec::new();
    image
        .children(directory, 0, |name, id, _| {
            if is_own(name) {
                found.push((name.to_vec(), id));
            }
            Enough::No
        })
        .ok()?;
    found.sort();
    let is_file = |id| {
        matches!(
            image.node(id).map(|node| node.kind),
            Ok(NodeKind::Regular { .. })
        )
    };
    let files = found.into_iter().filter(|(_, id)| is_file(*id));
    let texts = files.filter_map(|(_, id)| image.read(id, 0, SCRIPT_BYTES_LIMIT, deadline).ok());
    Some(texts.map(|text| text.to_vec()).collect())
}

/// The variables that `scripts`, in their order, export, on top of those in `from`.
pub fn exported<'s>(from: &Variables, scripts: impl IntoIterator<Item = &'s [u8]>) -> Variables {
    let mut set: Map = from.iter().cloned().collect();
    let mut exported: Vec<Vec<u8>> = from.iter().map(|(name, _)| name.clone()).collect();
    for script in scripts {
        let mut depth = 0;
        for command in commands(script) {
            run(&command, &mut set, &mut exported, &mut depth);
        }
    }
    exported.sort();
    exported.dedup();
    let value = |name: Vec<u8>| {
        let value = set.get(&name)?.clone();
        Some((name, value))
    };
    exported.into_iter().filter_map(value).collect()
}

/// The variables that the text of `--env-file` sets; it can name those in `from` and its own. The first command in it that needs a
/// shell, if there is one.
pub fn of_file(text: &[u8], from: &Variables) -> Result<Variables, Vec<u8>> {
    let mut set: Map = from.iter().cloned().collect();
    let mut names = Vec::new();
    for command in commands(text) {
        let words = command.strip_prefix(b"export ").unwrap_or(&command);
        let assigned = assignments(words.trim_ascii(), Until::Outside, &set);
        if assigned.is_empty() || assigned.iter().any(|(_, value)| value.is_none()) {
            return Err(command);
        }
        for (name, value) in assigned {
            set.insert(name.clone(), value.unwrap_or_default());
            names.push(name);
        }
    }
    let value = |name: Vec<u8>| set.get(&name).cloned().map(|value| (name, value));
    Ok(names.into_iter().filter_map(value).collect())
}

/// Runs one command; inside of what is not understood only its end is looked for.
fn run(command: &[u8], set: &mut Map, exported: &mut Vec<Vec<u8>>, depth: &mut usize) {
    let first = command.split(|byte| byte.is_ascii_whitespace()).next();
    match first.unwrap_or_default() {
        b"fi" | b"done" | b"esac" | b"}" => *depth = depth.saturating_sub(1),
        b"if" => {
            // `if [ -z "${NAME:-}" ]; then` holds for a variable without a value: the commands after it are ordinary ones.
            let holds = unset_test(command).map(|name| set.get(name).is_none_or(Vec::is_empty));
            if *depth > 0 || holds != Some(true) {
                *depth += 1;
            }
        }
        // What is above was run, or not understood.
        b"else" | b"elif" if *depth == 0 => *depth = 1,
        b"for" | b"while" | b"until" | b"case" | b"{" => *depth += 1,
        word if word.ends_with(b"()") || command.ends_with(b"{") => *depth += 1,
        _ if *depth > 0 => {}
        b"then" => run(command[4..].trim_ascii(), set, exported, depth),
        b"export" => {
            for (name, value) in assignments(command[6..].trim_ascii(), Until::Space, set) {
                if let Some(value) = value {
                    set.insert(name.clone(), value);
                }
                exported.push(name);
            }
        }
        b"unset" => {
            for name in command[5..].split(|byte| byte.is_ascii_whitespace()) {
                set.remove(name);
            }
        }
        _ => {
            for (name, value) in assignments(command, Until::Space, set) {
                if let Some(value) = value {
                    set.insert(name, value);
                }
            }
        }
    }
}

/// The name in a test for a variable that is not set, or empty.
fn unset_test(command: &[u8]) -> Option<&[u8]> {
    let test = command.strip_prefix(b"if [ -z \"$")?;
    let name = test.strip_suffix(b"\" ]")?;
    let name = match name.strip_prefix(b"{") {
        Some(name) => {
            let name = name.strip_suffix(b"}")?;
            name.strip_suffix(b":-").unwrap_or(name)
        }
        None => name,
    };
    is_name(name).then_some(name)
}

/// The commands of a script: cut at line ends and semicolons that no quote and no `${…}` holds, without comments.
fn commands(script: &[u8]) -> Vec<Vec<u8>> {
    let mut commands = vec![Vec::new()];
    // What is open: `"`, `{` or `'`.
    let mut open: Vec<u8> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = script.get(at) {
        at += 1;
        let last = commands.last_mut().expect("there is always one");
        match (open.last(), byte) {
            (None, b'\n' | b';') => {
                commands.push(Vec::new());
                continue;
            }
            (None, b'#') if last.last().is_none_or(u8::is_ascii_whitespace) => {
                let end = script[at..].iter().position(|&byte| byte == b'\n');
                at = end.map_or(script.len(), |end| at + end);
                continue;
            }
            (Some(b'\''), b'\'') | (Some(b'"'), b'"') | (Some(b'{'), b'}') => _ = open.pop(),
            (Some(b'\''), _) => {}
            (None | Some(b'{'), b'\'') | (_, b'"') => open.push(byte),
            (_, b'{') if last.last() == Some(&b'$') => open.push(byte),
            (_, b'\\') => {
                last.push(byte);
                last.extend(script.get(at));
                at += 1;
                continue;
            }
            _ => {}
        }
        last.push(byte);
    }
    let trimmed = commands.iter().map(|command| command.trim_ascii().to_vec());
    trimmed.filter(|command| !command.is_empty()).collect()
}

/// `NAME=word NAME …`; nothing if any part of it is something else.
fn assignments(text: &[u8], until: Until, set: &Map) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut assignments = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let len = rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(len);
        if !is_name(name) {
            return Vec::new();
        }
        rest = match after.split_first() {
            Some((b'=', after)) => {
                let mut plain = Vec::new();
                let Some(after) = word(after, until, set, &mut plain, 0) else {
                    return Vec::new();
                };
                assignments.push((name.to_vec(), Some(plain)));
                after
            }
            _ => {
                assignments.push((name.to_vec(), None));
                after
            }
        };
        if rest.first().is_some_and(|byte| !byte.is_ascii_whitespace()) {
            return Vec::new();
        }
        rest = rest.trim_ascii_start();
    }
    assignments
}

/// Where a word, or a part of one, ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Space,
    /// A space, too; a backslash outside quotes stays for what evaluates the value once more.
    Outside,
    Quote,
    Brace,
}

/// Expansions within expansions at most.
const DEPTH_LIMIT: usize = 16;

/// Appends the value of the word that `text` begins with; what follows it. `None` if it needs a shell.
fn word<'t>(
    text: &'t [u8],
    until: Until,
    set: &Map,
    plain: &mut Vec<u8>,
    depth: usize,
) -> Option<&'t [u8]> {
    if depth > DEPTH_LIMIT {
        return None;
    }
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, until) {
            (b'"', Until::Quote) | (b'}', Until::Brace) => return Some(after),
            (byte, Until::Space | Until::Outside) if byte.is_ascii_whitespace() => {
                return Some(rest);
            }
            (b'\'', Until::Space | Until::Outside | Until::Brace) => {
                let end = after.iter().position(|&byte| byte == b'\'')?;
                plain.extend_from_slice(&after[..end]);
                &after[end + 1..]
            }
            (b'"', _) => word(after, Until::Quote, set, plain, depth + 1)?,
            (b'\\', until) => {
                let (&escaped, after) = after.split_first()?;
                let is_special = b"$`\"\\\n".contains(&escaped) || until == Until::Space;
                if !is_special || until == Until::Outside {
                    plain.push(b'\\');
                }
                if escaped != b'\n' {
                    plain.push(escaped);
                }
                after
            }
            (b'`', _) => return None,
            (b'$', _) => variable(after, set, plain, depth)?,
            (b'&' | b'|' | b'<' | b'>' | b'(' | b')', Until::Space | Until::Outside) => {
                return None;
            }
            (byte, _) => {
                plain.push(byte);
                after
            }
        };
    }
    matches!(until, Until::Space | Until::Outside).then_some(rest)
}

/// Appends what stands for `$NAME`, `${NAME}`, `${NAME:-word}` or `${NAME:+word}` after its dollar sign; what follows it.
fn variable<'t>(text: &'t [u8], set: &Map, plain: &mut Vec<u8>, depth: usize) -> Option<&'t [u8]> {
    let body = text.strip_prefix(b"{");
    let name_at = body.unwrap_or(text);
    let len = name_at
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
        .unwrap_or(name_at.len());
    let (name, after) = name_at.split_at(len);
    if !is_name(name) {
        // A dollar sign alone stands for itself; `$(`, `$1` and the like need a shell.
        let is_alone = body.is_none() && text.first().is_none_or(|next| b" \"/.,:".contains(next));
        plain.extend(is_alone.then_some(b'$'));
        return is_alone.then_some(text);
    }
    let value = set.get(name).filter(|value| !value.is_empty());
    if body.is_none() {
        plain.extend(value.into_iter().flatten());
        return Some(after);
    }
    let (is_default, word_at) = match after {
        [b'}', after @ ..] => {
            plain.extend(value.into_iter().flatten());
            return Some(after);
        }
        [b':', b'-', after @ ..] => (true, after),
        [b':', b'+', after @ ..] => (false, after),
        _ => return None,
    };
    let mut other = Vec::new();
    let after = word(word_at, Until::Brace, set, &mut other, depth + 1)?;
    match (is_default, value) {
        (true, Some(value)) => plain.extend_from_slice(value),
        (true, None) | (false, Some(_)) => plain.extend_from_slice(&other),
        (false, None) => {}
    }
    Some(after)
}

fn is_name(name: &[u8]) -> bool {
    name.first().is_some_and(|first| !first.is_ascii_digit())
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_file_of_variables_is_read_as_a_shell_reads_it() {
        let from = vec![(b"HOST".to_vec(), b"h".to_vec())];
        let read = |text: &str| {
            let variables = of_file(text.as_bytes(), &from).ok()?;
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let lines = variables
                .into_iter()
                .map(|(name, value)| format!("{}={}", text(name), text(value)));
            Some(lines.collect::<Vec<_>>().join("|"))
        };
        for (text, expected) in [
            ("", Some("")),
            ("# comment\nA=1\n\nexport B=\"x $A\"\n", Some("A=1|B=x 1")),
            ("A='$B'\nC=$HOST$none", Some("A=$B|C=h")),
            (
                "A=\"two\nlines\"; B=a\"b\"c # end",
                Some("A=two\nlines|B=abc"),
            ),
            (r"A=\$B C=a\ b", Some(r"A=\$B|C=a\ b")),
            (r#"A="\$B""#, Some("A=$B")),
            ("A=1\nno equals", None),
            ("A=two words", None),
            ("A=$(id)", None),
        ] {
            assert_eq!(read(text).as_deref(), expected, "{text}");
        }
    }

    use super::*;
    use crate::pack::shell;

    fn of(script: &str) -> Vec<(String, String)> {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        exported(&Variables::new(), [script.as_bytes()])
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn scripts_of_ours_and_of_apptainers_say_what_the_image_did() {
        let values = [
            "",
            "a b",
            "it's",
            "\"q\" $HOME `id` \\ \n two",
            "a;b#c",
            "*",
        ];
        for value in values {
            let ours = shell::environment(&[format!("A={value}"), format!("PATH={value}")]);
            assert_eq!(of(&ours), [pair("A", value), pair("PATH", value)], "{ours}");
        }
        // conveyorPacker_oci.go, `insertEnv`: values with `"`, `$`, backticks and backslashes escaped.
        let apptainers = concat!(
            "#!/bin/sh\n",
            "export PATH=\"/usr/local/bin:/bin\"\n",
            "export LANG=\"${LANG:-\"C.UTF-8\"}\"\n",
            "export ODD=\"${ODD:-\"a \\\"b\\\" \\$HOME \\`id\\`\"}\"\n",
            "export EMPTY=\"${EMPTY:-}\"\n",
            "export CUT=\"${CUT:-\"it's; # so}\"}\"\n",
        );
        let expected = [
            pair("CUT", "it's; # so}"),
            pair("EMPTY", ""),
            pair("LANG", "C.UTF-8"),
            pair("ODD", "a \"b\" $HOME `id`"),
            pair("PATH", "/usr/local/bin:/bin"),
        ];
        assert_eq!(of(apptainers), expected);
    }

    #[test]
    fn what_people_write_under_environment_is_understood_and_what_needs_a_shell_sets_nothing() {
        for (script, expected) in [
            ("A=1\nexport A", vec![pair("A", "1")]),
            (
                "export A=1 B='two words' C",
                vec![pair("A", "1"), pair("B", "two words")],
            ),
            ("A=1", vec![]),
            ("export A=1 # why\n# export B=2", vec![pair("A", "1")]),
            (
                "export A=/x; export B=$A/y:${A}z",
                vec![pair("A", "/x"), pair("B", "/x/y:/xz")],
            ),
            (
                "export P=/p${P:+:$P}\nexport P=/q${P:+:$P}",
                vec![pair("P", "/q:/p")],
            ),
            (
                "export A=$(id)\nexport B=`id`\nexport C=3",
                vec![pair("C", "3")],
            ),
            (
                "if [ -d /x ]; then\nexport A=1\nfi\nexport B=2",
                vec![pair("B", "2")],
            ),
            (
                "for a in 1 2; do\nexport A=$a\ndone\nexport B=2",
                vec![pair("B", "2")],
            ),
            (
                "if [ -z \"$A\" ]; then A=1; else A=2; fi\nexport A",
                vec![pair("A", "1")],
            ),
            ("f() {\nexport A=1\n}\nexport B=2", vec![pair("B", "2")]),
            ("export A=1\nunset A", vec![]),
            ("A=1 command", vec![]),
            ("export A=\"open", vec![]),
            ("export A=${B:-${C:-x}}", vec![pair("A", "x")]),
            ("export A=a\\ b", vec![pair("A", "a b")]),
        ] {
            assert_eq!(of(script), expected, "{script}");
        }
    }

    #[test]
    fn later_scripts_see_what_earlier_ones_set() {
        let scripts = [&b"export A=1"[..], b"export B=$A$FROM", b"export A=2"];
        let from = vec![(b"FROM".to_vec(), b"config".to_vec())];
        let set = exported(&from, scripts);
        let expected = [("A", "2"), ("B", "1config"), ("FROM", "config")];
        let expected = expected.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(set, expected);
    }
}

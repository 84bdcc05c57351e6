//! The order of modules that `lib.rs` promises, and the places that alone may name certain things.
//!
//! Reads the sources as text: comments and literals blanked out, then paths that begin with `crate` or
//! `super`. Enough for code that rustfmt has seen; macros that build paths out of pieces would escape it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs;
use std::path::{Path, PathBuf};

/// A word that only some places may have in their code, relative to the workspace's root.
const RESERVED: [(&str, &[&str]); 4] = [
    ("unsafe", &["mount/src/sys"]),
    ("fuser", &["mount/src/fuse"]),
    ("reqwest", &["mount/src/registry"]),
    ("clap", &["src/cli.rs", "src/cli", "src/command"]),
];

#[test]
fn a_module_names_only_those_above_it() {
    let source = workspace().join("mount/src");
    let order = declared(&blanked(&read(&source.join("lib.rs"))));
    assert!(
        order.iter().any(|module| module == "digest"),
        "lib.rs declares modules: {order:?}"
    );
    let mut broken = Vec::new();
    for file in rust_files(&source) {
        let module = module_path(file.strip_prefix(&source).unwrap());
        for (line, named) in crate_paths(&blanked(&read(&file)), &module) {
            if let Some(sentence) = wrong_way(&order, module.first(), &named) {
                broken.push(format!("{}:{line}: {sentence}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn certain_words_stay_in_their_place() {
    let root = workspace();
    let mut broken = Vec::new();
    for file in rust_files(&root.join("mount/src"))
        .into_iter()
        .chain(rust_files(&root.join("src")))
    {
        let relative = file.strip_prefix(&root).unwrap();
        let code = blanked(&read(&file));
        let words = words(&code);
        for (reserved, places) in RESERVED {
            if places.iter().any(|place| relative.starts_with(place)) {
                continue;
            }
            if let Some(Word { line, .. }) = words.iter().find(|word| word.text == reserved) {
                let (file, places) = (file.display(), places.join(" and "));
                broken.push(format!(
                    "{file}:{line}: `{reserved}` belongs in {places} only"
                ));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Why `module` must not name `named`, if so. `lib.rs` itself, which has no module, may name all.
fn wrong_way(order: &[String], module: Option<&String>, named: &str) -> Option<String> {
    let module = module?;
    let place = |name: &str| order.iter().position(|other| other == name);
    // Anything else is an item of `lib.rs`.
    let named_at = place(named)?;
    let module_at = place(module)?;
    (named_at > module_at)
        .then(|| format!("`{module}` names `{named}`, which lib.rs lists below it"))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `layer/tar.rs` is `[layer, tar]`, `layer/mod.rs` is `[layer]`, `lib.rs` is `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let names = file.with_extension("");
    let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
    names
        .filter(|name| name != "mod" && name != "lib")
        .collect()
}

/// The modules that a file declares as files of their own, in order.
fn declared(code: &str) -> Vec<String> {
    let words = words(code);
    let declares = |at: &usize| {
        words[*at].text == "mod" && words.get(at + 2).is_some_and(|end| end.text == ";")
    };
    (0..words.len())
        .filter(declares)
        .map(|at| words[at + 1].text.to_owned())
        .collect()
}

/// Each first name after the crate's root that a path in the code has, with its line. `module` is the
/// file's own place; modules inside the file count when `super` is resolved.
fn crate_paths(code: &str, module: &[String]) -> Vec<(usize, String)> {
    let words = words(code);
    let mut found = Vec::new();
    let mut depth = 0;
    let mut inline_modules = Vec::new();
    for at in 0..words.len() {
        match words[at].text {
            "{" => {
                depth += 1;
                if at >= 2 && words[at - 2].text == "mod" {
                    inline_modules.push(depth);
                }
            }
            "}" => {
                inline_modules.retain(|opened_at| *opened_at < depth);
                depth -= 1;
            }
            "crate" if is_followed_by_path(&words, at) => {
                found.extend(first_names(&words[at + 2..]));
            }
            // A chain is looked at from its first `super`.
            "super" if at == 0 || words[at - 1].text != "::" => {
                let chain = words[at..].chunks(2).take_while(|pair| {
                    matches!(pair, [name, colons] if name.text == "super" && colons.text == "::")
                });
                let levels = chain.count();
                if levels > 0 && levels == module.len() + inline_modules.len() {
                    found.extend(first_names(&words[at + 2 * levels..]));
                }
            }
            _ => {}
        }
    }
    found
}

fn is_followed_by_path(words: &[Word<'_>], at: usize) -> bool {
    words.get(at + 1).is_some_and(|next| next.text == "::")
}

/// The name a path goes on with, or all of them if it goes on with `{a::b, c}`.
fn first_names(words: &[Word<'_>]) -> Vec<(usize, String)> {
    let Some(first) = words.first() else {
        return Vec::new();
    };
    if first.text != "{" {
        return vec![(first.line, first.text.to_owned())];
    }
    let mut names = Vec::new();
    let (mut depth, mut begins) = (0, true);
    for word in words {
        match word.text {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," if depth == 1 => begins = true,
            name if begins => {
                names.push((word.line, name.to_owned()));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// A name, `::`, or another single character that is not blank.
#[derive(Clone, Copy)]
struct Word<'a> {
    line: usize,
    text: &'a str,
}

fn words(code: &str) -> Vec<Word<'_>> {
    let mut found = Vec::new();
    for (line, text) in (1..).zip(code.lines()) {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let len = match rest.find(|c| !is_name(c)) {
                _ if rest.starts_with("::") => 2,
                Some(0) => first.len_utf8(),
                Some(len) => len,
                None => rest.len(),
            };
            found.push(Word {
                line,
                text: &rest[..len],
            });
            rest = rest[len..].trim_start();
        }
    }
    found
}

/// The code with comments and the insides of literals taken out, and every line still where it was.
fn blanked(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let literal = skipped(rest, code.chars().next_back());
        if literal == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..literal].matches('\n'));
            rest = &rest[literal..];
        }
    }
    code
}

/// How many bytes at the start of `rest` are one comment or one literal; 0 if it begins with code.
fn skipped(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return 1 + closing_quote(inside, '"');
    }
    let follows_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with('r') && (!follows_name || before == Some('b')) {
        return raw_string(rest);
    }
    let mut after = rest.chars().skip(1);
    match (rest.starts_with('\''), after.next(), after.next()) {
        (true, Some('\\'), _) | (true, Some(_), Some('\'')) => 1 + closing_quote(&rest[1..], '\''),
        // A lifetime, or code.
        _ => 0,
    }
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Bytes up to and with the closing quote that no backslash precedes.
fn closing_quote(inside: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in inside.char_indices() {
        if c == quote && !is_escaped {
            return at + c.len_utf8();
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    inside.len()
}

fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
    let opened = 1 + hashes;
    if !rest[opened..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    rest[opened + 1..]
        .find(&end)
        .map_or(rest.len(), |at| opened + 1 + at + end.len())
}

#[test]
fn paths_are_found_wherever_they_stand_and_only_in_code() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("use crate::digest::Digest;", &["tree"], &["digest"]),
        (
            "use crate::{blob, layer::{entry, tar}, sys};",
            &["tree"],
            &["blob", "layer", "sys"],
        ),
        ("fn f() -> crate::sys::Sealed {}", &["tree"], &["sys"]),
        ("use super::digest::Digest;", &["tree"], &["digest"]),
        ("use super::entry::Entry;", &["layer", "tar"], &[]),
        ("use super::super::digest;", &["layer", "tar"], &["digest"]),
        (
            "mod tests { use super::*; use super::super::digest; }",
            &["tree"],
            &["digest"],
        ),
        (
            "mod tests { fn f() {} } use super::digest;",
            &["tree"],
            &["digest"],
        ),
        (
            "// crate::fuse\n/* crate::fuse /* */ */ let s = \"crate::fuse\";",
            &["tree"],
            &[],
        ),
        (
            "let (c, s) = ('\"', r#\"crate::fuse\"#); crate::sys::f::<'a>(b'\\'');",
            &["tree"],
            &["sys"],
        ),
        ("pub(crate) fn f() {}", &["tree"], &[]),
    ];
    for (source, module, expected) in cases {
        let module: Vec<String> = module.iter().map(ToString::to_string).collect();
        let found = crate_paths(&blanked(source), &module);
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(&names, expected, "{source}");
    }
}

#[test]
fn the_wrong_way_is_down() {
    let order: Vec<String> = ["digest", "layer", "fuse"].map(String::from).to_vec();
    assert_eq!(wrong_way(&order, Some(&"layer".into()), "digest"), None);
    assert_eq!(wrong_way(&order, Some(&"layer".into()), "layer"), None);
    let sentence = wrong_way(&order, Some(&"layer".into()), "fuse").unwrap();
    assert_eq!(
        sentence,
        "`layer` names `fuse`, which lib.rs lists below it"
    );
}

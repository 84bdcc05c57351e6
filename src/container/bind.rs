//! Bind mounts as users write them: `source[:target[:options]]`, several joined by commas.
//!
//! With the option `image-src=PATH` the source is a file with a file system in it, of which that path is shown.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// One bind mount that the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindRequest {
    /// On the host; relative ones start at the current directory.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
    /// Whether writing through it is refused.
    pub is_read_only: bool,
    /// What is shown of the file system in the source; none if the source itself is shown.
    pub within_image: Option<PathBuf>,
}

/// Why a text names no bind mount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bind {text:?}: {problem}")]
pub struct BindError {
    text: String,
    problem: &'static str,
}

/// The bind mounts in `text`, a list separated by commas; `\:` and `\,` stand for the characters.
pub fn requests(text: &OsStr) -> Result<Vec<BindRequest>, BindError> {
    let wrong = |problem| BindError {
        text: text.to_string_lossy().into_owned(),
        problem,
    };
    let mut requests: Vec<BindRequest> = Vec::new();
    for part in unescaped_parts(text.as_bytes(), b',') {
        if part.is_empty() {
            continue;
        }
        match requests.last_mut() {
            // `a:b:ro,rw` lists options, `a:b,c:d` lists binds.
            Some(last) if is_option(part) => apply(last, part).map_err(wrong)?,
            _ => requests.push(request(part).map_err(wrong)?),
        }
    }
    Ok(requests)
}

/// The bind mount in `text`, words of `--mount` separated by commas: `type=bind,source=/a,destination=/b,ro`.
pub fn mounts(text: &OsStr) -> Result<Vec<BindRequest>, BindError> {
    let wrong = |problem| BindError {
        text: text.to_string_lossy().into_owned(),
        problem,
    };
    let mut requests = Vec::new();
    for line in text.as_bytes().split(|&byte| byte == b'\n') {
        if !line.is_empty() {
            requests.push(mount(line).map_err(wrong)?);
        }
    }
    Ok(requests)
}

fn mount(line: &[u8]) -> Result<BindRequest, &'static str> {
    let (mut source, mut target, mut is_bind, mut is_read_only) = (None, None, true, false);
    let mut within_image = None;
    for field in quoted_fields(line) {
        let mut parts = field.splitn(2, |&byte| byte == b'=');
        let key = parts.next().unwrap_or_default();
        let value = parts.next();
        let path = || value.map(|value| PathBuf::from(OsStr::from_bytes(value)));
        match key {
            b"type" => is_bind = value == Some(b"bind"),
            b"source" | b"src" => source = path(),
            b"destination" | b"dst" | b"target" => target = path(),
            b"ro" | b"readonly" => is_read_only = value != Some(b"false"),
            b"image-src" => within_image = Some(path_in_image(value.unwrap_or_default())?),
            b"id" => return Err(PARTITIONS_HAVE_NO_NUMBERS),
            _ => return Err("unknown word; known are type, source, destination, ro and image-src"),
        }
    }
    if !is_bind {
        return Err("only type=bind is possible");
    }
    let source = source
        .filter(|source| !source.as_os_str().is_empty())
        .ok_or("no source was named")?;
    let target = target.ok_or("no destination was named")?;
    if !target.is_absolute() {
        return Err("the destination must be an absolute path");
    }
    Ok(BindRequest {
        source,
        target,
        is_read_only,
        within_image,
    })
}

const PARTITIONS_HAVE_NO_NUMBERS: &str = "a partition of a SIF cannot be chosen by its number: its root file system is shown, or else its data";

/// What `image-src` names: an absolute path, below the file system's root.
fn path_in_image(text: &[u8]) -> Result<PathBuf, &'static str> {
    Some(path(text))
        .filter(|path| path.is_absolute())
        .ok_or("image-src must be an absolute path")
}

/// Fields as in a line of a CSV file: between double quotes a comma is itself, and two double quotes stand for one (RFC 4180).
fn quoted_fields(line: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = vec![Vec::new()];
    let mut is_quoted = false;
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let field = fields.last_mut().expect("there is one from the start");
        match byte {
            b'"' if is_quoted && bytes.peek() == Some(&b'"') => {
                bytes.next();
                field.push(b'"');
            }
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => fields.push(Vec::new()),
            byte => field.push(byte),
        }
    }
    fields
}

fn request(part: &[u8]) -> Result<BindRequest, &'static str> {
    let fields = unescaped_parts(part, b':');
    let (source, target, options) = match fields.as_slice() {
        [source] => (source, source, None),
        [source, target] => (source, target, None),
        [source, target, options] => (source, target, Some(*options)),
        _ => return Err("expected source[:target[:options]]"),
    };
    let source = path(source);
    let target = if target.is_empty() {
        source.clone()
    } else {
        path(target)
    };
    if source.as_os_str().is_empty() {
        return Err("the source is empty");
    }
    if fields.len() > 1 && !target.is_absolute() {
        return Err("the target must be an absolute path");
    }
    let mut request = BindRequest {
        source,
        target,
        is_read_only: false,
        within_image: None,
    };
    if let Some(options) = options {
        apply(&mut request, options)?;
    }
    Ok(request)
}

fn is_option(part: &[u8]) -> bool {
    matches!(part, b"ro" | b"rw") || part.starts_with(b"image-src=") || part.starts_with(b"id=")
}

fn apply(request: &mut BindRequest, option: &[u8]) -> Result<(), &'static str> {
    match option {
        b"ro" => request.is_read_only = true,
        b"rw" | b"" => request.is_read_only = false,
        id if id.starts_with(b"id=") => return Err(PARTITIONS_HAVE_NO_NUMBERS),
        option => match option.strip_prefix(b"image-src=") {
            Some(path) => request.within_image = Some(path_in_image(path)?),
            None => return Err("the options are ro, rw and image-src=PATH"),
        },
    }
    Ok(())
}

/// `text` cut at each `separator` that no backslash precedes; the backslashes stay.
fn unescaped_parts(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut is_escaped = false;
    text.split(|&byte| {
        let is_cut = byte == separator && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_cut
    })
    .collect()
}

/// A path without the backslashes before colons and commas.
fn path(escaped: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' && matches!(bytes.peek(), Some(b':' | b',')) {
            continue;
        }
        plain.push(byte);
    }
    Path::new(OsStr::from_bytes(&plain)).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, is_read_only: bool) -> BindRequest {
        BindRequest {
            source: source.into(),
            target: target.into(),
            is_read_only,
            within_image: None,
        }
    }

    fn from_image(source: &str, target: &str, within: &str) -> BindRequest {
        BindRequest {
            within_image: Some(within.into()),
            ..bind(source, target, false)
        }
    }

    #[test]
    fn binds_are_read_as_singularity_reads_them() {
        for (text, expected) in [
            ("", vec![]),
            ("/a", vec![bind("/a", "/a", false)]),
            ("/a:/b", vec![bind("/a", "/b", false)]),
            ("/a:/b:ro", vec![bind("/a", "/b", true)]),
            (
                "/a:/b:ro,/c",
                vec![bind("/a", "/b", true), bind("/c", "/c", false)],
            ),
            (
                "/a,/b:/c:rw",
                vec![bind("/a", "/a", false), bind("/b", "/c", false)],
            ),
            ("rel:/c", vec![bind("rel", "/c", false)]),
            (r"/a\:b:/c", vec![bind("/a:b", "/c", false)]),
            (r"/a\,b", vec![bind("/a,b", "/a,b", false)]),
            (r"/a\\b", vec![bind(r"/a\\b", r"/a\\b", false)]),
            ("x.sif:/b:image-src=/", vec![from_image("x.sif", "/b", "/")]),
            (
                r"/x:/b:image-src=/c\,d,/e",
                vec![from_image("/x", "/b", "/c,d"), bind("/e", "/e", false)],
            ),
            (
                "/x:/b:ro,image-src=/c",
                vec![BindRequest {
                    is_read_only: true,
                    ..from_image("/x", "/b", "/c")
                }],
            ),
        ] {
            assert_eq!(requests(OsStr::new(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mounts_are_read_as_lines_of_words() {
        for (text, expected) in [
            (
                "type=bind,source=/a,destination=/b",
                bind("/a", "/b", false),
            ),
            ("src=/a,dst=/b", bind("/a", "/b", false)),
            ("type=bind,src=/a,dst=/b,ro", bind("/a", "/b", true)),
            (
                "type=bind,src=/a,target=/b,readonly=false",
                bind("/a", "/b", false),
            ),
            (r#"type=bind,"src=/a,b",dst=/c"#, bind("/a,b", "/c", false)),
            (
                r#"type=bind,"src=/a""b",dst=/c"#,
                bind("/a\"b", "/c", false),
            ),
            (
                "type=bind,src=/x.sif,dst=/b,image-src=/c",
                from_image("/x.sif", "/b", "/c"),
            ),
        ] {
            assert_eq!(mounts(OsStr::new(text)), Ok(vec![expected]), "{text}");
        }
        for text in [
            "type=tmpfs,dst=/b",
            "type=bind,dst=/b",
            "type=bind,src=/a",
            "type=bind,src=/a,dst=b",
            "type=bind,src=/a,dst=/b,wrong",
            "type=bind,src=/a,dst=/b,image-src=c",
            "type=bind,src=/a,dst=/b,image-src=/,id=2",
        ] {
            assert!(mounts(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_bind_is_an_error() {
        for text in [
            ":/b",
            "/a:b",
            "/a:/b:noexec",
            "/a:/b:ro:x",
            "/a:/b:image-src=c",
            "/a:/b:image-src=/c,id=2",
            "a:b",
        ] {
            assert!(requests(OsStr::new(text)).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn escaped_paths_read_back_whatever_is_in_them(
            names in proptest::collection::vec("[^\\\\\0]{1,8}", 2),
            is_read_only in proptest::bool::ANY,
        ) {
            let [source, target] = [&names[0], &names[1]].map(|name| format!("/{name}"));
            let escaped = |path: &str| path.replace(':', r"\:").replace(',', r"\,");
            let access = if is_read_only { ":ro" } else { "" };
            let text = format!("{}:{}{access}", escaped(&source), escaped(&target));
            proptest::prop_assert_eq!(
                requests(OsStr::new(&text)),
                Ok(vec![bind(&source, &target, is_read_only)])
            );
        }

        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = requests(OsStr::from_bytes(&text));
        }
    }
}

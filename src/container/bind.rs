//! Bind mounts as users write them: `source[:target[:options]]`, several joined by commas.

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
        image if image.starts_with(b"image-src=") || image.starts_with(b"id=") => {
            return Err("binding from an image file is not supported yet");
        }
        _ => return Err("the options are ro and rw"),
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
        ] {
            assert_eq!(requests(OsStr::new(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_bind_is_an_error() {
        for text in [
            ":/b",
            "/a:b",
            "/a:/b:noexec",
            "/a:/b:ro:x",
            "/a:/b:image-src=/c",
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

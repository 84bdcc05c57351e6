//! The variables that `--env` sets.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::container::environment::Variables;
use crate::setting::Error;

/// `NAME=VALUE`, several separated by commas; a piece without a name belongs to the value before it. A piece between double
/// quotes may have commas and names in it.
pub(super) fn assignments(texts: &[OsString]) -> Result<Variables, Error> {
    let mut variables = Variables::new();
    for text in texts {
        if text.as_bytes().starts_with(b"=") {
            tracing::warn!(
                "--env {}: a value without a name is left out",
                text.display()
            );
            continue;
        }
        let mut is_first = true;
        for piece in pieces(text.as_bytes()) {
            match (named(&piece), variables.last_mut()) {
                (Some((name, value)), _) => variables.push((name.to_vec(), value.to_vec())),
                (None, Some((_, value))) if !is_first => {
                    value.push(b',');
                    value.extend_from_slice(&piece);
                }
                (None, _) => {
                    return Err(format!("--env {}: expected NAME=VALUE", text.display()).into());
                }
            }
            is_first = false;
        }
    }
    Ok(variables)
}

/// What commas separate; a comma in a piece that begins and ends with a double quote is part of it, and two quotes there are one.
fn pieces(text: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (piece, after) = quoted_piece(text).unwrap_or_else(|| {
            let end = text.iter().position(|&byte| byte == b',');
            let piece = text[..end.unwrap_or(text.len())].to_vec();
            (piece, end.map(|end| &text[end + 1..]))
        });
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn quoted_piece(text: &[u8]) -> Option<(Vec<u8>, Option<&[u8]>)> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut piece = Vec::new();
    loop {
        match rest {
            [b'"', b'"', after @ ..] => {
                piece.push(b'"');
                rest = after;
            }
            [b'"'] => return Some((piece, None)),
            [b'"', b',', after @ ..] => return Some((piece, Some(after))),
            [b'"', ..] | [] => return None,
            [byte, after @ ..] => {
                piece.push(*byte);
                rest = after;
            }
        }
    }
}

fn named(piece: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = piece.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&piece[..equals], &piece[equals + 1..]);
    let is_name = name.first().is_some_and(|byte| !byte.is_ascii_digit())
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    is_name.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_split_at_commas_before_names() {
        let list = |texts: &[&str]| {
            let texts: Vec<OsString> = texts.iter().map(OsString::from).collect();
            assignments(&texts).map(|list| {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                list.into_iter()
                    .map(|(name, value)| (text(name), text(value)))
                    .collect::<Vec<_>>()
            })
        };
        for (texts, expected) in [
            (&["A=1"][..], &[("A", "1")][..]),
            (&["A=1,B=2"], &[("A", "1"), ("B", "2")]),
            (&["A=1,2,B=x=y"], &[("A", "1,2"), ("B", "x=y")]),
            (&["A=", "B=a, b"], &[("A", ""), ("B", "a, b")]),
            (&["\"A=1,B=2\",C=3"], &[("A", "1,B=2"), ("C", "3")]),
            (&["\"A=a\"\"b\""], &[("A", "a\"b")]),
            (&["A=\"1,2\""], &[("A", "\"1,2\"")]),
            (&["=1"], &[]),
        ] {
            let expected: Vec<(String, String)> = expected
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect();
            assert_eq!(list(texts).unwrap(), expected);
        }
        for texts in [&["A"][..], &["1=2"], &["A=1", "B"]] {
            assert!(list(texts).is_err(), "{texts:?}");
        }
    }
}

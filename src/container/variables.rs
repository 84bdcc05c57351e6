//! Variables, and what their names stand for in other values: no shell is involved.

use std::collections::BTreeMap;

/// A list of variables; names and values are bytes, as the kernel passes them.
pub type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// The same by name.
pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether the kernel and every shell take it for the name of a variable or of a bash function.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&0)
}

/// `value` as between double quotes in a shell: with variables replaced, an unknown one by nothing, and without the backslash
/// before what would be special. What needs more than variables stands for itself.
pub(super) fn expanded(value: &[u8], variables: &Map) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.first()) {
            (b'\\', Some(&escaped @ (b'$' | b'\\' | b'`'))) => {
                plain.push(escaped);
                rest = &after[1..];
            }
            (b'$', _) => match substituted(after, variables) {
                Some((value, after)) => {
                    plain.extend(value);
                    rest = after;
                }
                None => plain.push(b'$'),
            },
            (byte, _) => plain.push(byte),
        }
    }
    plain
}

/// What stands for a variable after its dollar sign, and what follows it.
fn substituted<'t>(text: &'t [u8], variables: &Map) -> Option<(Vec<u8>, &'t [u8])> {
    let value = |name: &[u8]| variables.get(name).cloned().unwrap_or_default();
    if let Some((name, after)) = named(text) {
        return Some((value(name), after));
    }
    // `${NAME:-word}` or `${NAME:+word}`; a word with braces of its own is not taken apart.
    let body = text.strip_prefix(b"{")?;
    let end = body.iter().position(|&byte| byte == b'}')?;
    let (inside, after) = (&body[..end], &body[end + 1..]);
    let colon = inside.iter().position(|&byte| byte == b':')?;
    let (name, word) = (&inside[..colon], inside.get(colon + 2..)?);
    let is_whole = named(name).is_some_and(|(_, rest)| rest.is_empty());
    if !is_whole || word.contains(&b'{') {
        return None;
    }
    let value = value(name);
    let instead = match (inside[colon + 1], value.is_empty()) {
        (b'-', true) | (b'+', false) => expanded(word, variables),
        (b'-', false) => value,
        (b'+', true) => Vec::new(),
        _ => return None,
    };
    Some((instead, after))
}

/// `value` as a shell in the container would see it between double quotes, as far as variables go.
pub fn evaluated(value: &[u8], variables: &Variables) -> Vec<u8> {
    expanded(value, &variables.iter().cloned().collect())
}

/// The name that stands after a dollar sign, and what follows it.
fn named(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (is_braced, body) = match text.strip_prefix(b"{") {
        Some(body) => (true, body),
        None => (false, text),
    };
    let len = body
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
        .unwrap_or(body.len());
    let (name, after) = body.split_at(len);
    if name.first().is_none_or(u8::is_ascii_digit) {
        return None;
    }
    if is_braced {
        after.strip_prefix(b"}").map(|after| (name, after))
    } else {
        Some((name, after))
    }
}

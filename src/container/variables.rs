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

/// `value` with `$NAME` and `${NAME}` replaced; `\$` is a dollar sign, an unknown name nothing.
pub(super) fn expanded(value: &[u8], variables: &Map) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' if after.first() == Some(&b'$') => {
                plain.push(b'$');
                rest = &after[1..];
            }
            b'$' => match named(after) {
                Some((name, after)) => {
                    plain.extend_from_slice(variables.get(name).map_or(&b""[..], Vec::as_slice));
                    rest = after;
                }
                None => plain.push(b'$'),
            },
            byte => plain.push(byte),
        }
    }
    plain
}

/// `value` as a shell in the container would see it between double quotes, as far as `$NAME` and `${NAME}` go.
pub fn evaluated(value: &[u8], variables: &Variables) -> Vec<u8> {
    expanded(value, &variables.iter().cloned().collect())
}

/// `value` with those names replaced for which `known` has a value.
pub(super) fn expanded_where(value: &[u8], known: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        plain.push(byte);
        match (byte, named(after)) {
            (b'$', Some((name, after))) => {
                if let Some(value) = known(name) {
                    plain.pop();
                    plain.extend_from_slice(&value);
                    rest = after;
                }
            }
            (b'\\', _) if after.first() == Some(&b'$') => {
                plain.push(b'$');
                rest = &after[1..];
            }
            _ => {}
        }
    }
    plain
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

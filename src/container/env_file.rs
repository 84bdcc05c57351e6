//! Files of variables, as `--env-file` names them.

use super::variables::{Variables, expanded_where, is_name};

/// The variables in a file of `--env-file`: `NAME=VALUE` on each line, perhaps after `export`, the value perhaps between quotes; lines
/// that begin with `#` and those that say something else are passed over. Names of earlier variables of the file stand for them.
pub fn variables(text: &[u8]) -> Variables {
    let mut variables = Variables::new();
    for line in text.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        let line = line.strip_prefix(b"export ").unwrap_or(line).trim_ascii();
        let Some(equals) = line.iter().position(|&byte| byte == b'=') else {
            continue;
        };
        let (name, value) = (&line[..equals], &line[equals + 1..]);
        if line.starts_with(b"#") || !is_name(name) || name.contains(&b' ') {
            continue;
        }
        let value = unquoted(value);
        let value = expanded_where(&value, |name| {
            let earlier = variables.iter().rfind(|(known, _)| known == name);
            earlier.map(|(_, value)| value.clone())
        });
        variables.push((name.to_vec(), value));
    }
    variables
}

/// Without the quotes around it; between single ones a dollar sign is itself.
fn unquoted(value: &[u8]) -> Vec<u8> {
    let between = |quote: &[u8]| value.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(value) = between(b"'") {
        let mut escaped = Vec::with_capacity(value.len());
        for &byte in value {
            if byte == b'$' {
                escaped.push(b'\\');
            }
            escaped.push(byte);
        }
        return escaped;
    }
    between(b"\"").unwrap_or(value).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_line_by_line() {
        let text = b"# comment\nA=1\n export B = 2\nexport C=\"x $A\"\nD='$A'\n\nnothing\nE=\n";
        let expected = [("A", "1"), ("C", "x 1"), ("D", "\\$A"), ("E", "")];
        let expected = expected.map(|(name, value)| (name.into(), value.into()));
        assert_eq!(variables(text), expected);
    }
}

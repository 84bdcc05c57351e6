//! `WWW-Authenticate`: how a registry wants to be told who we are (RFC 9110, section 11.6.1).

/// One way to authenticate that the registry offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenge to answer among those of all header values: bearer before basic.
pub(super) fn chosen<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for challenge in headers.into_iter().flat_map(challenges) {
        match challenge {
            Challenge::Bearer { .. } => return Some(challenge),
            Challenge::Basic => basic = Some(challenge),
        }
    }
    basic
}

/// The challenges in one header value that we can answer, in order.
fn challenges(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header;
    let mut scheme = String::new();
    let mut parameters: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = value_of(value.trim_start());
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            None => {
                found.extend(challenge(&scheme, &parameters));
                scheme = word.to_ascii_lowercase();
                parameters.clear();
                rest = after;
            }
        }
    }
    found.extend(challenge(&scheme, &parameters));
    found
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let parameter = |name: &str| {
        let (_, value) = parameters.iter().find(|(key, _)| key == name)?;
        (!value.is_empty()).then(|| value.clone())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameter("realm")?,
            service: parameter("service"),
            scope: parameter("scope"),
        }),
        _ => None,
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_in_token = |c: char| c.is_ascii_graphic() && !matches!(c, '=' | ',' | '"');
    text.split_at(text.find(|c| !is_in_token(c)).unwrap_or(text.len()))
}

/// A token or a quoted string, unquoted, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn registries_challenges_are_understood() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull""#,
                Some(bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/a:pull"),
                )),
            ),
            (r#"Basic realm="x, y""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Basic realm="x", bearer realm = "https://t" , scope="a b,\"c\"""#,
                Some(bearer("https://t", None, Some("a b,\"c\""))),
            ),
            (
                r#"Negotiate, Bearer realm=https://t/?a=b"#,
                Some(bearer("https://t/?a=b", None, None)),
            ),
            ("Bearer", None),
            ("Negotiate abc==", None),
            ("", None),
            (
                r#"Bearer realm="unclosed"#,
                Some(bearer("unclosed", None, None)),
            ),
        ] {
            assert_eq!(chosen([header]), expected, "{header}");
        }
    }

    #[test]
    fn several_headers_count_as_one() {
        let headers = ["Basic realm=x", r#"Bearer realm="https://t""#];
        assert_eq!(chosen(headers), Some(bearer("https://t", None, None)));
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(header in "\\PC{0,60}") {
            let _ = chosen([header.as_str()]);
        }
    }
}

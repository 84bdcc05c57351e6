//! JSON read in place, from left to right. A table of contents has millions of short keys, names and numbers; these are taken as
//! they stand. Whatever else a value may be (escapes, signs, objects that nobody asks for) is left to `serde_json`.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny};
use serde_json::Error;

/// A text, and how far it is read.
pub struct Json<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Json<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Shows the keys of the object that comes next to `member`, which takes the value of each.
    pub fn object<E: From<Error>>(
        &mut self,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expected(b'{')?;
        if self.taken(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expected(b':')?;
            member(self, &key)?;
            if !self.taken(b',') {
                return Ok(self.expected(b'}')?);
            }
        }
    }

    /// Has `item` take each item of the array that comes next.
    pub fn array<E: From<Error>>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expected(b'[')?;
        if self.taken(b']') {
            return Ok(());
        }
        loop {
            item(self)?;
            if !self.taken(b',') {
                return Ok(self.expected(b']')?);
            }
        }
    }

    /// The string that comes next.
    pub fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.next() == Some(b'"') {
            let from = self.at + 1;
            let end = from + plain_len(&self.text.as_bytes()[from..]);
            if self.text.as_bytes().get(end) == Some(&b'"') {
                self.at = end + 1;
                return Ok(Cow::Borrowed(&self.text[from..end]));
            }
        }
        self.other::<String>().map(Cow::Owned)
    }

    /// The number that comes next.
    pub fn number<T: TryFrom<u64> + Deserialize<'a>>(&mut self) -> Result<T, Error> {
        self.next();
        let rest = &self.text.as_bytes()[self.at..];
        // More could be too large.
        let digits = rest
            .iter()
            .take(19)
            .take_while(|byte| byte.is_ascii_digit());
        let (mut number, mut len) = (0, 0);
        for digit in digits {
            number = number * 10 + u64::from(digit - b'0');
            len += 1;
        }
        let is_whole = matches!(rest.get(len), Some(b',' | b'}')) && len > 0;
        if is_whole
            && (rest[0] != b'0' || len == 1)
            && let Ok(number) = T::try_from(number)
        {
            self.at += len;
            return Ok(number);
        }
        self.other()
    }

    /// The value that comes next, whatever it is.
    pub fn other<T: Deserialize<'a>>(&mut self) -> Result<T, Error> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter();
        let value = values.next().unwrap_or_else(|| Err(self.wrong()));
        self.at += values.byte_offset();
        value
    }

    /// Passes over the value that comes next.
    pub fn skip(&mut self) -> Result<(), Error> {
        self.other::<IgnoredAny>().map(drop)
    }

    /// Takes `null`, if that comes next.
    pub fn null(&mut self) -> bool {
        self.next();
        let is_null = self.text[self.at..].starts_with("null");
        self.at += if is_null { 4 } else { 0 };
        is_null
    }

    /// Whether nothing more comes.
    pub fn end(&mut self) -> Result<(), Error> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.wrong()),
        }
    }

    /// What comes next, after white space.
    fn next(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(self.at) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn taken(&mut self, byte: u8) -> bool {
        let is_next = self.next() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expected(&mut self, byte: u8) -> Result<(), Error> {
        match self.taken(byte) {
            true => Ok(()),
            false => Err(self.wrong()),
        }
    }

    fn wrong(&self) -> Error {
        Error::custom(match self.text.len() {
            len if self.at >= len => "it ends too early".to_owned(),
            _ => format!("not the expected JSON at byte {}", self.at),
        })
    }
}

/// How many of the bytes of a string, up to its end, stand for themselves.
fn plain_len(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let mut last = [b'"'; 8];
    last[..rest.len()].copy_from_slice(rest);
    let within = special(u64::from_le_bytes(last)).trailing_zeros() as usize / 8;
    words.len() * 8 + within.min(rest.len())
}

/// Quotes, backslashes and control characters among the eight bytes of `word`: the lowest bit that is set is in the first of them.
fn special(word: u64) -> u64 {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    // The highest bit of each byte that is less than `than`, and perhaps of some behind the first such byte.
    let less = |word: u64, than: u64| word.wrapping_sub(EACH * than) & !word & (EACH * 0x80);
    let equal = |byte: u8| less(word ^ (EACH * u64::from(byte)), 1);
    less(word, 0x20) | equal(b'"') | equal(b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_what_serde_json_reads_wherever_something_special_stands() {
        let specials = [
            "",
            "\\\"",
            "\\\\",
            "\\u00e6",
            "\\ud83d\\ude00",
            "\n",
            "\x01",
            "\x1f",
            "\x7f",
            "æ€😀",
            "\\x",
        ];
        for len in 0..20 {
            for special in specials {
                for at in 0..=len {
                    let (before, after) = ("b".repeat(at), "c".repeat(len - at));
                    let text = format!(" \"{before}{special}{after}\" , \"next\"");
                    let quoted = &text[..text.len() - " , \"next\"".len()];
                    let expected: Option<String> = serde_json::from_str(quoted).ok();
                    let mut json = Json::new(&text);
                    let found = json.string().ok().map(Cow::into_owned);
                    assert_eq!(found, expected, "{text}");
                    if found.is_some() {
                        assert!(json.taken(b','), "{text}");
                        assert_eq!(json.string().unwrap(), "next");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_what_serde_json_reads() {
        for number in [
            "0",
            "7",
            "00",
            "01",
            "-0",
            "-1",
            "1.0",
            "1e3",
            "4294967295",
            "4294967296",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "",
            "+1",
            "0x1",
            "null",
            "1 ",
            " 1",
        ] {
            for end in [",", "}", " }", "]"] {
                let text = format!("{number}{end}");
                let number = number.trim();
                let unsigned: Option<u64> = serde_json::from_str(number).ok();
                let short: Option<u32> = serde_json::from_str(number).ok();
                let signed: Option<i64> = serde_json::from_str(number).ok();
                let found = Json::new(&text).number().ok();
                assert_eq!(found, unsigned, "{text}");
                let found = Json::new(&text).number().ok();
                assert_eq!(found, short, "{text}");
                let found = Json::new(&text).number().ok();
                assert_eq!(found, signed, "{text}");
            }
        }
    }

    #[test]
    fn objects_and_arrays_end_where_they_should() {
        let read = |text: &str| {
            let mut json = Json::new(text);
            let mut seen = Vec::new();
            json.object(|json, key| {
                seen.push(key.to_owned());
                match key {
                    "list" => {
                        json.array(|json| json.number::<u64>().map(|n| seen.push(n.to_string())))
                    }
                    _ => json.skip(),
                }
            })?;
            json.end().map(|()| seen.join(" "))
        };
        let all = " { \"list\" : [ 1 , 2 ] , \"x\" : { \"y\" : [ ] } } ";
        assert_eq!(read(all).unwrap(), "list 1 2 x");
        assert_eq!(read("{}").unwrap(), "");
        assert_eq!(read("{\"list\":[]}").unwrap(), "list");
        for text in [
            "",
            "{",
            "[]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,}",
            "{,}",
            "{\"list\":[1,]}",
            "{\"list\":[1",
            "{\"list\":[,1]}",
            "{a:1}",
            "{} {}",
            "{}x",
            "{\"a\" 1}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}

//! The program that the demonstration runs in its image, and the file that it reads there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The hidden verb that runs it.
pub const VERB: &str = "demo-program";

/// Bytes in each line of the data file.
pub const LINE_BYTES: u64 = 64;

/// Line `number` of the data file: its number and what nobody compresses well.
fn line(number: u64) -> [u8; LINE_BYTES as usize] {
    let [a, b, c] = [1, 2, 3].map(|part| mixed(number.wrapping_mul(3).wrapping_add(part)));
    let mut line = [b'\n'; LINE_BYTES as usize];
    write!(&mut line[..], "{number:010} {a:016x} {b:016x} {c:018x}")
        .expect("10 + 16 + 16 + 18 digits and spaces are 63 bytes");
    line
}

/// SplitMix64's output for one state (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The data file's bytes, without end, made as they are read.
#[derive(Default)]
pub struct Lines {
    next: u64,
    /// The rest of a line that did not fit.
    rest: Vec<u8>,
}

impl Read for Lines {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let wanted = to.len();
        let mut room = to;
        while !room.is_empty() {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&line(self.next));
                self.next += 1;
            }
            let len = room.len().min(self.rest.len());
            let (filled, left) = room.split_at_mut(len);
            filled.copy_from_slice(&self.rest[..len]);
            self.rest.drain(..len);
            room = left;
        }
        Ok(wanted)
    }
}

/// Says where it runs, then shows three lines of `data`, each of which must be what it was when the
/// image was made. Reads a few hundred bytes of the file, wherever they are.
pub fn run(data: &Path, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "hello from {}", system_name())?;
    let file = File::open(data)?;
    let lines = file.metadata()?.len() / LINE_BYTES;
    let last = lines
        .checked_sub(1)
        .ok_or_else(|| io::Error::other(format!("{}: has no lines", data.display())))?;
    for number in [0, last / 2, last] {
        let mut found = [0; LINE_BYTES as usize];
        file.read_exact_at(&mut found, number * LINE_BYTES)?;
        if found != line(number) {
            let problem = format!("{}, line {number}: not what was written", data.display());
            return Err(io::Error::other(problem));
        }
        let text = String::from_utf8_lossy(&found);
        writeln!(
            to,
            "line {number} of {}: {}",
            data.display(),
            text.trim_end()
        )?;
    }
    Ok(())
}

/// What `/etc/os-release` calls the system (os-release(5)).
fn system_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("an image").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_file_is_lines_of_64_bytes_however_it_is_read() {
        let mut whole = vec![0; 640];
        Lines::default().read_exact(&mut whole).unwrap();
        assert_eq!(whole.iter().filter(|&&byte| byte == b'\n').count(), 10);
        assert_eq!(whole[9 * 64..], line(9));
        let mut lines = Lines::default();
        let mut parts = Vec::new();
        for len in [1, 62, 2, 75, 500] {
            let mut part = vec![0; len];
            lines.read_exact(&mut part).unwrap();
            parts.extend(part);
        }
        assert_eq!(parts, whole);
    }

    #[test]
    fn the_program_shows_lines_and_notices_other_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("lines");
        let mut bytes = vec![0; 6400];
        Lines::default().read_exact(&mut bytes).unwrap();
        std::fs::write(&data, &bytes).unwrap();
        let mut said = Vec::new();
        run(&data, &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.lines().count(), 4);
        assert!(said.starts_with("hello from ") && said.contains("line 99 of "));
        bytes[6399] = 0;
        std::fs::write(&data, &bytes).unwrap();
        let err = run(&data, &mut Vec::new()).unwrap_err().to_string();
        assert!(err.contains("line 99: not what was written"), "{err}");
        std::fs::write(&data, "").unwrap();
        assert!(run(&data, &mut Vec::new()).is_err());
    }
}

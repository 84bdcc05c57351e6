//! Programs and libraries as their loader reads them (ELF, `elf.5`, System V ABI, chapters 4 and 5), in so far as that tells
//! what it will read next: where a file names the libraries that it needs, and which. Bytes come in, values out; what they
//! say is a hint.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What every such file begins with.
pub const MAGIC: [u8; 4] = *b"\x7fELF";

/// So many bytes from the start hold the header and, in nearly all files, the table of segments behind it.
pub const HEAD_BYTES: u64 = 4096;

/// A table of what is needed is never longer; most have less than a kilobyte.
const DYNAMIC_BYTES_LIMIT: u64 = 64 << 10;

/// Names of symbols stand among those of libraries: large libraries have megabytes.
const STRINGS_BYTES_LIMIT: u64 = 8 << 20;

/// Libraries that one file needs at most; more are passed over.
const NEEDED_LIMIT: usize = 256;

/// A library's name at most.
const NAME_BYTES_LIMIT: usize = 255;

/// `Elf64_Ehdr`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    class: u8,
    order: u8,
    _rest: [u8; 10],
    _kind: U16,
    _machine: U16,
    _version: U32,
    _entry: U64,
    segments_at: U64,
    _sections_at: U64,
    _flags: U32,
    _header_len: U16,
    segment_len: U16,
    segments: U16,
    _sections: [U16; 3],
}

/// `Elf64_Phdr`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Segment {
    kind: U32,
    _flags: U32,
    at: U64,
    address: U64,
    _physical: U64,
    len: U64,
    _len_in_memory: U64,
    _align: U64,
}

/// `Elf64_Dyn`.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Dynamic {
    tag: U64,
    value: U64,
}

const _: () = assert!(size_of::<Header>() == 64 && size_of::<Segment>() == 56);

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
const STRINGS_LEN: u64 = 10;

/// A program or library by its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where in the file the table of what it needs is.
    pub dynamic: Range<u64>,
    /// Where in the file the path of its loader is, if it names one.
    pub interpreter: Option<Range<u64>>,
    /// Parts of the file, and the addresses at which they begin in memory.
    loaded: Vec<(Range<u64>, u64)>,
}

impl Program {
    /// The program that begins with `head`, of 64 bits and little-endian as nearly all are; `None` for others, and for those that
    /// are linked statically.
    pub fn of(head: &[u8]) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        let is_known =
            header.magic == MAGIC && (header.class, header.order) == (CLASS_64, LITTLE_ENDIAN);
        if !is_known || usize::from(header.segment_len) != size_of::<Segment>() {
            return None;
        }
        let at = usize::try_from(header.segments_at.get()).ok()?;
        let (segments, _) =
            <[Segment]>::ref_from_prefix_with_elems(head.get(at..)?, usize::from(header.segments))
                .ok()?;
        let (mut dynamic, mut interpreter, mut loaded) = (None, None, Vec::new());
        for segment in segments {
            let place = segment.at.get()..segment.at.get().checked_add(segment.len.get())?;
            match segment.kind.get() {
                LOAD => loaded.push((place, segment.address.get())),
                DYNAMIC => dynamic = Some(place),
                INTERPRETER => interpreter = Some(place),
                _ => {}
            }
        }
        let dynamic = dynamic?;
        (dynamic.end - dynamic.start <= DYNAMIC_BYTES_LIMIT).then_some(Self {
            dynamic,
            interpreter,
            loaded,
        })
    }

    /// Where in the file the names are that `dynamic`, the bytes at [`Program::dynamic`], refers to.
    pub fn strings(&self, dynamic: &[u8]) -> Option<Range<u64>> {
        let value = |tag| {
            let mut entries = entries(dynamic);
            entries.find_map(|entry| (entry.tag == tag).then(|| entry.value.get()))
        };
        let (address, len) = (value(STRINGS)?, value(STRINGS_LEN)?);
        let at = self.loaded.iter().find_map(|(place, from)| {
            let inside = address.checked_sub(*from)?;
            (inside < place.end - place.start).then(|| place.start + inside)
        })?;
        let end = at.checked_add(len)?;
        (len <= STRINGS_BYTES_LIMIT).then_some(at..end)
    }
}

/// The names of the libraries that `dynamic` tells of, in their order, from `strings`, the bytes at [`Program::strings`]. Names
/// that are paths are passed over.
pub fn needed<'a>(dynamic: &'a [u8], strings: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let needed = entries(dynamic).filter(|entry| entry.tag == NEEDED);
    needed.take(NEEDED_LIMIT).filter_map(|entry| {
        let rest = strings.get(usize::try_from(entry.value.get()).ok()?..)?;
        let name = rest.split(|&byte| byte == 0).next()?;
        let is_name = !name.is_empty() && name.len() <= NAME_BYTES_LIMIT && !name.contains(&b'/');
        is_name.then_some(name)
    })
}

/// The entries up to the one of tag 0, which ends them.
fn entries(dynamic: &[u8]) -> impl Iterator<Item = &Dynamic> {
    let whole = dynamic.len() / size_of::<Dynamic>();
    let entries = <[Dynamic]>::ref_from_prefix_with_elems(dynamic, whole);
    let entries = entries.map_or(&[][..], |(entries, _)| entries);
    entries.iter().take_while(|entry| entry.tag != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn part(file: &[u8], place: Range<u64>) -> &[u8] {
        &file[place.start as usize..place.end as usize]
    }

    #[test]
    fn a_program_tells_the_libraries_that_readelf_finds() {
        let place = std::env::current_exe().unwrap();
        let file = fs::read(&place).unwrap();
        let program = Program::of(&file[..HEAD_BYTES as usize]).unwrap();
        let dynamic = part(&file, program.dynamic.clone());
        let strings = part(&file, program.strings(dynamic).unwrap());
        let names: Vec<&[u8]> = needed(dynamic, strings).collect();
        let told = Command::new("readelf").arg("-d").arg(&place).output();
        let told = String::from_utf8(told.unwrap().stdout).unwrap();
        let lines = told.lines().filter(|line| line.contains("(NEEDED)"));
        let expected: Vec<&[u8]> = lines
            .map(|line| line.split(['[', ']']).nth(1).unwrap().as_bytes())
            .collect();
        assert_eq!(names, expected);
        assert!(!names.is_empty());
        let interpreter = part(&file, program.interpreter.unwrap());
        assert!(interpreter.starts_with(b"/lib"), "{interpreter:?}");
    }

    #[test]
    fn what_is_no_program_or_a_damaged_one_is_none_and_never_a_crash() {
        let place = std::env::current_exe().unwrap();
        let head = &fs::read(place).unwrap()[..HEAD_BYTES as usize];
        for len in 0..1000 {
            assert_eq!(Program::of(&vec![0; len]), None);
            let _ = Program::of(&head[..len]);
        }
        for at in 0..600 {
            for flipped in [1, 0x80, 0xff] {
                let mut damaged = head.to_vec();
                damaged[at] ^= flipped;
                if let Some(program) = Program::of(&damaged) {
                    let _ = program.strings(&damaged);
                    let _ = needed(&damaged, &damaged).count();
                }
            }
        }
    }
}

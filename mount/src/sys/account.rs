//! What the host's user database says of a number: /etc/passwd, LDAP, whatever is configured.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// A user as the database tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: Vec<u8>,
    /// Primary group.
    pub gid: u32,
    /// Full name and such.
    pub comment: Vec<u8>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

/// Bytes for one record at most; a group of a large site lists thousands of members.
const RECORD_BYTES_LIMIT: usize = 8 << 20;

/// The user with this number, if the database knows one.
pub fn user(uid: u32) -> io::Result<Option<User>> {
    let mut record = MaybeUninit::<libc::passwd>::uninit();
    with_room(|room| {
        let mut found = ptr::null_mut();
        // SAFETY: the record and `found` are ours to write, `room` is as long as is said.
        let error = unsafe {
            libc::getpwuid_r(
                uid,
                record.as_mut_ptr(),
                room.as_mut_ptr().cast(),
                room.len(),
                &mut found,
            )
        };
        if error != 0 || found.is_null() {
            return Err(error);
        }
        // SAFETY: success and a pointer that is not null mean that the record was filled.
        let record = unsafe { record.assume_init_ref() };
        Ok(User {
            name: text(record.pw_name),
            gid: record.pw_gid,
            comment: text(record.pw_gecos),
            home: text(record.pw_dir),
            shell: text(record.pw_shell),
        })
    })
}

/// The name of the group with this number, if the database knows one.
pub fn group_name(gid: u32) -> io::Result<Option<Vec<u8>>> {
    let mut record = MaybeUninit::<libc::group>::uninit();
    with_room(|room| {
        let mut found = ptr::null_mut();
        // SAFETY: the record and `found` are ours to write, `room` is as long as is said.
        let error = unsafe {
            libc::getgrgid_r(
                gid,
                record.as_mut_ptr(),
                room.as_mut_ptr().cast(),
                room.len(),
                &mut found,
            )
        };
        if error != 0 || found.is_null() {
            return Err(error);
        }
        // SAFETY: success and a pointer that is not null mean that the record was filled.
        let record = unsafe { record.assume_init_ref() };
        Ok(text(record.gr_name))
    })
}

/// Calls `ask` with more and more room while it says that there is too little. `ask` fails with the
/// number of its error; 0 and the numbers that getpwuid_r(3) lists for it mean that nobody was found.
fn with_room<T>(mut ask: impl FnMut(&mut [u8]) -> Result<T, i32>) -> io::Result<Option<T>> {
    let mut room = vec![0; 4 << 10];
    loop {
        match ask(&mut room) {
            Ok(found) => return Ok(Some(found)),
            Err(libc::ERANGE) if room.len() < RECORD_BYTES_LIMIT => room.resize(room.len() * 4, 0),
            Err(libc::EINTR) => {}
            Err(0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM) => return Ok(None),
            Err(error) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// The bytes of a C string in a record that was just filled; none for a null pointer.
fn text(string: *const libc::c_char) -> Vec<u8> {
    if string.is_null() {
        return Vec::new();
    }
    // SAFETY: getpwuid_r and getgrgid_r end each string with a NUL inside the room that the caller
    // still borrows.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_a_number_without_a_name_is_nobody() {
        let root = user(0).unwrap().unwrap();
        assert_eq!((root.name.as_slice(), root.gid), (&b"root"[..], 0));
        assert_eq!(user(3_999_999_999).unwrap(), None);
        assert_eq!(group_name(0).unwrap().as_deref(), Some(&b"root"[..]));
        assert_eq!(group_name(3_999_999_999).unwrap(), None);
    }
}

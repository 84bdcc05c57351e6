//! Who runs the program: the caller, with the lines that /etc/passwd and /etc/group need for that.

use std::io;
use std::path::PathBuf;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use sifon_mount::sys::account::{self, User};

/// The calling user as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Record in the user database; a number without a name has none.
    pub user: Option<User>,
    /// The primary group first, then the others, each with its name if it has one.
    pub groups: Vec<(u32, Option<Vec<u8>>)>,
}

impl Identity {
    /// The caller's. Asks the user database, which may be a server on the network, for names.
    pub fn of_caller() -> io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let mut numbers = vec![gid];
        for group in rustix::process::getgroups()? {
            if !numbers.contains(&group.as_raw()) {
                numbers.push(group.as_raw());
            }
        }
        let named = |gid| account::group_name(gid).map(|name| (gid, name));
        let groups = numbers.into_iter().map(named).collect::<io::Result<_>>()?;
        Ok(Self {
            uid,
            gid,
            user: account::user(uid)?,
            groups,
        })
    }

    /// Root, whom the caller is inside, at home where the caller is.
    pub fn root() -> io::Result<Self> {
        let caller = Self::of_caller()?;
        let home = caller.user.map(|user| user.home);
        let user = account::user(0)?.map(|root| User {
            home: home.unwrap_or_else(|| root.home.clone()),
            ..root
        });
        Ok(Self {
            uid: 0,
            gid: 0,
            user,
            groups: Vec::new(),
        })
    }

    /// The home directory that the database names, if it is an absolute path.
    pub fn home(&self) -> Option<PathBuf> {
        let home = PathBuf::from(OsString::from_vec(self.user.as_ref()?.home.clone()));
        home.is_absolute().then_some(home)
    }
}

/// The image's /etc/passwd with the caller's line: in place of the one with the same number, else last.
pub fn passwd(image: &[u8], identity: &Identity) -> Vec<u8> {
    let Some(user) = &identity.user else {
        return image.to_vec();
    };
    let uid = identity.uid.to_string();
    let gid = identity.gid.to_string();
    let fields: [&[u8]; 7] = [
        &user.name,
        b"x",
        uid.as_bytes(),
        gid.as_bytes(),
        &user.comment,
        &user.home,
        &user.shell,
    ];
    let own = fields.map(without_separators).join(&b':');
    let mut lines = lines(image);
    match lines
        .iter_mut()
        .find(|line| number_in(line) == Some(identity.uid))
    {
        Some(line) => *line = &own,
        None => lines.push(&own),
    }
    joined(&lines)
}

/// The image's /etc/group with a line for each of the caller's groups that it does not number.
pub fn group(image: &[u8], identity: &Identity) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = lines(image).into_iter().map(<[u8]>::to_vec).collect();
    let member = identity.user.as_ref().map_or(&b""[..], |user| &user.name);
    for (gid, name) in &identity.groups {
        let Some(name) = name else { continue };
        if !lines.iter().any(|line| number_in(line) == Some(*gid)) {
            let gid = gid.to_string();
            let fields: [&[u8]; 4] = [name, b"x", gid.as_bytes(), member];
            lines.push(fields.map(without_separators).join(&b':'));
        }
    }
    joined(&lines.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The third field, which is the number in both files.
fn number_in(line: &[u8]) -> Option<u32> {
    let field = line.split(|&byte| byte == b':').nth(2)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn lines(file: &[u8]) -> Vec<&[u8]> {
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    if file.is_empty() {
        return Vec::new();
    }
    file.split(|&byte| byte == b'\n').collect()
}

fn joined(lines: &[&[u8]]) -> Vec<u8> {
    let mut file = lines.join(&b'\n');
    if !file.is_empty() {
        file.push(b'\n');
    }
    file
}

/// A field that cannot begin another field or line.
fn without_separators(field: &[u8]) -> Vec<u8> {
    field
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b':' | b'\n' | 0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada() -> Identity {
        Identity {
            uid: 1000,
            gid: 100,
            user: Some(User {
                name: b"ada".to_vec(),
                gid: 100,
                comment: b"Ada L.".to_vec(),
                home: b"/home/ada".to_vec(),
                shell: b"/bin/zsh".to_vec(),
            }),
            groups: vec![
                (100, Some(b"users".to_vec())),
                (7, None),
                (2000, Some(b"lab".to_vec())),
            ],
        }
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_callers_line_is_added_to_passwd_or_replaces_the_one_with_its_number() {
        let own = "ada:x:1000:100:Ada L.:/home/ada:/bin/zsh\n";
        for (image, expected) in [
            ("", own.to_owned()),
            (
                "root:x:0:0::/:/bin/sh\n",
                format!("root:x:0:0::/:/bin/sh\n{own}"),
            ),
            (
                "root:x:0:0::/:/bin/sh",
                format!("root:x:0:0::/:/bin/sh\n{own}"),
            ),
            (
                "app:x:1000:1::/srv:\nlast:x:2:2::/:\n",
                format!("{own}last:x:2:2::/:\n"),
            ),
            ("not a record\n", format!("not a record\n{own}")),
        ] {
            assert_eq!(text(passwd(image.as_bytes(), &ada())), expected);
        }
    }

    #[test]
    fn groups_that_the_image_does_not_number_are_added_if_they_have_a_name() {
        let group = text(group(b"staff:x:100:\n", &ada()));
        assert_eq!(group, "staff:x:100:\nlab:x:2000:ada\n");
    }

    #[test]
    fn a_record_with_separators_in_it_adds_one_line_only() {
        let mut identity = ada();
        let user = identity.user.as_mut().unwrap();
        user.comment = b"x:y\nroot::0:0::/:/bin/sh".to_vec();
        assert_eq!(text(passwd(b"", &identity)).lines().count(), 1);
        assert_eq!(text(passwd(b"", &identity)).split(':').count(), 7);
    }

    #[test]
    fn a_user_without_a_name_leaves_the_files_as_they_are() {
        let identity = Identity {
            user: None,
            groups: vec![(5, None)],
            ..ada()
        };
        assert_eq!(passwd(b"a:x:1:1::/:\n", &identity), b"a:x:1:1::/:\n");
        assert_eq!(group(b"a:x:1:\n", &identity), b"a:x:1:\n");
    }
}

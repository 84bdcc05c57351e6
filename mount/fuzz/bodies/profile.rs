//! A profile, which may come from anybody, is refused or reads back as it was written, and nothing in it is out of bounds.

use sifon_mount::image::profile::{PARTS_LIMIT, Profile};

pub fn run(bytes: &[u8]) {
    let Ok(profile) = Profile::parse(bytes) else {
        return;
    };
    assert!(profile.parts.len() <= PARTS_LIMIT);
    assert!(profile.parts.iter().all(|part| !part.bytes.is_empty()));
    assert_eq!(
        Profile::parse(profile.text().as_bytes()).as_ref(),
        Ok(&profile)
    );
    let after = profile.after(profile.parts.clone(), true);
    assert!(after.parts.len() >= profile.parts.len().min(1));
}

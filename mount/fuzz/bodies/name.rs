//! A normalised name stays inside the image and is its own normal form.

use sifon_mount::layer::entry::normalised;

pub fn run(bytes: &[u8]) {
    let Ok(path) = normalised(bytes) else {
        return;
    };
    assert_eq!(normalised(&path).as_ref(), Ok(&path));
    assert!(!path.starts_with(b"/") && !path.ends_with(b"/"));
    let mut components = path.split(|&byte| byte == b'/');
    assert!(components.all(|component| component != b".." && component != b"."));
}

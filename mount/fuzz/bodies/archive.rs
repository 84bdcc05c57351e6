//! Any file as an archive of an image: an error, or an image whose layers can be asked for.

use std::io::{Read, Write};

use sifon_mount::reference::Reference;
use sifon_mount::registry::Settings;
use sifon_mount::source::Source;

pub fn run(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let path = file.path().to_owned();
    let settings = Settings::default();
    for reference in [
        Reference::OciArchive {
            file: path.clone(),
            tag: None,
        },
        Reference::DockerArchive {
            file: path.clone(),
            tag: None,
        },
    ] {
        if let Ok(source) = Source::open(&reference, &settings) {
            read(&source, bytes.len());
        }
    }
}

fn read(source: &Source, file_len: usize) {
    let Ok(image) = source.resolve().and_then(|top| source.image(top)) else {
        return;
    };
    let _ = source.config(&image.manifest.config);
    for layer in &image.manifest.layers {
        let Ok(mut stream) = source.blob(layer).stream() else {
            continue;
        };
        let mut content = Vec::new();
        if stream.read_to_end(&mut content).is_ok() {
            assert_eq!(content.len() as u64, layer.size);
            assert!(content.len() <= file_len);
        }
    }
}

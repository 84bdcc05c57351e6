//! Files that Apptainer 1.4.5 signed, and files that we sign.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sifon_mount::source::sif::Sif;

use super::*;
use crate::pack::sif::{Identity, Writer};

const PGP: &[u8] = include_bytes!("samples/pgp.sif.zst");
const P384: &[u8] = include_bytes!("samples/p384.sif.zst");
const KEYRING: &[u8] = include_bytes!("samples/pgp-public");
const P384_KEY: &[u8] = include_bytes!("samples/p384.pem");

/// A file with these bytes, in a directory that goes with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The user's keyring.
    fn keyring(&self) -> Material {
        self.file("pgp-public", KEYRING);
        Material::Pgp(Keyring::of_user(Some(self.0.path())).unwrap())
    }

    fn key(&self, pem: &[u8]) -> Material {
        Material::Pem(PublicKey::open(&self.file("key.pem", pem)).unwrap())
    }
}

fn unpacked(sample: &[u8]) -> Vec<u8> {
    zstd::decode_all(sample).unwrap()
}

fn checked(
    path: &Path,
    selection: &Selection,
    material: &Material,
) -> Result<Vec<Verified>, VerifyError> {
    let file = File::open(path).unwrap();
    let sif = Sif::open(&file).unwrap();
    let mut all = Vec::new();
    verify(&file, &sif, selection, material, |verified| {
        all.push(verified.clone())
    })?;
    Ok(all)
}

fn everything() -> Selection {
    Selection::default()
}

#[test]
fn what_apptainer_signed_with_pgp_holds() {
    let place = Place::new();
    let path = place.file("x.sif", &unpacked(PGP));
    let verified = checked(&path, &everything(), &place.keyring()).unwrap();
    assert_eq!(verified.len(), 1);
    assert_eq!(
        (verified[0].signature, &*verified[0].objects),
        (3, &[1, 2][..])
    );
    let Signer::Pgp(signatory) = &verified[0].signer else {
        panic!("{verified:?}");
    };
    assert_eq!(signatory.name, "Test Person (a comment) <t@example.org>");
    assert_eq!(signatory.fingerprint[..3], [0xb8, 0x74, 0x9a]);
    let one = Selection {
        objects: vec![2],
        ..Selection::default()
    };
    let verified = checked(&path, &one, &place.keyring()).unwrap();
    assert_eq!(verified[0].objects, [2]);
}

#[test]
fn what_apptainer_signed_with_a_pem_key_holds() {
    let place = Place::new();
    let path = place.file("x.sif", &unpacked(P384));
    let verified = checked(&path, &everything(), &place.key(P384_KEY)).unwrap();
    assert_eq!(
        (&verified[0].signer, &*verified[0].objects),
        (&Signer::Key, &[1, 2][..])
    );
}

#[test]
fn each_failure_is_told_from_the_others() {
    let place = Place::new();
    let pgp = place.file("pgp.sif", &unpacked(PGP));
    let pem = place.file("pem.sif", &unpacked(P384));
    let empty = Material::Pgp(Keyring::of_user(Some(&place.0.path().join("nothing"))).unwrap());
    let said = |path: &Path, selection: &Selection, material: &Material| {
        checked(path, selection, material).unwrap_err().to_string()
    };
    let unknown = said(&pgp, &everything(), &empty);
    assert!(
        unknown.contains("signature made by unknown entity, key B8749A"),
        "{unknown}"
    );
    let other_kind = said(&pem, &everything(), &empty);
    assert!(other_kind.ends_with("key material not provided for DSSE envelope signature"));
    let other_kind = said(&pgp, &everything(), &place.key(P384_KEY));
    assert!(other_kind.ends_with("key material not provided for PGP clear-sign signature"));
    let (_, stranger) = ed25519();
    let invalid = said(&pem, &everything(), &place.key(&stranger));
    assert!(
        invalid.contains("signature object 3 not valid: dsse"),
        "{invalid}"
    );
    let group = Selection {
        groups: vec![7],
        ..Selection::default()
    };
    assert_eq!(said(&pgp, &group, &empty), "group 7: group not found");
    let object = Selection {
        objects: vec![9],
        ..Selection::default()
    };
    assert_eq!(said(&pgp, &object, &empty), "object 9: object not found");
    let unsigned = place.file("unsigned.sif", &sample());
    let said = said(&unsigned, &everything(), &empty);
    assert_eq!(said, "signature not found for object group 1");
}

/// Every byte that a signature covers, and none that it does not.
#[test]
fn no_byte_that_was_signed_can_be_changed() {
    let place = Place::new();
    let (keyring, key) = (place.keyring(), place.key(P384_KEY));
    for (sample, material) in [(PGP, &keyring), (P384, &key)] {
        let whole = unpacked(sample);
        let table = 4096;
        let covered = [
            (0..4, true),                     // the launch line
            (48..50, true),                   // the name
            (45..46, false),                  // the architecture
            (64..66, false),                  // the time
            (table + 41..table + 42, true),   // when the first object was made
            (table + 73..table + 74, true),   // its name
            (table + 201..table + 202, true), // what is special to its type
            (table + 49..table + 50, false),  // when it was changed
            (table + 585..table + 586, true), // the type of the second
            (32_176..32_180, true),           // the first object
            (32_190..32_193, true),
            (32_200..32_204, false), // between both
            (32_768..32_770, true),  // the second
            (36_863..36_864, true),
        ];
        for (range, is_covered) in covered {
            for at in range {
                let mut changed = whole.clone();
                changed[at] ^= 0x20;
                let path = place.file("changed.sif", &changed);
                let outcome = checked(&path, &everything(), material);
                assert_eq!(outcome.is_err(), is_covered, "byte {at}: {outcome:?}");
            }
        }
        // Nor the signature itself, whatever becomes of it.
        let at = 36_864;
        for byte in (at..whole.len()).step_by(29) {
            let mut changed = whole.clone();
            changed[byte] ^= 0x04;
            let path = place.file("changed.sif", &changed);
            if checked(&path, &everything(), material).is_ok() {
                // What is not signed and not needed: header lines, the key's name, unhashed parts.
                let told = checked(&path, &everything(), material).unwrap();
                assert_eq!(told[0].objects, [1, 2]);
            }
        }
    }
}

fn append(file: &File, sif: &Sif, object: &crate::pack::sif::Appended<'_>, bytes: &[u8]) {
    let write = |at| {
        file.write_all_at(bytes, at)?;
        Ok::<_, std::io::Error>(bytes.len() as u64)
    };
    crate::pack::sif::append(file, sif, object, 0, write).unwrap();
}

#[test]
fn an_object_that_joins_a_signed_group_is_noticed() {
    let place = Place::new();
    let keyring = place.keyring();
    for group in [0xf000_0001_u32, 0xf000_0000, 0xf000_0002] {
        let path = place.file("more.sif", &unpacked(PGP));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let sif = Sif::open(&file).unwrap();
        let appended = crate::pack::sif::Appended {
            object_type: 0x4006,
            group,
            linked: 0,
            extra: &[],
            alignment: 1,
        };
        append(&file, &sif, &appended, b"{}");
        let err = checked(&path, &everything(), &keyring).unwrap_err();
        assert!(!matches!(err, VerifyError::Invalid { .. }), "{err}");
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = BASE64_STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

fn ed25519() -> (Vec<u8>, Vec<u8>) {
    let pair = Ed25519KeyPair::generate().unwrap();
    let private = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    let public = pair.public_key().as_der().unwrap();
    (
        pem("PRIVATE KEY", private.as_ref()),
        pem("PUBLIC KEY", public.as_ref()),
    )
}

fn p256() -> (Vec<u8>, Vec<u8>) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let private = pair.private_key().as_der().unwrap();
    let public = pair.public_key().as_der().unwrap();
    (
        pem("EC PRIVATE KEY", private.as_ref()),
        pem("PUBLIC KEY", public.as_ref()),
    )
}

fn rsa() -> (Vec<u8>, Vec<u8>) {
    let pair = RsaPair::generate(KeySize::Rsa2048).unwrap();
    let private = pair.as_der().unwrap();
    let public = pair.public_key().as_der().unwrap();
    (
        pem("PRIVATE KEY", private.as_ref()),
        pem("PUBLIC KEY", public.as_ref()),
    )
}

/// A SIF of ours.
fn sample() -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let identity = Identity {
        uuid: [7; 16],
        created: 1_700_000_000,
        architecture: "amd64".into(),
    };
    let mut writer = Writer::new(&file, identity);
    writer.deffile("bootstrap: docker\n").unwrap();
    let partition = |file: &File, at| {
        file.write_all_at(b"hsqs and so on", at)?;
        Ok::<_, std::io::Error>(14)
    };
    writer.partition(partition).unwrap();
    let len = writer.finish().unwrap();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_we_sign_holds_with_that_key_and_no_other() {
    let place = Place::new();
    for (private, public) in [ed25519(), p256(), rsa()] {
        let path = place.file("x.sif", &sample());
        fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
        let key = PrivateKey::open(&place.file("private.pem", &private)).unwrap();
        sign(&path, &everything(), &key, 1_700_000_001).unwrap();
        let verified = checked(&path, &everything(), &place.key(&public)).unwrap();
        assert_eq!(
            (verified[0].signature, &*verified[0].objects),
            (3, &[1, 2][..])
        );
        let (_, other) = p256();
        checked(&path, &everything(), &place.key(&other)).unwrap_err();
        // The rest of the file is as it was.
        let signed = fs::read(&path).unwrap();
        assert_eq!(signed[32_176..][..18], sample()[32_176..][..18]);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o750
        );
        let names = fs::read_dir(place.0.path()).unwrap().count();
        assert_eq!(names, 3);
    }
}

#[test]
fn one_who_has_the_file_open_keeps_what_was_there() {
    let place = Place::new();
    let path = place.file("x.sif", &sample());
    let link = place.0.path().join("link.sif");
    std::os::unix::fs::symlink("x.sif", &link).unwrap();
    let open = File::open(&path).unwrap();
    let key = PrivateKey::open(&place.file("private.pem", &ed25519().0)).unwrap();
    sign(&link, &everything(), &key, 0).unwrap();
    assert_eq!(open.metadata().unwrap().len(), sample().len() as u64);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(
        Sif::open(File::open(&path).unwrap()).unwrap().objects.len(),
        3
    );
}

#[test]
fn a_full_table_is_refused_and_the_file_stays() {
    let place = Place::new();
    let mut bytes = sample();
    // Room for the two objects that there are.
    bytes[88] = 2;
    let path = place.file("x.sif", &bytes);
    let key = PrivateKey::open(&place.file("private.pem", &ed25519().0)).unwrap();
    let err = sign(&path, &everything(), &key, 0).unwrap_err();
    let said = std::error::Error::source(&err).unwrap().to_string();
    assert!(said.contains("insufficient descriptor capacity"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 2);
}

#[test]
fn what_is_no_key_is_refused_with_its_name() {
    let place = Place::new();
    for (bytes, word) in [
        (&b""[..], "no PEM block"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "not RSA",
        ),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "password",
        ),
    ] {
        let path = place.file("x.pem", bytes);
        let err = PrivateKey::open(&path).err().unwrap().to_string();
        assert!(err.contains("x.pem") && err.contains(word), "{err}");
        PublicKey::open(&path).unwrap_err();
    }
    PublicKey::open(&place.0.path().join("missing")).unwrap_err();
    place.file("pgp-public", b"no keyring");
    assert!(Keyring::of_user(Some(place.0.path())).is_err());
}

/// Bytes of any kind where a signature is expected.
#[test]
fn a_damaged_signature_is_an_error_and_never_a_crash() {
    let place = Place::new();
    let keyring = place.keyring();
    for bytes in [
        &b""[..],
        b"{}",
        b"{\"payloadType\":\"application/vnd.sylabs.sif-metadata+json\",\"payload\":\"!\"}",
        b"-----BEGIN PGP SIGNED MESSAGE-----\n",
        b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSIFHASH:\nabc\n-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----",
        &[0xff; 300],
    ] {
        let path = place.file("x.sif", &sample());
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        file.flush().unwrap();
        let appended = crate::pack::sif::Appended {
            object_type: 0x4005,
            group: 0xf000_0000,
            linked: 0xf000_0001,
            extra: &[],
            alignment: 1,
        };
        let sif = Sif::open(&file).unwrap();
        append(&file, &sif, &appended, bytes);
        checked(&path, &everything(), &keyring).unwrap_err();
        checked(&path, &everything(), &place.key(P384_KEY)).unwrap_err();
    }
}

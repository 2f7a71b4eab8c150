//! Sealed secrets in files that the host copies in, as kubelet makes them of a Secret: opened while the copy is on its way, so that a container
//! finds the secret at its first look, and so does whoever looks after a refresh. The policy is asked about the sealed text, which is what came.
//!
//! Only a text that the owner has bound by its digest is opened, for images that he has named. A host could else copy another container's
//! secret to where this one prints what it finds; such a copy is refused, and so is one that cannot be opened.

use crate::secrets::is_sealed;
use attestation::{
    ResourceUri,
    sealed::{self, MAX_SEALED, PREFIX},
};
use policy::{Copied, CopiedEntry};
use protocol::volume::VolumeError;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use zeroize::Zeroizing;

/// Opens what is sealed in `copied`, which lies at `staging`. `may_open` says of a file's path and digest whether the owner wrote it for here;
/// `fetch` gets resources from the broker, or says why not.
pub async fn open<F, R>(staging: &Path, copied: &Copied, may_open: impl Fn(&str, &str) -> bool, fetch: F) -> Result<(), VolumeError>
where
    F: Fn(ResourceUri) -> R,
    R: Future<Output = Result<Zeroizing<Vec<u8>>, String>>,
{
    for entry in &copied.entries {
        let CopiedEntry::File { path, digest } = entry else { continue };
        let (file, text) = match read(staging, path)? {
            (file, Some(text)) => (file, text),
            (_, None) => continue,
        };
        let name = if path.is_empty() { copied.destination.clone() } else { format!("{}/{path}", copied.destination) };
        let failed = |reason: &str| VolumeError::Entry(format!("file {name}: {reason}"));
        if !may_open(path, digest) {
            return Err(failed(
                "sealed, and opened only where a [[container]] or [[image]] is named and its digest stands behind the path in files",
            ));
        }
        let secret = sealed::unseal(&text, &fetch).await.map_err(|e| failed(&e.to_string()))?;
        write(file, &secret)?;
    }
    Ok(())
}

/// The file, and its text if it is sealed; a line's end behind it is the editor's. No part of the path is a link: the copy was made so.
fn read(staging: &Path, path: &str) -> io::Result<(File, Option<Zeroizing<String>>)> {
    let place = if path.is_empty() { staging.to_owned() } else { staging.join(path) };
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(place)?;
    let mut begin = Vec::new();
    (&file).take(PREFIX.len() as u64).read_to_end(&mut begin)?;
    if begin != PREFIX.as_bytes() || file.metadata()?.len() > MAX_SEALED as u64 {
        return Ok((file, None));
    }
    let mut text = Zeroizing::new(String::from(PREFIX));
    let is_text = file.read_to_string(&mut text);
    let sealed = is_text.ok().map(|_| Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())).filter(|text| is_sealed(text));
    Ok((file, sealed))
}

/// Owner and permissions stay what they are.
fn write(mut file: File, secret: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, future, os::unix::fs::PermissionsExt};

    /// A vault secret that names `kbs:///a/secret/db`, signed by the key below.
    const SEALED: &str = "sealed.eyJhbGciOiJFUzI1NiIsImtpZCI6ImticzovLy9hL2tleXMvc2lnbiJ9.eyJ2ZXJzaW9uIjoiMC4xLjAiLCJ0eXBlIjoidmF1bHQiLCJwcm92aWRl\
         ciI6ImticyIsIm5hbWUiOiJrYnM6Ly8vYS9zZWNyZXQvZGIifQ.Pa44MmhpejjYzGAWrXUfr51CeSFSAqeWjmRnYhbRR5BGd7u3n7pnJItXyXoaU3gYTUhIH\
         7OgscpH8rnTv-HDfQ";
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEgqJwRm2sOAo3istRoc1z9DdIBkfQ\nRIBzdMup4WKiaO5f\
         HNfPk3B59sirwUz6pC1jKwuIy+6z6xAp3Lb4vo/kkA==\n-----END PUBLIC KEY-----";

    fn copied(digest: &str) -> Copied {
        let file = |path: &str| CopiedEntry::File { path: path.into(), digest: digest.into() };
        Copied {
            destination: "/etc/app".into(),
            entries: vec![CopiedEntry::Directory(String::new()), CopiedEntry::Directory("..1".into()), file("..1/db"), file("..1/plain")],
        }
    }

    async fn opened(content: &str, may_open: bool) -> (tempfile::TempDir, Result<(), String>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..1")).unwrap();
        fs::write(dir.path().join("..1/db"), content).unwrap();
        fs::write(dir.path().join("..1/plain"), "sealed with a kiss").unwrap();
        fs::set_permissions(dir.path().join("..1/db"), fs::Permissions::from_mode(0o440)).unwrap();
        let fetch = |resource: ResourceUri| {
            future::ready(match resource.path() {
                "a/keys/sign" => Ok(Zeroizing::new(KEY.as_bytes().to_vec())),
                "a/secret/db" => Ok(Zeroizing::new(b"hunter2".to_vec())),
                other => Err(format!("{other} refused")),
            })
        };
        let result =
            open(dir.path(), &copied("sha256:x"), |path, digest| may_open && (path, digest) == ("..1/db", "sha256:x"), fetch).await;
        (dir, result.map_err(|e| e.to_string()))
    }

    #[tokio::test]
    async fn a_sealed_file_is_opened_in_its_place() {
        for content in [SEALED.to_owned(), format!("{SEALED}\n")] {
            let (dir, result) = opened(&content, true).await;
            result.unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("..1/db")).unwrap(), "hunter2");
            assert_eq!(fs::read_to_string(dir.path().join("..1/plain")).unwrap(), "sealed with a kiss");
            assert_eq!(fs::metadata(dir.path().join("..1/db")).unwrap().permissions().mode() & 0o777, 0o440);
        }
    }

    #[tokio::test]
    async fn what_its_owner_did_not_put_there_is_refused() {
        let (dir, result) = opened(SEALED, false).await;
        let error = result.unwrap_err();
        assert!(error.contains("file /etc/app/..1/db: sealed") && !error.contains(SEALED), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("..1/db")).unwrap(), SEALED);
        // Changed, or not of this form at all: the one is an error, the other the program's business.
        let changed = SEALED.replace("sealed.ey", "sealed.ez");
        assert!(opened(&changed, true).await.1.is_err());
        for plain in ["sealed.", "sealed.a.b", "", "sealed", &"sealed.a.b.c".repeat(MAX_SEALED)] {
            assert_eq!(opened(plain, false).await.1, Ok(()), "{plain:.20}");
        }
    }
}

//! The port at which the host delivers copies.

use super::{Prepared, Source, Volumes, receive::receive, refresh, unseal};
use crate::{containers::served::Carrier, vsock};
use attestation::ResourceUri;
use log::{debug, info, warn};
use policy::Copied;
use protocol::{
    line,
    volume::{LONGEST, VolumeError, VolumeId},
};
use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};
use tokio::{io::BufReader, sync::Semaphore, time::timeout};
use tokio_vsock::VsockListener;

/// Copies that may be under way at the same time.
const MAX_COPIES: usize = 16;

impl Volumes {
    /// Accepts connections for ever.
    pub async fn serve(self: Arc<Self>, listener: VsockListener) {
        let copies = Arc::new(Semaphore::new(MAX_COPIES));
        loop {
            let stream = match vsock::accept(&listener).await {
                Ok(stream) => stream,
                Err(e) => {
                    warn!("volume port: {e}");
                    continue;
                }
            };
            let Ok(permit) = copies.clone().acquire_owned().await else { return };
            let volumes = self.clone();
            tokio::spawn(async move {
                if let Err(e) = volumes.take(stream).await {
                    debug!("volume: {e}");
                }
                drop(permit);
            });
        }
    }

    /// One copy, or one disk, and its answer.
    async fn take(&self, stream: impl Carrier) -> Result<(), VolumeError> {
        let mut stream = BufReader::new(stream);
        let taken = timeout(LONGEST, self.deliver(&mut stream)).await;
        let taken = taken.unwrap_or_else(|_| Err(VolumeError::Entry(format!("the copy took longer than {} s", LONGEST.as_secs()))));
        if let Err(e) = taken {
            line::refuse(&mut stream, &e.to_string()).await?;
        }
        Ok(())
    }

    async fn deliver(&self, stream: &mut BufReader<impl Carrier>) -> Result<(), VolumeError> {
        let greeting = line::read_line(stream).await?;
        let id = VolumeId::parse(&greeting)?;
        let refused = |text: &str| VolumeError::Entry(format!("{text}: {greeting}"));
        let prepared = self.of(&id.container_id).ok_or_else(|| refused("no such volume is announced"))?;
        let volume = prepared.volumes.get(id.number).ok_or_else(|| refused("no such volume is announced"))?;
        let copied = match &volume.source {
            Source::Copy(copied) => copied,
            Source::Served(wanted, place) => {
                let mut place = place.lock().await;
                if place.is_some() {
                    return Err(refused("this disk is connected already"));
                }
                line::accept(stream).await?;
                let connecting = self.served.connect(wanted).await.map_err(|e| VolumeError::Entry(e.to_string()))?;
                // Before the first request, which comes once a container has it.
                line::accept(stream).await?;
                *place = Some(connecting.carry(stream.get_ref())?);
                info!(container = id.container_id, destination = volume.destination; "disk connected");
                return Ok(());
            }
            _ => return Err(refused("nothing is to be copied here")),
        };
        // One after the other: a host that begins again may be here before its broken copy is cleared away.
        let mut copied = copied.lock().await;
        line::accept(stream).await?;
        let staging = prepared.staging(id.number);
        let result = match receive(stream, &staging, !prepared.policy.is_open()).await {
            Ok(entries) => {
                let new = Copied { destination: volume.destination.clone(), entries };
                self.settle(&prepared, id.number, copied.as_ref(), &new).await.map(|()| new)
            }
            Err(e) => Err(e),
        };
        // Left from a copy that failed, or empty after a swap.
        remove(&staging)?;
        let new = result?;
        info!(container = id.container_id, destination = volume.destination, again = copied.is_some(); "volume copied");
        *copied = Some(new);
        Ok(line::accept(stream).await?)
    }
}

impl Volumes {
    /// Puts what has come into its place, if it may be there, and opens what is sealed before.
    async fn settle(&self, prepared: &Prepared, number: usize, old: Option<&Copied>, new: &Copied) -> Result<(), VolumeError> {
        prepared.may_have(old, new)?;
        // What the host reads back stays as it came.
        if !prepared.policy.is_open() && !prepared.volumes[number].read_back {
            let broker = self.broker.get().and_then(Option::as_deref);
            let fetch = |resource: ResourceUri| async move {
                let broker = broker.ok_or("the initdata names no broker; add aa.toml to it")?;
                broker.resource(&resource).await.map_err(|e| e.to_string())
            };
            let of = prepared.of.get().copied().flatten();
            let may_open = |path: &str, digest: &str| prepared.policy.wrote(new, path, digest, of);
            unseal::open(&prepared.staging(number), new, may_open, fetch).await?;
        }
        Ok(place(prepared, number, old.is_some())?)
    }
}

impl Prepared {
    /// The policy's word on a copy, asked while its place is held: until it is known which container gets it, it may be for any; from then on
    /// it is asked about that one.
    fn may_have(&self, old: Option<&Copied>, new: &Copied) -> Result<(), VolumeError> {
        let of = self.of.get().copied().flatten();
        let word = old.map_or_else(|| self.policy.copied(new, of), |old| self.policy.refreshed(old, new, of));
        word.map_err(|denial| VolumeError::Entry(denial.to_string()))
    }
}

/// Puts a whole copy in its place.
fn place(prepared: &Prepared, number: usize, again: bool) -> io::Result<()> {
    let (staging, place) = (prepared.staging(number), prepared.place(number));
    if !again {
        return fs::rename(staging, place);
    }
    if !refresh::is_swappable(&staging) || !refresh::is_swappable(&place) {
        return Err(io::Error::other("it is copied already, and only a volume with a ..data link is refreshed"));
    }
    refresh::swap(&place, &staging)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::receive::tests::{at, file, stream},
        *,
    };
    use crate::containers::volumes::Bind;
    use policy::Policy;
    use protocol::{
        api::{self, VolumeKind},
        line::LineError,
        volume::Entry,
    };
    use std::collections::HashMap;
    use tokio::io::AsyncWriteExt;

    fn announced(kind: VolumeKind) -> (tempfile::TempDir, Arc<Volumes>) {
        announced_to(kind, &Policy::from_initdata(None).unwrap())
    }

    fn announced_to(kind: VolumeKind, policy: &Policy) -> (tempfile::TempDir, Arc<Volumes>) {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Arc::new(Volumes::default());
        let volume = api::Volume { destination: "/conf".into(), kind: kind.into(), ..Default::default() };
        let request = api::PrepareVolumesRequest { container_id: "c".into(), volumes: vec![volume], ..Default::default() };
        volumes.make(&request, &[true], dir.path(), policy).unwrap();
        (dir, volumes)
    }

    /// What the host hears at the end, or instead of a beginning.
    async fn deliver(volumes: &Arc<Volumes>, greeting: &str, entries: &[Entry]) -> Result<(), LineError> {
        let (mut host, guest) = tokio::io::duplex(1 << 20);
        let taking = tokio::spawn({
            let volumes = volumes.clone();
            async move { volumes.take(guest).await }
        });
        line::write_line(&mut host, greeting).await.unwrap();
        line::read_answer(&mut host).await?;
        host.write_all(&stream(entries).await).await.unwrap();
        host.shutdown().await.unwrap();
        let answer = line::read_answer(&mut host).await.map(drop);
        taking.await.unwrap().unwrap();
        answer
    }

    fn version(stamp: &str) -> Vec<Entry> {
        let key = file(&format!("{stamp}/key"));
        let link = |path: &str, target: &str| Entry::Link(path.into(), target.into());
        vec![Entry::Directory(at("")), Entry::Directory(at(stamp)), key, link("..data", stamp), link("key", "..data/key"), Entry::End]
    }

    #[tokio::test]
    async fn a_volume_is_copied_and_refreshed() {
        let (_dir, volumes) = announced(VolumeKind::COPY);
        deliver(&volumes, "VOLUME c 0", &version("..1")).await.unwrap();
        let Bind::Path(place) = volumes.of("c").unwrap().bind("/conf").unwrap().unwrap().0 else { panic!("no path") };
        assert_eq!(fs::read_to_string(place.join("key")).unwrap(), "..1/key");
        deliver(&volumes, "VOLUME c 0", &version("..2")).await.unwrap();
        assert_eq!(fs::read_to_string(place.join("key")).unwrap(), "..2/key");
        // One that breaks off leaves what was there, and no trace.
        assert!(deliver(&volumes, "VOLUME c 0", &version("..3")[..3]).await.is_err());
        assert_eq!(fs::read_to_string(place.join("key")).unwrap(), "..2/key");
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1);
    }

    /// The pair: the first policy is none, and the same copy is there.
    #[tokio::test]
    async fn what_the_policy_does_not_have_is_never_there() {
        let digest = |text: &str| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text));
        let bound = format!("[allow]\nmounts = [\"/conf\"]\ncopy_in = [\"/conf/key=sha256:{}\"]\n", digest("..1/key"));
        let (_dir, open) = announced(VolumeKind::COPY);
        deliver(&open, "VOLUME c 0", &version("..2")).await.unwrap();
        let (_dir, closed) = announced_to(VolumeKind::COPY, &Policy::parse(&bound).unwrap());
        let refused = deliver(&closed, "VOLUME c 0", &version("..2")).await.unwrap_err().to_string();
        assert!(refused.contains("file /conf/key with content sha256:") && refused.contains("allow.copy_in"), "{refused}");
        assert!(closed.of("c").unwrap().bind("/conf").unwrap().unwrap_err().to_string().contains("not copied"));
        deliver(&closed, "VOLUME c 0", &version("..1")).await.unwrap();
        let Bind::Path(place) = closed.of("c").unwrap().bind("/conf").unwrap().unwrap().0 else { panic!("no path") };
        assert!(deliver(&closed, "VOLUME c 0", &version("..2")).await.is_err(), "nor later");
        assert_eq!(fs::read_to_string(place.join("key")).unwrap(), "..1/key");
    }

    /// The pair: behind the open door the same copy is there as it came, and nothing is opened.
    #[tokio::test]
    async fn a_sealed_text_that_its_owner_did_not_bind_is_refused() {
        let sealed = [Entry::Directory(at("")), file("sealed.a.b.c"), Entry::End];
        let (_dir, open) = announced(VolumeKind::COPY);
        deliver(&open, "VOLUME c 0", &sealed).await.unwrap();
        let Bind::Path(place) = open.of("c").unwrap().bind("/conf").unwrap().unwrap().0 else { panic!("no path") };
        assert_eq!(fs::read_to_string(place.join("sealed.a.b.c")).unwrap(), "sealed.a.b.c");
        let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest("sealed.a.b.c"));
        let image = format!("[[image]]\ndigest = \"sha256:{}\"\n", "a".repeat(64));
        let bound = format!("[allow]\nmounts = [\"/conf\"]\ncopy_in = [\"/conf/sealed.a.b.c=sha256:{digest}\"]\n");
        for (policy, words) in [
            ("[allow]\ncopy_in = [\"/conf\"]\n".to_owned(), "sealed, and opened only where"),
            ("[allow]\ncopy_in = true\n".to_owned(), "sealed, and opened only where"),
            (bound.clone(), "sealed, and opened only where"),
            (format!("{image}{bound}"), "sealed secret: header is not base64url"),
        ] {
            let (_dir, closed) = announced_to(VolumeKind::COPY, &Policy::parse(&policy).unwrap());
            let refused = deliver(&closed, "VOLUME c 0", &sealed).await.unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
            assert!(closed.of("c").unwrap().bind("/conf").unwrap().is_err(), "and nothing of it is there");
        }
    }

    #[tokio::test]
    async fn a_copy_is_for_its_own_container_once_that_is_known() {
        let container = |name: &str, letter: &str, file: &str| {
            let digest = format!("sha256:{}", letter.repeat(64));
            format!("[[container]]\nname = {name:?}\nimage.digest = {digest:?}\nfiles = [{file:?}]\n")
        };
        let policy = Policy::parse(&(container("one", "a", "/other") + &container("two", "b", "/conf"))).unwrap();
        let (_dir, volumes) = announced_to(VolumeKind::COPY, &policy);
        deliver(&volumes, "VOLUME c 0", &version("..1")).await.unwrap();
        let prepared = volumes.of("c").unwrap();
        let binds = [("/conf".to_owned(), prepared.bind("/conf").unwrap().unwrap())].into();
        let admit = |letter: &str| {
            let image = policy::Image { reference: "r/x".into(), digests: vec![format!("sha256:{}", letter.repeat(64))] };
            let wanted = policy::Wanted { image, ..policy::Wanted::default() };
            prepared.decide(&binds, wanted, |wanted| {
                assert_eq!(wanted.copied.len(), 1);
                policy::Ledger::new(policy.clone()).admit(wanted).map(|place| (place, place))
            })
        };
        assert!(admit("a").unwrap_err().to_string().contains("container \"one\""));
        // Refused, it is nobody's; then it is the other's.
        deliver(&volumes, "VOLUME c 0", &version("..2")).await.unwrap();
        admit("b").unwrap();
        deliver(&volumes, "VOLUME c 0", &version("..3")).await.unwrap();
        let (_dir, closed) = announced_to(VolumeKind::COPY, &policy);
        let nothing = policy::Wanted::default();
        closed.of("c").unwrap().decide(&HashMap::new(), nothing, |_| Ok(((), ledger_place(&policy, "a")))).unwrap();
        assert!(deliver(&closed, "VOLUME c 0", &version("..1")).await.unwrap_err().to_string().contains("container \"one\""));
    }

    fn ledger_place(policy: &Policy, letter: &str) -> Option<policy::PlaceId> {
        let image = policy::Image { reference: "r/x".into(), digests: vec![format!("sha256:{}", letter.repeat(64))] };
        policy::Ledger::new(policy.clone()).admit(&policy::Wanted { image, ..policy::Wanted::default() }).unwrap()
    }

    #[tokio::test]
    async fn what_is_not_announced_or_copied_already_is_refused() {
        let (_dir, volumes) = announced(VolumeKind::COPY);
        for greeting in ["VOLUME c 1", "VOLUME other 0", "VOLUME ../c 0", "STDIO stdin c -", ""] {
            assert!(deliver(&volumes, greeting, &version("..1")).await.is_err(), "{greeting}");
        }
        let one = [Entry::Directory(at("")), file("key"), Entry::End];
        deliver(&volumes, "VOLUME c 0", &one).await.unwrap();
        let again = deliver(&volumes, "VOLUME c 0", &one).await.unwrap_err().to_string();
        assert!(again.contains("copied already"), "{again}");
        let (_dir, volumes) = announced(VolumeKind::IMAGE);
        assert!(deliver(&volumes, "VOLUME c 0", &one).await.is_err());
    }
}

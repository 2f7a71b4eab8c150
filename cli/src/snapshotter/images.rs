//! What the images of containerd's content store say of a chain of layers: who its containers run as, and whether its layers are encrypted.
//!
//! **Users by name.** Before a container starts, containerd looks the name that its image runs as up in `/etc/passwd` and `/etc/group` of
//! the container's root file system on the host, where the layers are not: without a file it refuses to start the container. So those two
//! files are put there, with the names that images of this chain have in their configs, and with a number that means "whom the image says"
//! ([`runtime::IMAGE_USER`]). The guest takes the user from the image's own verified config and its own `/etc/passwd`; nothing here decides
//! anything. A name that no image has (`runAsUserName` of a pod) is refused by containerd as before.
//!
//! **Plain layers.** CRI of containerd 1.6 has one snapshotter for all runtimes. Where it is this one, the layers of plain images have to be
//! unpacked for the others; those of encrypted images cannot be. What an encrypted image had first is unpacked later, out of a plain one
//! that has it too ([`Plain`]).

use crate::containerd_image::{chain_ids, read_blob};
use anyhow::{Result, bail};
use image::{
    config::ImageConfig,
    manifest::{Document, parse_document, parse_manifest},
    plan::{LayerPlan, Mixed, plan_layers},
    reference::Reference,
};
use runtime::{
    IMAGE_USER,
    containerd::{Client, ImageTarget, StoredManifest},
};
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

/// How long containerd may take to say which images there are: it waits for our answer meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
/// Most images of a namespace that are looked at.
const MAX_IMAGES: usize = 10_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 256;

/// A namespace, and a chain id or the digest of a manifest in it.
type Key = (String, String);

/// What was learnt so far of the images that are there. What a digest means does not change, but an image may go, and then no longer counts.
#[derive(Debug, Default)]
struct Known {
    /// By the digest of its manifest.
    images: HashMap<Key, Looked>,
    /// By the digest of an index: that of its manifest for our platform.
    indexes: HashMap<Key, String>,
}

/// What manifest and config of one image say.
#[derive(Debug)]
struct Looked {
    /// Chain ids of its layers, the lowest first.
    chain: Vec<String>,
    /// Those of its layers that are plain to the bottom.
    plain: Vec<LayerPlan>,
    /// Where it was pulled from.
    sources: Vec<Reference>,
    names: Names,
}

/// What a plain image has to say of a chain of layers: what is in them, and where they are.
#[derive(Debug, Clone)]
pub(crate) struct Plain {
    /// For whoever asked for it.
    pub(crate) name: String,
    /// The lowest first, up to the end of the chain.
    pub(crate) layers: Vec<LayerPlan>,
    /// The image by its digest, in each repository that it was pulled from.
    pub(crate) sources: Vec<Reference>,
}

/// The layers up to some chain id, in all images that have it: the same files may be plain in one and encrypted in another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// In an image whose layers up to here are plain.
    pub(crate) plain: bool,
    /// In an image with an encrypted one among them.
    pub(crate) encrypted: bool,
    /// In an image with an encrypted one among them, and with none above them: containers of it are made on this chain.
    pub(crate) whole_of_encrypted: bool,
}

impl Known {
    /// Of what is known of `namespace`, and is not among `listed`, nothing stays.
    fn forget_all_but<T>(&mut self, namespace: &str, listed: &HashMap<String, T>) {
        self.images.retain(|(of, digest), _| of != namespace || listed.contains_key(digest));
        self.indexes.retain(|(of, _), manifest| of != namespace || listed.contains_key(manifest));
    }

    fn chain(&self, (namespace, chain): &Key) -> Chain {
        let mut found = Chain::default();
        for image in self.images(namespace) {
            if let Some(at) = image.chain.iter().position(|id| id == chain) {
                let encrypted = at >= image.plain.len();
                found.plain |= !encrypted;
                found.encrypted |= encrypted;
                found.whole_of_encrypted |= encrypted && at + 1 == image.chain.len();
            }
        }
        found
    }

    /// The images whose layers up to here are plain.
    fn plain(&self, (namespace, chain): &Key) -> Vec<Plain> {
        let plain = |(digest, image): (&String, &Looked)| {
            let at = image.chain.iter().position(|id| id == chain)?;
            let name = image.sources.first().map_or_else(|| format!("image {digest}"), Reference::to_string);
            Some(Plain { name, layers: image.plain.get(..=at)?.to_vec(), sources: image.sources.clone() })
        };
        let here = self.images.iter().filter(|((of, _), _)| of == namespace);
        here.map(|((_, digest), image)| (digest, image)).filter_map(plain).collect()
    }

    /// Of the images that this is the whole chain of.
    fn names(&self, (namespace, chain): &Key) -> BTreeSet<Names> {
        self.images(namespace).filter(|image| image.chain.last() == Some(chain)).map(|image| image.names.clone()).collect()
    }

    fn images(&self, namespace: &str) -> impl Iterator<Item = &Looked> {
        self.images.iter().filter(move |((of, _), _)| of == namespace).map(|(_, image)| image)
    }
}

/// What a config's `User` names; numbers are none of our business.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    user: Option<String>,
    group: Option<String>,
}

/// The images of one containerd.
#[derive(Debug)]
pub(crate) struct Images {
    socket: PathBuf,
    known: Mutex<Known>,
}

impl Images {
    /// Asks the containerd at `socket`, at first use: it starts after its snapshotter.
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), known: Mutex::default() }
    }

    /// Writes users into `root`, the directory of the snapshot `key` on `parent`. What keeps us from it is no reason to refuse a container
    /// whose image names no user.
    pub(crate) async fn provide_users(&self, root: &Path, key: &str, parent: &str) {
        let provided = async {
            let Some(id) = key_of(key, parent) else { return Ok(()) };
            let names = self.learn(&id.0).await?.names(&id);
            write(root, &names)
        };
        if let Err(error) = provided.await {
            log::warn!(snapshot = key, parent; "users by name are not known: {error:#}");
        }
    }

    /// What the layers up to the chain id `chain` are, asked for by the snapshot `key`. Neither, where that cannot be found out.
    pub(crate) async fn chain(&self, key: &str, chain: &str) -> Chain {
        let Some(id) = key_of(key, chain) else { return Chain::default() };
        match self.learn(&id.0).await {
            Ok(known) => known.chain(&id),
            Err(error) => {
                log::warn!(snapshot = key, chain; "whether it is encrypted is not known, so it is not unpacked: {error:#}");
                Chain::default()
            }
        }
    }

    /// As [`Self::chain`], and the images in which they are plain. That it cannot be found out is an error.
    pub(crate) async fn plain(&self, key: &str, chain: &str) -> Result<(Chain, Vec<Plain>)> {
        let Some(id) = key_of(key, chain) else { return Ok(Default::default()) };
        let known = self.learn(&id.0).await?;
        Ok((known.chain(&id), known.plain(&id)))
    }

    /// containerd, in the namespace of the snapshot `key`: for the blobs that it holds.
    pub(crate) async fn store_of(&self, key: &str) -> Result<Client> {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        Ok(Client::connect(&self.socket, namespace).await?)
    }

    /// Looks at the images of a namespace that are new, and forgets those that are gone.
    async fn learn(&self, namespace: &str) -> Result<MutexGuard<'_, Known>> {
        let mut known = self.known.lock().await;
        timeout(ANSWER, look(&self.socket, namespace, &mut known)).await??;
        Ok(known)
    }
}

/// containerd's metadata store calls a snapshot `<namespace>/<number>/<key of its client>`; a chain id may have that in front too.
fn key_of(snapshot: &str, chain: &str) -> Option<Key> {
    let (namespace, _) = snapshot.split_once('/')?;
    Some((namespace.to_owned(), chain.rsplit('/').next().unwrap_or(chain).to_owned()))
}

async fn look(socket: &Path, namespace: &str, known: &mut Known) -> Result<()> {
    let client = Client::connect(socket, namespace).await?;
    let listed: HashMap<String, StoredManifest> =
        client.manifests().await?.into_iter().take(MAX_IMAGES).map(|stored| (stored.digest.clone(), stored)).collect();
    known.forget_all_but(namespace, &listed);
    let mut names = names_of_manifests(&client, namespace, &listed, known).await?;
    for (digest, stored) in listed {
        let sources = names.remove(&digest).unwrap_or_else(|| repositories_of(&stored));
        let id = (namespace.to_owned(), digest);
        if let Some(known) = known.images.get_mut(&id) {
            // The same may come from another repository later.
            known.sources = sources;
            continue;
        }
        match look_at(&client, &id.1).await {
            Ok(image) => drop(known.images.insert(id, Looked { sources, ..image })),
            // Of another platform, so that its config was not fetched; no image; or on its way.
            Err(error) => log::debug!(manifest = id.1; "not looked at: {error:#}"),
        }
    }
    Ok(())
}

async fn look_at(client: &Client, digest: &str) -> Result<Looked> {
    let manifest = parse_manifest(&read_blob(client, digest).await?, None)?;
    let config = ImageConfig::parse(&read_blob(client, &manifest.config.digest.to_string()).await?)?;
    let plans = plan_layers(&manifest, &config, Mixed::Allowed)?;
    let plain = plans.into_iter().take_while(|plan| plan.envelope.is_none()).collect();
    Ok(Looked { chain: chain_ids(&config.rootfs.diff_ids), plain, sources: Vec::new(), names: names_of(&config.config.user) })
}

/// What each manifest is called, once for each repository. An image's name may mean an index.
async fn names_of_manifests(
    client: &Client,
    namespace: &str,
    manifests: &HashMap<String, StoredManifest>,
    known: &mut Known,
) -> Result<HashMap<String, Vec<Reference>>> {
    let mut names: HashMap<String, Vec<Reference>> = HashMap::new();
    for ImageTarget { name, digest, media_type, .. } in client.images().await?.into_iter().take(MAX_IMAGES) {
        // CRI calls an image by the digest of its config too.
        let Some(reference) = Some(&name).filter(|name| !name.starts_with("sha256:")).and_then(|name| name.parse::<Reference>().ok())
        else {
            continue;
        };
        let id = (namespace.to_owned(), digest);
        let manifest = match known.indexes.get(&id) {
            _ if manifests.contains_key(&id.1) => id.1,
            Some(manifest) => manifest.clone(),
            None => match ours_of(client, &id.1, &media_type).await {
                Ok(manifest) => known.indexes.entry(id).or_insert(manifest).clone(),
                Err(error) => {
                    log::debug!(image = name.as_str(), index = id.1.as_str(); "not looked at: {error:#}");
                    continue;
                }
            },
        };
        let Ok(pinned) = manifest.parse().map(|digest| reference.with_digest(digest)) else { continue };
        let names = names.entry(manifest).or_default();
        match names.iter_mut().find(|other| other.name() == pinned.name()) {
            // With a tag it says more.
            Some(other) if other.tag().is_none() => *other = pinned,
            Some(_) => (),
            None => names.push(pinned),
        }
    }
    Ok(names)
}

/// The manifest for our platform in an index.
async fn ours_of(client: &Client, digest: &str, media_type: &str) -> Result<String> {
    match parse_document(&read_blob(client, digest).await?, Some(media_type))? {
        Document::Index(index) => Ok(index.select()?.digest.to_string()),
        Document::Manifest(_) => bail!("a manifest whose config is not here"),
    }
}

/// While it is being pulled a manifest has no name yet, but containerd notes at it where it comes from, as far as a host's name says that.
fn repositories_of(stored: &StoredManifest) -> Vec<Reference> {
    stored.repositories.iter().filter_map(|repository| format!("{repository}@{}", stored.digest).parse().ok()).collect()
}

/// `user[:group]` of an image config, each a name or a number.
fn names_of(user: &str) -> Names {
    let name = |text: &str| {
        let number = text.parse::<u32>().is_ok();
        // What would be another line or field of the file is no name.
        let plain = !text.is_empty() && text.len() <= MAX_NAME && !text.contains(|c: char| c.is_control() || c == ':');
        (!number && plain).then(|| text.to_owned())
    };
    let (user, group) = user.split_once(':').unwrap_or((user, ""));
    Names { user: name(user), group: name(group) }
}

fn write(root: &Path, names: &BTreeSet<Names>) -> Result<()> {
    let users: BTreeSet<&String> = names.iter().filter_map(|names| names.user.as_ref()).collect();
    let groups: BTreeSet<&String> = names.iter().filter_map(|names| names.group.as_ref()).collect();
    if users.is_empty() && groups.is_empty() {
        return Ok(());
    }
    let etc = root.join("etc");
    fs::create_dir_all(&etc)?;
    let passwd: String = users.iter().map(|name| format!("{name}:x:{IMAGE_USER}:{IMAGE_USER}::/:\n")).collect();
    let group: String = groups.iter().map(|name| format!("{name}:x:{IMAGE_USER}:\n")).collect();
    fs::write(etc.join("passwd"), passwd)?;
    fs::write(etc.join("group"), group)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{digest::Digest, manifest::Descriptor, media_type::Compression};

    #[test]
    fn names_are_told_from_numbers_and_from_lines() {
        let names = |user: Option<&str>, group: Option<&str>| Names { user: user.map(Into::into), group: group.map(Into::into) };
        for (text, expected) in [
            ("app", names(Some("app"), None)),
            ("app:staff", names(Some("app"), Some("staff"))),
            ("1000:staff", names(None, Some("staff"))),
            ("1000:1000", names(None, None)),
            ("", names(None, None)),
            ("root:x:0:0\n", names(Some("root"), None)),
            ("a\nroot", names(None, None)),
        ] {
            assert_eq!(names_of(text), expected, "{text:?}");
        }
    }

    #[test]
    fn every_image_of_a_chain_finds_its_user() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[names_of("1000")].into()).unwrap();
        assert!(!dir.path().join("etc").exists(), "nothing where nothing is named");
        write(dir.path(), &[names_of("app:staff"), names_of("web"), names_of("")].into()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("etc").join(name)).unwrap();
        assert_eq!(read("passwd"), format!("app:x:{IMAGE_USER}:{IMAGE_USER}::/:\nweb:x:{IMAGE_USER}:{IMAGE_USER}::/:\n"));
        assert_eq!(read("group"), format!("staff:x:{IMAGE_USER}:\n"));
    }

    #[test]
    fn namespaces_and_chains_are_read_out_of_containerds_names() {
        assert_eq!(key_of("k8s.io/12/abc", "k8s.io/3/sha256:aa"), Some(("k8s.io".into(), "sha256:aa".into())));
        assert_eq!(key_of("k8s.io/12/abc", "sha256:aa"), Some(("k8s.io".into(), "sha256:aa".into())));
        assert_eq!(key_of("abc", "sha256:aa"), None);
    }

    #[test]
    fn layers_are_what_the_images_that_are_there_say() {
        let layer = |number: &usize| LayerPlan {
            descriptor: Descriptor::of("", &[u8::try_from(*number).unwrap()]),
            compression: Compression::None,
            envelope: None,
            diff_id: Digest::of(b""),
        };
        let image = |chain: &[&str], plain: usize, user| Looked {
            chain: chain.iter().map(|id| (*id).to_owned()).collect(),
            plain: (0..plain).collect::<Vec<_>>().iter().map(layer).collect(),
            sources: vec!["x.io/a:1".parse().unwrap()],
            names: names_of(user),
        };
        let key = |text: &str| ("ns".to_owned(), text.to_owned());
        let chain = |plain, encrypted, whole_of_encrypted| Chain { plain, encrypted, whole_of_encrypted };
        let mut known = Known::default();
        known.images.insert(key("plain"), image(&["base", "app"], 2, "svc"));
        known.images.insert(key("sealed"), image(&["base", "secret"], 0, "app"));
        known.images.insert(key("mixed"), image(&["low", "high"], 1, ""));
        known.images.insert(("other".to_owned(), "sealed".to_owned()), image(&["app"], 0, "root"));
        for (id, expected) in [
            ("base", chain(true, true, false)),
            ("app", chain(true, false, false)),
            ("secret", chain(false, true, true)),
            ("low", chain(true, false, false)),
            ("high", chain(false, true, true)),
            ("nowhere", chain(false, false, false)),
        ] {
            assert_eq!(known.chain(&key(id)), expected, "{id}");
        }
        let layers = |id: &str| known.plain(&key(id)).iter().map(|image| image.layers.len()).collect::<Vec<_>>();
        assert_eq!(
            (layers("base"), layers("app"), layers("secret"), layers("low"), layers("high")),
            (vec![1], vec![2], vec![], vec![1], vec![])
        );
        assert_eq!(known.names(&key("app")), [names_of("svc")].into());
        assert!(known.names(&key("base")).is_empty(), "of no image it is the whole");
        // The encrypted one is removed from the node: what it shared with the plain one is plain again.
        known.forget_all_but("ns", &[("plain".to_owned(), ())].into());
        assert_eq!((known.chain(&key("base")), known.images.len()), (chain(true, false, false), 2));
    }

    #[tokio::test]
    async fn without_containerd_nothing_is_plain() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(&dir.path().join("nobody.sock"));
        assert_eq!(images.chain("ns/1/x", "sha256:aa").await, Chain::default());
        assert!(images.plain("ns/1/x", "sha256:aa").await.is_err());
        images.provide_users(dir.path(), "ns/1/x", "sha256:aa").await;
        assert!(!dir.path().join("etc").exists());
    }
}

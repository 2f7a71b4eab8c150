//! What the host copies into a container: ConfigMaps, Secrets and other read-only files. The policy says where something may be mounted
//! (`mounts`, or an entry of `files` that names the place itself) and what may be there (`files`: `path=sha256:…`, or a path at and below
//! which anything may be). What `[[container]]` binds by digest must be there; what `allow.copy_in` binds may.
//!
//! Kubelet's directories are known (kubernetes pkg/volume/util/atomic_writer.go): content lies in `..2026_11_25_…/KEY`, the link `..data`
//! leads to that directory, and readers go through links `KEY -> ..data/KEY`. A file there counts as `KEY`, and no link may lead to another
//! name than its own: that would exchange two files of which each is the right one at its own place.

use crate::{
    Allow, ContainerRule, Denial, PlaceId, Policy,
    rules::{AllowRules, PolicyError, short},
    workload::not_allowed,
};
use std::{collections::BTreeSet, slice};

#[cfg(test)]
mod tests;

/// Kubelet's link to the directory that counts.
const DATA: &str = "..data";
/// Between the path and the digits of an entry that is bound to a content.
const BOUND: &str = "=sha256:";

/// What the host has copied to one place of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Where it is mounted: an absolute path in its shortest spelling.
    pub destination: String,
    /// All of it, in the order in which it came.
    pub entries: Vec<CopiedEntry>,
}

/// A part of a copy. Paths are relative to the destination; the root's is empty. None has a part `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopiedEntry {
    /// A directory.
    Directory(String),
    /// A file.
    File {
        /// Where.
        path: String,
        /// `sha256:…` of its content.
        digest: String,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: String,
        /// Where it leads.
        target: String,
    },
}

impl Copied {
    fn at(&self, path: &str) -> String {
        if path.is_empty() { self.destination.clone() } else { format!("{}/{path}", self.destination) }
    }

    /// What a reader finds at its own name, and its digest.
    pub(crate) fn visible(&self) -> BTreeSet<(String, &str)> {
        let link = |wanted: &str| {
            self.entries.iter().find_map(|entry| match entry {
                CopiedEntry::Link { path, target } if path == wanted => Some(target.as_str()),
                _ => None,
            })
        };
        let seen = |path: &str| {
            let Some((first, rest)) = path.split_once('/').filter(|(first, _)| first.starts_with("..")) else {
                return Some(path.to_owned());
            };
            let name = rest.split('/').next().unwrap_or_default();
            let led = link(DATA) == Some(first) && link(name).is_some_and(|target| is_own(name, target));
            led.then(|| rest.to_owned())
        };
        let files = self.entries.iter().filter_map(|entry| match entry {
            CopiedEntry::File { path, digest } => Some((self.at(&seen(path)?), digest.as_str())),
            _ => None,
        });
        files.collect()
    }
}

/// Whether a link in the root of a copy is kubelet's own, and leads to its own name.
fn is_own(name: &str, target: &str) -> bool {
    target.strip_prefix(DATA).and_then(|rest| rest.strip_prefix('/')) == Some(name)
}

fn is_kubelets(path: &str, target: &str) -> bool {
    let hidden = |name: &str| name.starts_with("..") && name.len() > 2 && !name.contains('/');
    !path.contains('/') && if path.starts_with("..") { hidden(target) } else { is_own(path, target) }
}

/// The name that a path in a copy counts as: without the directory that kubelet swaps.
fn counts_as(path: &str) -> &str {
    path.split_once('/').filter(|(first, _)| first.starts_with("..")).map_or(path, |(_, rest)| rest)
}

/// An entry's path and, where it is bound to one, its content's digits.
fn parts(entry: &str) -> (&str, Option<&str>) {
    entry.split_once(BOUND).map_or((entry.trim_end_matches('/'), None), |(path, digits)| (path, Some(digits)))
}

/// Whether `path` is `above` or below it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether an entry of a policy can be met at all.
pub(crate) fn check_entry(key: &str, entry: &str) -> Result<(), PolicyError> {
    let (path, digits) = parts(entry);
    let known = |part: &str| !part.is_empty() && part != "." && part != "..";
    let is_path = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(known));
    let is_digest = digits.is_none_or(|digits| digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    if is_path && is_digest {
        return Ok(());
    }
    let expected = "an absolute path without '..', or one with =sha256: and 64 lower-case hex digits after it";
    Err(PolicyError::new(format!("{key}: {:?}: expected {expected}", short(entry))))
}

/// The rules that speak about copies: those of one container, of all, or of `[allow]` alone.
#[derive(Clone, Copy)]
pub(crate) struct FileRules<'a> {
    pub(crate) allow: &'a AllowRules,
    pub(crate) containers: &'a [ContainerRule],
}

impl<'a> FileRules<'a> {
    fn any(&self, covers: impl Fn(&str) -> bool) -> bool {
        self.containers.iter().flat_map(|rule| &rule.files).any(|entry| covers(entry)) || self.allow.copy_in.allows(|entry| covers(entry))
    }

    /// May something that is copied be mounted here? Where something is to be mounted and no file is spoken of, it is to be empty, and the
    /// container's to write to.
    pub(crate) fn place(&self, destination: &str) -> bool {
        let named = |mount: &String| mount == destination;
        let is_mount = self.allow.mounts.allows(named) || self.containers.iter().any(|rule| rule.mounts.iter().any(named));
        self.any(|entry| match parts(entry) {
            (path, None) => is_below(destination, path) || (is_mount && is_below(path, destination)),
            (path, Some(_)) => destination == path || (is_mount && is_below(path, destination)),
        })
    }

    fn anything_at(&self, path: &str) -> bool {
        self.any(|entry| matches!(parts(entry), (above, None) if is_below(path, above)))
    }

    /// May all of this be there?
    pub(crate) fn check(&self, copied: &Copied) -> Result<(), Denial> {
        let place = &copied.destination;
        if !self.place(place) {
            return Err(self.denial(format!("files at {}", short(place)), &format!("{:?} (any content is then taken)", short(place))));
        }
        copied.entries.iter().try_for_each(|entry| self.entry(copied, entry))
    }

    fn entry(&self, copied: &Copied, entry: &CopiedEntry) -> Result<(), Denial> {
        match entry {
            CopiedEntry::File { path, digest } => {
                let path = copied.at(counts_as(path));
                let is = |entry: &str| match parts(entry) {
                    (above, None) => is_below(&path, above),
                    (bound, Some(digits)) => bound == path && digest.strip_prefix("sha256:") == Some(digits),
                };
                if self.any(is) {
                    return Ok(());
                }
                let asked = format!("file {} with content {}", short(&path), short(digest));
                Err(self.denial(asked, &format!("{:?}", short(&format!("{path}={digest}")))))
            }
            CopiedEntry::Directory(path) => {
                let kubelets = path.is_empty() || (path.starts_with("..") && !path.contains('/'));
                let path = copied.at(counts_as(path));
                let holds = |entry: &str| matches!(parts(entry), (bound, Some(_)) if bound != path && is_below(bound, &path));
                if kubelets || self.any(holds) || self.anything_at(&path) {
                    return Ok(());
                }
                Err(self.denial(format!("directory {}", short(&path)), &format!("{:?}", short(&path))))
            }
            CopiedEntry::Link { path, target } => {
                let at = copied.at(path);
                if is_kubelets(path, target) || self.anything_at(&at) {
                    return Ok(());
                }
                Err(self.denial(format!("link {} to {}", short(&at), short(target)), &format!("{:?}", short(&at))))
            }
        }
    }

    /// What a container must have and is not among `copies`; `mounts` are its other mounts, which lie over what is above them.
    pub(crate) fn missing(rule: &'a ContainerRule, copies: &[Copied], mounts: &[String]) -> Vec<&'a str> {
        let depth = |path: &str| path.split('/').count();
        let bound = rule.files.iter().filter_map(|entry| Some((entry.as_str(), parts(entry).1.map(|_| parts(entry).0)?)));
        let is_there = |path: &str| {
            let holder = copies.iter().filter(|copied| is_below(path, &copied.destination)).max_by_key(|copied| depth(&copied.destination));
            let over = |holder: &Copied| {
                let places = mounts.iter().filter_map(|mount| mount.split(':').find(|part| part.starts_with('/')));
                places.filter(|place| is_below(path, place)).any(|place| depth(place) >= depth(&holder.destination))
            };
            // Which content it is was asked about with the rest of the copy.
            holder.is_some_and(|holder| !over(holder) && holder.visible().iter().any(|(seen, _)| seen == path))
        };
        bound.filter(|(_, path)| !is_there(path)).map(|(entry, _)| entry).collect()
    }

    fn denial(&self, asked: String, entry: &str) -> Denial {
        let (rule, of) = match self.containers {
            [] => return not_allowed(asked, "copy_in", entry),
            [one] => (format!("container {:?} is not so", short(&one.name)), "that"),
            _ => ("no [[container]] is so".to_owned(), "its"),
        };
        Denial { asked, rule, remedy: format!("put {entry} into files of {of} [[container]] in policy.toml of the initdata") }
    }
}

impl Policy {
    fn file_rules(&self, of: Option<PlaceId>) -> Option<FileRules<'_>> {
        let containers = match of {
            Some(id) => self.container(id).map_or(&[][..], slice::from_ref),
            None => self.containers(),
        };
        Some(FileRules { allow: self.closed()?, containers })
    }

    /// May something be copied to this place, into any container? Asked when it is announced and its container not known.
    pub fn copies_to(&self, destination: &str) -> bool {
        self.file_rules(None).is_none_or(|rules| rules.place(destination))
    }

    /// May this be copied in? `of` is the container that gets it, where that is known; before, it may be for any.
    pub fn copied(&self, copied: &Copied, of: Option<PlaceId>) -> Result<(), Denial> {
        self.file_rules(of).map_or(Ok(()), |rules| rules.check(copied))
    }

    /// Whether the owner has bound this file of a copy by its digest, for images that he has named: then it is his, and for here.
    pub fn wrote(&self, copied: &Copied, path: &str, digest: &str, of: Option<PlaceId>) -> bool {
        let Some(rules) = self.file_rules(of) else { return false };
        let allowed = match &rules.allow.copy_in {
            Allow::Only(list) => list.as_slice(),
            Allow::All(_) => &[],
        };
        let (path, digits) = (copied.at(counts_as(path)), digest.strip_prefix("sha256:"));
        let is = |entry: &String| matches!(parts(entry), (bound, Some(bound_to)) if bound == path && digits == Some(bound_to));
        self.names_images() && rules.containers.iter().flat_map(|rule| &rule.files).chain(allowed).any(is)
    }

    /// May it take the place of what was copied before? A file that must be there stays.
    pub fn refreshed(&self, old: &Copied, new: &Copied, of: Option<PlaceId>) -> Result<(), Denial> {
        let Some(rules) = self.file_rules(of) else { return Ok(()) };
        rules.check(new)?;
        let (before, after) = (old.visible(), new.visible());
        let is_bound = |path: &str| {
            let entries = rules.containers.iter().flat_map(|rule| &rule.files);
            entries.map(|entry| parts(entry)).any(|(bound, digits)| bound == path && digits.is_some())
        };
        match before.iter().find(|(path, _)| is_bound(path) && !after.iter().any(|(now, _)| now == path)) {
            None => Ok(()),
            Some((path, digest)) => {
                let entry = format!("{:?} no longer, if it is not needed,", short(&format!("{path}={digest}")));
                Err(rules.denial(format!("files without {}", short(path)), &entry))
            }
        }
    }
}

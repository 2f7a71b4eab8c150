//! Which containers of the pod have been made so far: number, order and completeness, for a policy with `[[container]]` entries.
//!
//! A place is taken when a container is admitted, before anything of it exists, so that two requests side by side cannot both have it;
//! it is given back if the container could not be made after all.

use crate::{
    container::{ContainerRule, Wanted},
    rules::{AllowRules, short},
    workload::{Denial, Policy},
};
use std::collections::BTreeMap;

/// The place of one `[[container]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// How often it has been taken.
    taken: u32,
    /// Whether it is taken now.
    live: bool,
    /// How it last ended.
    ended: Option<u32>,
}

/// The places of a pod's containers.
#[derive(Debug, Clone)]
pub struct Ledger {
    policy: Policy,
    places: Vec<Place>,
    /// Empty directories of the machine, and which of the policy's each is.
    directories: BTreeMap<String, Directory>,
}

/// An empty directory of the policy: one that has a name, or what is at a place of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Directory {
    Shared(String),
    Own(usize, String),
}

/// A taken place; to be given back by [`Ledger::give_back`] or [`Ledger::deleted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceId(usize);

impl Ledger {
    /// Nothing has been made.
    pub fn new(policy: Policy) -> Self {
        let places = vec![Place::default(); policy.containers().len()];
        Self { policy, places, directories: BTreeMap::new() }
    }

    /// Takes the place of a container. `None` where the policy lists no containers: then only its overrides were asked about.
    pub fn admit(&mut self, wanted: &Wanted) -> Result<Option<PlaceId>, Denial> {
        let Some(allow) = self.policy.closed() else { return Ok(None) };
        if self.policy.containers().is_empty() {
            self.policy.overrides(&wanted.overrides)?;
            self.policy.stdio(wanted.stdio)?;
            wanted.copied.iter().try_for_each(|copied| self.policy.copied(copied, None))?;
            wanted.disks.iter().try_for_each(|disk| self.policy.mounted_disk(disk))?;
            return Ok(None);
        }
        let (index, directories) = self.place(wanted, allow).map_err(|denials| {
            denials.into_iter().next().unwrap_or_else(|| refuse("a container", "the policy lists none", "add a [[container]]"))
        })?;
        self.directories = directories;
        self.places[index] = Place { taken: self.places[index].taken + 1, live: true, ended: None };
        Ok(Some(PlaceId(index)))
    }

    /// Everything for which a container that is not admitted would have to differ, to be the one of the policy that it is nearest to.
    pub fn refusals(&self, wanted: &Wanted) -> Vec<Denial> {
        let Some(allow) = self.policy.closed() else { return Vec::new() };
        if self.policy.containers().is_empty() {
            let overrides = [self.policy.overrides(&wanted.overrides), self.policy.stdio(wanted.stdio)];
            let copied = wanted.copied.iter().map(|copied| self.policy.copied(copied, None));
            let disks = wanted.disks.iter().map(|disk| self.policy.mounted_disk(disk));
            return overrides.into_iter().chain(copied).chain(disks).filter_map(Result::err).collect();
        }
        self.place(wanted, allow).err().unwrap_or_default()
    }

    /// The place that a container can have, with the directories as they are then; or what is against it.
    fn place(&self, wanted: &Wanted, allow: &AllowRules) -> Result<(usize, BTreeMap<String, Directory>), Vec<Denial>> {
        let mut nearest: Option<Vec<Denial>> = None;
        let mut unavailable = None;
        for (index, rule) in self.policy.containers().iter().enumerate() {
            let differences = rule.differences(wanted, allow);
            if differences.is_empty() {
                match self.available(index).and_then(|()| self.directories(index, wanted)) {
                    Ok(directories) => return Ok((index, directories)),
                    Err(denial) => unavailable = unavailable.or(Some(vec![denial])),
                }
            } else {
                // An entry for another image says less than one that differs in a variable.
                let weight = |list: &[Denial]| list.len() + if list[0].asked.starts_with("image ") { 1000 } else { 0 };
                if nearest.as_ref().is_none_or(|best| weight(&differences) < weight(best)) {
                    nearest = Some(differences);
                }
            }
        }
        Err(unavailable.or(nearest).unwrap_or_default())
    }

    /// Whether the container shares its empty directories with those with which it is to, and with no other: a host could let one container
    /// fill what another one trusts.
    fn directories(&self, index: usize, wanted: &Wanted) -> Result<BTreeMap<String, Directory>, Denial> {
        let rule = &self.policy.containers()[index];
        let mut all = self.directories.clone();
        for (destination, name) in &wanted.empty {
            let own = || Directory::Own(index, destination.clone());
            let directory = rule.shared_as(destination).map_or_else(own, |name| Directory::Shared(name.to_owned()));
            let is_other = all.get(name).is_some_and(|known| *known != directory);
            if is_other || all.iter().any(|(other, known)| *known == directory && other != name) {
                let asked = format!("the directory at {} of container {:?}", short(destination), short(&rule.name));
                let rule = if is_other { "it is another one's" } else { "it is to be the one that another has" };
                let remedy = format!("put \"{}=NAME\" into shared, with one NAME wherever it is the same", short(destination));
                return Err(refuse(&asked, rule, &remedy));
            }
            all.insert(name.clone(), directory);
        }
        Ok(all)
    }

    /// Whether the place may be taken now.
    fn available(&self, index: usize) -> Result<(), Denial> {
        let rule = &self.policy.containers()[index];
        let asked = format!("container {:?}", short(&rule.name));
        let place = &self.places[index];
        if place.live {
            return Err(refuse(&asked, "there is one already", "add another [[container]], if there are to be two"));
        }
        if place.taken > 0 && !rule.restart {
            return Err(refuse(&asked, "it has run already", "set restart = true in that [[container]]"));
        }
        for (earlier, place) in self.policy.containers()[..index].iter().zip(&self.places) {
            let name = short(&earlier.name);
            if earlier.init && place.ended != Some(0) {
                return Err(refuse(&asked, &format!("container {name:?} has not ended with 0 before it"), "set init = false there"));
            }
            if self.policy.in_order() && place.taken == 0 {
                return Err(refuse(&asked, &format!("container {name:?} comes before it"), "set pod.order = false"));
            }
        }
        Ok(())
    }

    /// The container could not be made: as if it had not been asked for.
    pub fn give_back(&mut self, id: PlaceId) {
        let place = &mut self.places[id.0];
        place.taken = place.taken.saturating_sub(1);
        place.live = false;
    }

    /// Its first process has ended.
    pub fn ended(&mut self, id: PlaceId, status: u32) {
        self.places[id.0].ended = Some(status);
    }

    /// The container is gone.
    pub fn deleted(&mut self, id: PlaceId) {
        self.places[id.0].live = false;
    }

    /// The first container that has never been made, if one is missing.
    pub fn missing(&self) -> Option<&str> {
        let mut places = self.policy.containers().iter().zip(&self.places);
        places.find(|(_, place)| place.taken == 0).map(|(rule, _)| rule.name.as_str())
    }

    /// What the container that has this place is.
    pub fn rule(&self, id: PlaceId) -> Option<&ContainerRule> {
        self.policy.container(id)
    }
}

impl Policy {
    /// What the container that has this place is.
    pub(crate) fn container(&self, id: PlaceId) -> Option<&ContainerRule> {
        self.containers().get(id.0)
    }
}

fn refuse(asked: &str, rule: &str, remedy: &str) -> Denial {
    Denial { asked: asked.to_owned(), rule: rule.to_owned(), remedy: format!("{remedy} in policy.toml of the initdata") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Image;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn wanted(letter: char) -> Wanted {
        let image = Image { reference: "r/x:1".into(), digests: vec![digest(letter)] };
        Wanted { image, args: vec!["/x".into()], env: Vec::new(), user: "0:0".into(), cwd: "/".into(), ..Wanted::default() }
    }

    fn ledger(pod: &str, entries: &[(char, &str)]) -> Ledger {
        let entry =
            |(letter, more): &(char, &str)| format!("[[container]]\nname = \"{letter}\"\nimage.digest = {:?}\n{more}\n", digest(*letter));
        Ledger::new(Policy::parse(&(pod.to_owned() + &entries.iter().map(entry).collect::<String>())).unwrap())
    }

    fn refusal(ledger: &mut Ledger, letter: char) -> String {
        let text = ledger.admit(&wanted(letter)).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn each_container_is_there_once() {
        let mut ledger = ledger("", &[('a', ""), ('b', "restart = true")]);
        let a = ledger.admit(&wanted('a')).unwrap().unwrap();
        assert!(refusal(&mut ledger, 'a').contains("there is one already"));
        assert_eq!(ledger.missing(), Some("b"));
        let b = ledger.admit(&wanted('b')).unwrap().unwrap();
        assert_eq!(ledger.missing(), None);
        ledger.deleted(a);
        ledger.deleted(b);
        assert!(refusal(&mut ledger, 'a').contains("restart = true"));
        ledger.admit(&wanted('b')).unwrap();
        assert!(refusal(&mut ledger, 'c').contains("image r/x:1"));
    }

    #[test]
    fn a_failure_gives_its_place_back() {
        let mut ledger = ledger("", &[('a', "")]);
        let id = ledger.admit(&wanted('a')).unwrap().unwrap();
        ledger.give_back(id);
        assert_eq!(ledger.missing(), Some("a"));
        assert!(ledger.admit(&wanted('a')).is_ok());
    }

    #[test]
    fn order_can_be_demanded() {
        let mut ledger = ledger("[pod]\norder = true\n", &[('a', ""), ('b', "")]);
        assert!(refusal(&mut ledger, 'b').contains("container \"a\" comes before it"));
        ledger.admit(&wanted('a')).unwrap();
        ledger.admit(&wanted('b')).unwrap();
    }

    #[test]
    fn an_init_container_comes_to_a_good_end_first() {
        let mut ledger = ledger("", &[('a', "init = true\nrestart = true"), ('b', "")]);
        assert!(refusal(&mut ledger, 'b').contains("has not ended with 0"));
        let first = ledger.admit(&wanted('a')).unwrap().unwrap();
        ledger.ended(first, 1);
        assert!(refusal(&mut ledger, 'b').contains("has not ended with 0"));
        ledger.deleted(first);
        let again = ledger.admit(&wanted('a')).unwrap().unwrap();
        ledger.ended(again, 0);
        assert!(ledger.admit(&wanted('b')).is_ok());
    }

    #[test]
    fn empty_directories_are_shared_as_the_owner_says() {
        let (cache, both) = ("mounts = [\"/cache\"]", "mounts = [\"/cache\"]\nshared = [\"/cache=x\"]");
        let with = |letter, directory: &str| {
            let overrides = crate::Overrides { mounts: vec!["/cache".into()], ..crate::Overrides::default() };
            Wanted { overrides, empty: vec![("/cache".into(), directory.into())], ..wanted(letter) }
        };
        for (one, two, same, other) in [(cache, cache, false, true), (both, both, true, false), (cache, both, false, true)] {
            let mut pod = ledger("", &[('a', &format!("{one}\nrestart = true")), ('b', two)]);
            let first = pod.admit(&with('a', "d1")).unwrap().unwrap();
            assert_eq!(pod.clone().admit(&with('b', "d1")).is_ok(), same, "{one} {two}");
            assert_eq!(pod.clone().admit(&with('b', "d2")).is_ok(), other, "{one} {two}");
            pod.deleted(first);
            assert!(pod.clone().admit(&with('a', "d1")).is_ok(), "it is there again after its end");
            let text = pod.admit(&with('a', "d3")).unwrap_err().to_string();
            assert!(text.contains("/cache=NAME") && !text.contains('\n'), "{text}");
        }
        let twice = "mounts = [\"/cache\", \"/c\"]";
        let of = |first: &str, second: &str| {
            let overrides = crate::Overrides { mounts: vec!["/cache".into(), "/c".into()], ..crate::Overrides::default() };
            let empty = vec![("/cache".into(), first.into()), ("/c".into(), second.into())];
            Wanted { overrides, empty, ..wanted('a') }
        };
        assert!(ledger("", &[('a', twice)]).admit(&of("d1", "d1")).is_err());
        assert!(ledger("", &[('a', twice)]).admit(&of("d1", "d2")).is_ok());
        let twice = format!("{twice}\nshared = [\"/cache=x\", \"/c=x\"]");
        assert!(ledger("", &[('a', &twice)]).admit(&of("d1", "d1")).is_ok());
        assert!(ledger("", &[('a', &twice)]).admit(&of("d1", "d2")).is_err());
    }

    #[test]
    fn two_of_one_image_are_told_apart_by_what_they_run() {
        let text =
            |name: &str, args: &str| format!("[[container]]\nname = {name:?}\nargs = [{args:?}]\nimage.digest = {:?}\n", digest('a'));
        let mut ledger = Ledger::new(Policy::parse(&(text("one", "/1") + &text("two", "/2"))).unwrap());
        let run = |args: &str| Wanted { args: vec![args.into()], ..wanted('a') };
        ledger.admit(&run("/2")).unwrap();
        assert!(ledger.admit(&run("/2")).is_err());
        ledger.admit(&run("/1")).unwrap();
        assert!(ledger.admit(&run("/3")).unwrap_err().to_string().contains("command line [\"/3\"]"));
    }
}

//! What a manifest or a command line asks for, before its images are known; and the containers of a policy that it becomes.

use super::{images::Images, volumes::Files};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use policy::{ContainerRule, ImageRule, Policy};
use std::collections::BTreeSet;

/// The first of the signals that have no name of their own (SIGRTMIN of glibc and musl).
const FIRST_REAL_TIME: u32 = 34;

/// A pod as its owner described it.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) title: String,
    pub(super) wishes: Vec<Wish>,
    pub(super) order: bool,
    pub(super) network_off: bool,
    pub(super) share_processes: bool,
    pub(super) complete_within_s: Option<u32>,
    /// For every container.
    pub(super) env: Vec<String>,
    /// Commands that kubelet runs.
    pub(super) exec: Vec<Vec<String>>,
    /// What containers are asked to end with, by name or number.
    pub(super) stop_signals: Vec<String>,
    /// For whoever reads the policy before he signs it.
    pub(super) notes: Vec<String>,
}

/// One container as its owner described it.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) image: String,
    /// Replaces the image's entrypoint, and its command.
    pub(super) entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub(super) arguments: Option<Vec<String>>,
    pub(super) user: User,
    /// Empty directories: place and volume.
    pub(super) empty: Vec<(String, String)>,
    /// What is copied in.
    pub(super) files: Vec<Files>,
    /// Everything that needs no image.
    pub(super) rule: ContainerRule,
}

/// A user by numbers; `None` is the image's.
#[derive(Debug, Clone, Default)]
pub(super) struct User {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) groups: BTreeSet<u32>,
}

/// What an image says, as far as it decides on what runs.
#[derive(Debug, Clone, Default)]
pub(super) struct ImageFacts {
    /// Of the manifest or index that the reference names.
    pub(super) digest: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) user: String,
    pub(super) stop_signal: String,
}

impl Draft {
    /// The containers, with what their images are.
    pub(super) async fn containers(&mut self, images: &Images<'_>) -> Result<Vec<ContainerRule>> {
        let mut rules: Vec<ContainerRule> = Vec::new();
        for wish in &self.wishes {
            let facts = images.facts(wish).await?;
            if !facts.stop_signal.is_empty() {
                self.stop_signals.push(facts.stop_signal.clone());
            }
            rules.push(wish.clone().finish(&facts).with_context(|| format!("container {:?}", wish.rule.name))?);
        }
        Ok(rules)
    }

    /// The signals among them that a host may not send anyway.
    pub(super) fn signals(&self) -> Result<BTreeSet<u32>> {
        let (numbers, bare) = (self.stop_signals.iter().map(|name| signal(name)).collect::<Result<Vec<_>>>()?, Policy::parse("")?);
        Ok(numbers.into_iter().filter(|number| bare.signal(*number).is_err()).collect())
    }
}

impl Wish {
    /// Whether it cannot be told without the image what runs.
    pub(super) fn needs_image(&self) -> bool {
        let user = &self.user;
        let command = self.entrypoint.is_none() && self.arguments.is_some();
        command || (user.uid.is_none() && (user.gid.is_some() || !user.groups.is_empty()))
    }

    /// The container of the policy.
    pub(super) fn finish(self, facts: &ImageFacts) -> Result<ContainerRule> {
        let mut rule = self.rule;
        rule.user = self.user.text(facts)?;
        rule.image = ImageRule { digest: facts.digest.clone(), ..ImageRule::default() };
        rule.args = match (self.entrypoint, self.arguments) {
            (None, None) => None,
            (Some(entrypoint), arguments) => Some([entrypoint, arguments.unwrap_or_default()].concat()),
            (None, Some(arguments)) => Some([facts.entrypoint.clone(), arguments].concat()),
        };
        // What the image does anyway.
        rule.args = rule.args.filter(|args| *args != [facts.entrypoint.clone(), facts.command.clone()].concat());
        Ok(rule)
    }
}

impl User {
    /// In the policy's spelling: `uid`, with the groups that the image gives him; `uid:gid`; either with further groups.
    fn text(&self, facts: &ImageFacts) -> Result<Option<String>> {
        if self.uid.is_none() && self.gid.is_none() && self.groups.is_empty() {
            return Ok(None);
        }
        let (user, group) = facts.user.split_once(':').map_or((facts.user.as_str(), ""), |(user, group)| (user, group));
        let number = |text: &str| -> Result<Option<u32>> {
            let named = || format!("a group without a user, and the image's own is {:?}, by name; set runAsUser (--user)", facts.user);
            if text.is_empty() { Ok(None) } else { text.parse().map(Some).with_context(named) }
        };
        let (uid, gid) = match self.uid {
            Some(uid) => (uid, self.gid),
            None => (number(user)?.unwrap_or(0), self.gid.map_or_else(|| number(group), |gid| Ok(Some(gid)))?),
        };
        let groups: Vec<String> = self.groups.iter().filter(|other| **other != 0 && Some(**other) != gid).map(u32::to_string).collect();
        let gid = gid.map(|gid| gid.to_string());
        Ok(Some(match (gid, groups.is_empty()) {
            (None, true) => uid.to_string(),
            (Some(gid), true) => format!("{uid}:{gid}"),
            (gid, false) => format!("{uid}:{}:{}", gid.unwrap_or_default(), groups.join(",")),
        }))
    }
}

/// `CAP_NET_ADMIN` of whatever spelling a manifest uses.
pub(super) fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// `SIGTERM`, `TERM`, `15`, or `SIGRTMIN+3`.
fn signal(text: &str) -> Result<u32> {
    let name = text.to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number @ 1..=64) = bare.parse() {
        return Ok(number);
    }
    if let Some(offset) = bare.strip_prefix("RTMIN+").and_then(|offset| offset.parse::<u32>().ok()).filter(|offset| *offset <= 30) {
        return Ok(FIRST_REAL_TIME + offset);
    }
    match format!("SIG{bare}").parse::<Signal>() {
        Ok(signal) => Ok((signal as i32).unsigned_abs()),
        Err(_) => bail!("stop signal {text:?}: no signal has this name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(user: &str) -> ImageFacts {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let (entrypoint, command) = (strings(&["/entry"]), strings(&["default"]));
        ImageFacts { digest: "d".into(), entrypoint, command, user: user.into(), stop_signal: String::new() }
    }

    #[test]
    fn a_command_is_made_as_kubernetes_makes_it() {
        let args = |entrypoint: Option<&str>, arguments: Option<&str>| {
            let list = |text: Option<&str>| text.map(|text| vec![text.to_owned()]);
            let wish = Wish { entrypoint: list(entrypoint), arguments: list(arguments), ..Wish::default() };
            wish.finish(&facts("")).unwrap().args
        };
        assert_eq!(args(None, None), None);
        assert_eq!(args(None, Some("x")), Some(vec!["/entry".into(), "x".into()]));
        assert_eq!(args(Some("/x"), None), Some(vec!["/x".into()]), "the image's command goes with its entrypoint");
        assert_eq!(args(Some("/x"), Some("y")), Some(vec!["/x".into(), "y".into()]));
        assert_eq!(args(None, Some("default")), None, "what the image does anyway");
    }

    #[test]
    fn users_and_groups_have_the_policys_spelling() {
        let user = |image: &str, uid, gid, groups: &[u32]| {
            let user = User { uid, gid, groups: groups.iter().copied().collect() };
            user.text(&facts(image)).map(Option::unwrap_or_default)
        };
        for (image, uid, gid, groups, wanted) in [
            ("app", None, None, &[][..], ""),
            ("app", Some(7), None, &[], "7"),
            ("app", Some(7), Some(8), &[], "7:8"),
            ("app", Some(7), None, &[9, 4, 0], "7::4,9"),
            ("app", Some(7), Some(9), &[9, 4], "7:9:4"),
            ("", None, None, &[4], "0::4"),
            ("7:8", None, None, &[4], "7:8:4"),
            ("7", None, Some(5), &[], "7:5"),
        ] {
            let text = user(image, uid, gid, groups).unwrap();
            assert_eq!(text, wanted);
            let policy = format!("[[container]]\nname = \"c\"\nimage.digest = \"sha256:{}\"\nuser = {text:?}\n", "1".repeat(64));
            assert!(text.is_empty() || Policy::parse(&policy).is_ok(), "{text}");
        }
        assert!(format!("{:#}", user("app", None, None, &[4]).unwrap_err()).contains("runAsUser"));
        assert!(user("7:staff", None, None, &[4]).is_err());
    }

    #[test]
    fn signals_have_many_names() {
        for (text, number) in [("SIGTERM", 15), ("winch", 28), ("3", 3), ("SIGRTMIN+3", 37), ("64", 64)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIG", "0", "65", "SIGRTMIN+99", "-1", "TERM;"] {
            assert!(signal(text).is_err(), "{text}");
        }
        let draft = Draft { stop_signals: vec!["SIGQUIT".into(), "SIGWINCH".into()], ..Draft::default() };
        assert_eq!(draft.signals().unwrap(), [28].into());
    }
}

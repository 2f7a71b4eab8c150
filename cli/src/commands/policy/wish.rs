//! What a manifest or a command line asks for, before the image is known; and the container of a policy that it becomes.

use anyhow::{Result, bail};
use policy::{ContainerRule, ImageRule};
use std::collections::BTreeSet;

/// What the image says, as far as it decides on the command.
#[derive(Debug, Clone, Default)]
pub(super) struct ImageFacts {
    /// Of the manifest or index that the reference names.
    pub(super) digest: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) user: String,
}

/// One container as its owner described it.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) name: String,
    pub(super) image: String,
    /// Replaces the image's entrypoint, and its command.
    pub(super) entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub(super) arguments: Option<Vec<String>>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) groups: BTreeSet<u32>,
    /// Everything that needs no image.
    pub(super) rule: Option<ContainerRule>,
}

/// A container's rule with nothing in it.
pub(super) fn blank(name: &str) -> ContainerRule {
    ContainerRule {
        name: name.to_owned(),
        image: ImageRule { digest: String::new(), repository: None },
        args: None,
        env: Vec::new(),
        user: None,
        cwd: None,
        add_capabilities: Vec::new(),
        drop_capabilities: Vec::new(),
        mounts: Vec::new(),
        files: Vec::new(),
        secrets: Vec::new(),
        sysctls: Vec::new(),
        read_only: false,
        no_new_privileges: false,
        terminal: false,
        stdin: false,
        restart: false,
        init: false,
    }
}

impl Wish {
    /// Whether its command cannot be told without the image's own.
    pub(super) fn needs_entrypoint(&self) -> bool {
        self.entrypoint.is_none() && self.arguments.is_some()
    }

    /// The container of the policy.
    pub(super) fn finish(self, facts: &ImageFacts, repository: Option<String>) -> Result<ContainerRule> {
        let user = self.user(facts)?;
        let mut rule = self.rule.unwrap_or_else(|| blank(&self.name));
        rule.image = ImageRule { digest: facts.digest.clone(), repository };
        rule.args = match (self.entrypoint, self.arguments) {
            (None, None) => None,
            (Some(entrypoint), arguments) => Some([entrypoint, arguments.unwrap_or_default()].concat()),
            (None, Some(arguments)) => Some([facts.entrypoint.clone(), arguments].concat()),
        };
        if rule.args.as_ref().is_some_and(|args| *args == [facts.entrypoint.clone(), facts.command.clone()].concat()) {
            rule.args = None;
        }
        if rule.args.as_ref().is_some_and(Vec::is_empty) {
            bail!("container {:?}: no command, neither in the image nor here", rule.name);
        }
        rule.user = user;
        Ok(rule)
    }

    fn user(&self, facts: &ImageFacts) -> Result<Option<String>> {
        if self.uid.is_none() && self.gid.is_none() && self.groups.is_empty() {
            return Ok(None);
        }
        let Some(uid) = self.uid.or_else(|| if facts.user.is_empty() { Some(0) } else { facts.user.split(':').next()?.parse().ok() })
        else {
            bail!("container {:?}: a group without a user, and the image's user {:?} is a name; set runAsUser", self.name, facts.user);
        };
        let groups: Vec<String> = self.groups.iter().filter(|gid| **gid != 0 && Some(**gid) != self.gid).map(u32::to_string).collect();
        Ok(Some(match (self.gid, groups.is_empty()) {
            (None, true) => uid.to_string(),
            (gid, true) => format!("{uid}:{}", gid.unwrap_or(0)),
            (gid, false) => format!("{uid}:{}:{}", gid.unwrap_or(0), groups.join(",")),
        }))
    }
}

/// `CAP_NET_ADMIN` of whatever spelling a manifest uses.
pub(super) fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ImageFacts {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        ImageFacts { digest: "d".into(), entrypoint: strings(&["/entry"]), command: strings(&["default"]), user: "app".into() }
    }

    #[test]
    fn a_command_is_made_as_kubernetes_makes_it() {
        let args = |entrypoint: Option<&str>, arguments: Option<&str>| {
            let list = |text: Option<&str>| text.map(|text| vec![text.to_owned()]);
            let wish = Wish { entrypoint: list(entrypoint), arguments: list(arguments), ..Wish::default() };
            wish.finish(&facts(), None).unwrap().args
        };
        assert_eq!(args(None, None), None);
        assert_eq!(args(None, Some("x")), Some(vec!["/entry".into(), "x".into()]));
        assert_eq!(args(Some("/x"), None), Some(vec!["/x".into()]), "the image's command goes with its entrypoint");
        assert_eq!(args(Some("/x"), Some("y")), Some(vec!["/x".into(), "y".into()]));
        assert_eq!(args(None, Some("default")), None, "what the image does anyway");
    }

    #[test]
    fn users_and_groups_have_the_policys_spelling() {
        let user = |uid, gid, groups: &[u32]| {
            Wish { uid, gid, groups: groups.iter().copied().collect(), ..Wish::default() }.finish(&facts(), None).map(|rule| rule.user)
        };
        assert_eq!(user(None, None, &[]).unwrap(), None);
        assert_eq!(user(Some(7), None, &[]).unwrap().as_deref(), Some("7"));
        assert_eq!(user(Some(7), Some(8), &[]).unwrap().as_deref(), Some("7:8"));
        assert_eq!(user(Some(7), None, &[9, 4, 0]).unwrap().as_deref(), Some("7:0:4,9"));
        assert!(user(None, None, &[4]).unwrap_err().to_string().contains("runAsUser"));
    }
}

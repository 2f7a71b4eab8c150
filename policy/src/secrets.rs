//! What containers may have at the workload API, and for which images: those that the owner names by digest, or wants signed. Any other could be
//! one that the host has made to read the secrets and print them.

use crate::{
    allow::Allow,
    container::Image,
    rules::{Rules, short},
    workload::{Denial, Policy, denial, not_allowed},
};

impl Policy {
    /// Whether the policy says by their digests which images may run.
    pub fn names_images(&self) -> bool {
        self.rules().is_some_and(|rules| !rules.image.is_empty() || !rules.container.is_empty())
    }

    /// Why no guest takes this policy, if it gives secrets to whatever image the host brings.
    pub fn secrets_for_any_image(&self) -> Option<&'static str> {
        (self.gives_secrets() && !self.names_images() && !self.is_signed()).then_some(
            "allow.secrets: any image could read them, also one that the host has made for that; name the images ([[image]] or \
             [[container]]), or demand signatures (image_security_policy in cdh.toml of the initdata)",
        )
    }

    /// May this image run, given that secrets are there to be read? `signed` says that its signature was demanded, and is good.
    pub fn image_with_secrets(&self, image: &Image, signed: bool) -> Result<(), Denial> {
        if signed || self.names_images() || !self.gives_secrets() {
            return Ok(());
        }
        Err(denial(
            format!("image {}, which could read what allow.secrets lists", short(&image.reference)),
            "the signature policy accepts it without a signature",
            "demand one of every image there, or name the images as [[image]]".into(),
        ))
    }

    /// Whether containers may have anything at all at the workload API.
    pub fn gives_secrets(&self) -> bool {
        let for_all = |rules: &Rules| !matches!(&rules.allow.secrets, Allow::All(false)) && rules.allow.secrets.length() != Some(0);
        let any = |rules: &Rules| for_all(rules) || rules.container.iter().any(|c| !c.secrets.is_empty());
        self.rules().is_some_and(any)
    }

    /// May every container have this at the workload API: the path of a resource (`kbs:///…`), `token` or `evidence`? Without initdata there
    /// is nothing to be had.
    pub fn secret(&self, name: &str) -> Result<(), Denial> {
        if self.rules().is_some_and(|rules| rules.allow.secrets.allows(|entry| covers_secret(entry, name))) {
            return Ok(());
        }
        Err(not_allowed(format!("{} at the workload API", short(name)), "secrets", &format!("{:?}", short(name))))
    }
}

/// A name, or a beginning of one with `*` at its end.
pub(crate) fn covers_secret(entry: &str, name: &str) -> bool {
    entry.strip_suffix('*').map_or(entry == name, |beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initdata::Initdata;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn secrets_are_for_images_that_the_owner_knows() {
        let initdata = |policy: &str, cdh: &str| {
            let text = format!(
                "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.toml\" = '''\n{policy}'''\n\"cdh.toml\" = '''\n{cdh}'''\n"
            );
            Policy::from_initdata(Some(&Initdata::parse_toml(&text).unwrap().0))
        };
        let named = format!("[[image]]\ndigest = {DIGEST:?}\n");
        let container = format!("[[container]]\nname = \"a\"\nimage.digest = {DIGEST:?}\nsecrets = [\"token\"]\n");
        let signed = "[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n";
        let anything = "[image]\nimage_security_policy = '{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}'\n".replace('\'', "\"\"\"");
        for secrets in ["true", "[\"kbs:///acme/api/*\"]", "[\"token\"]"] {
            let policy = format!("[allow]\nsecrets = {secrets}\n");
            for cdh in ["", anything.as_str(), "[image]\nunknown = 1\n"] {
                let error = initdata(&policy, cdh).unwrap_err().to_string();
                assert!(error.contains("any image could read them") && !error.contains('\n'), "{error}");
            }
            for (policy, cdh) in [(format!("{named}{policy}"), ""), (format!("{container}{policy}"), ""), (policy.clone(), signed)] {
                assert!(initdata(&policy, cdh).is_ok(), "{policy}{cdh}");
            }
            assert!(Policy::parse(&policy).unwrap().secrets_for_any_image().is_some());
        }
        assert!(initdata(&container, "").is_ok());
        for nothing in ["", "[allow]\nsecrets = false\n", "[allow]\nsecrets = []\n"] {
            assert!(initdata(nothing, "").is_ok());
        }
        // A policy of the broker's may accept single images as they are.
        let policy = initdata("[allow]\nsecrets = true\n", signed).unwrap();
        assert_eq!(policy.image_with_secrets(&image(), true), Ok(()));
        let denial = policy.image_with_secrets(&image(), false).unwrap_err().to_string();
        assert!(denial.contains("without a signature"), "{denial}");
        assert_eq!(Policy::from_initdata(None).unwrap().image_with_secrets(&image(), false), Ok(()));
    }

    fn image() -> Image {
        Image { reference: "a".into(), digests: vec![DIGEST.into()] }
    }
}

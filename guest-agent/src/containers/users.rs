//! Who the image says its process is: names looked up in the image's own /etc/passwd and /etc/group, inside the guest.

use thiserror::Error;

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, without the primary one.
    pub groups: Vec<u32>,
}

/// Why a user was not found.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// No such user in the image.
    #[error("user {0:?} of the image is not in its /etc/passwd")]
    User(String),
    /// No such group in the image.
    #[error("group {0:?} of the image's user is not in its /etc/group")]
    Group(String),
}

/// Looks up `user`, `user:group`, by name or number; empty is root. `passwd` and `group` are the image's files, empty where it has
/// none.
///
/// A number need not be in the files, its group is then 0, as other runtimes have it (Config.User of the OCI image spec).
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Ids, UserError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|e| e.name == user || user.parse() == Ok(e.uid));
    let (uid, gid, name) = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name)),
        (None, Ok(uid)) => (uid, 0, None),
        (None, Err(_)) => return Err(UserError::User(user.to_owned())),
    };
    let groups: Vec<GroupEntry<'_>> = group.lines().filter_map(GroupEntry::parse).collect();
    let Some(wanted) = wanted_group else {
        return Ok(Ids { uid, gid, groups: supplementary(&groups, name, gid) });
    };
    let by_name = groups.iter().find(|g| g.name == wanted).map(|g| g.gid);
    let gid = by_name.or_else(|| wanted.parse().ok()).ok_or_else(|| UserError::Group(wanted.to_owned()))?;
    // A group that is named takes the place of all that the user would have had.
    Ok(Ids { uid, gid, groups: Vec::new() })
}

/// The groups of a user whom the host names by number, where the image knows him.
pub fn by_number(uid: u32, passwd: &str, group: &str) -> Option<Ids> {
    let known = passwd.lines().filter_map(PasswdEntry::parse).any(|entry| entry.uid == uid);
    known.then(|| resolve(&uid.to_string(), passwd, group).ok()).flatten()
}

/// The home directory of `uid`, as HOME is to have it; `/` where the image does not know the user.
pub fn home(uid: u32, passwd: &str) -> &str {
    let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| entry.uid == uid);
    entry.map(|entry| entry.home).filter(|home| home.starts_with('/') && !home.contains('\0')).unwrap_or("/")
}

fn supplementary(groups: &[GroupEntry<'_>], name: Option<&str>, primary: u32) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let member = |g: &&GroupEntry<'_>| g.gid != primary && g.members.split(',').any(|m| m == name);
    let mut gids: Vec<u32> = groups.iter().filter(member).map(|g| g.gid).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// A line of passwd(5).
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of group(5).
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default().trim() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n\nbroken\nbad:x:z:1::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\naudio:x:29:app\napp:x:1001:\nbroken:x\n";

    fn ids(uid: u32, gid: u32, groups: &[u32]) -> Result<Ids, UserError> {
        Ok(Ids { uid, gid, groups: groups.to_vec() })
    }

    #[test]
    fn names_and_numbers_are_found() {
        for user in ["app", "1000", "app:", "1000:"] {
            assert_eq!(resolve(user, PASSWD, GROUP), ids(1000, 1001, &[29, 50]), "{user}");
        }
        assert_eq!(resolve("", PASSWD, GROUP), ids(0, 0, &[]));
        assert_eq!(resolve("app:staff", PASSWD, GROUP), ids(1000, 50, &[]));
        assert_eq!(resolve("app:7", PASSWD, GROUP), ids(1000, 7, &[]));
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(resolve("4242", "", ""), ids(4242, 0, &[]));
        assert_eq!(resolve("4242:4343", PASSWD, GROUP), ids(4242, 4343, &[]));
        assert_eq!(resolve("", "", ""), ids(0, 0, &[]));
    }

    #[test]
    fn a_user_by_number_has_the_groups_of_its_name() {
        assert_eq!(by_number(1000, PASSWD, GROUP), ids(1000, 1001, &[29, 50]).ok());
        assert_eq!(by_number(4242, PASSWD, GROUP), None);
    }

    #[test]
    fn homes_are_the_images() {
        assert_eq!([home(0, PASSWD), home(1000, PASSWD), home(7, PASSWD)], ["/root", "/home/app", "/"]);
        assert_eq!(home(1, "x:x:1:1::relative:/bin/sh"), "/");
        assert_eq!(home(1, "x:x:1:1"), "/");
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(UserError::User("nobody".into())));
        assert_eq!(resolve("bad", PASSWD, GROUP), Err(UserError::User("bad".into())));
        assert_eq!(resolve("app:wheel", PASSWD, GROUP), Err(UserError::Group("wheel".into())));
        assert_eq!(resolve("-1", PASSWD, GROUP), Err(UserError::User("-1".into())));
        assert_eq!(resolve("4294967296", PASSWD, GROUP), Err(UserError::User("4294967296".into())));
    }
}

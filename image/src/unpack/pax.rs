//! PAX extended headers (POSIX.1-2001, `pax`, "pax Extended Header"): `<length> <key>=<value>\n`, overriding fields of the next header.

use super::{
    header::{Fault, Time},
    sparse::Records,
};

/// What extended attributes are recorded under, by star, GNU tar, Go and containerd.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// What GNU tar records of sparse files.
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What a PAX header says about the entry that follows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    /// Names without their prefix, and values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Records>,
}

impl Pax {
    /// Parses the records of one `x` header. A key twice is refused: which one counts depends on the reader.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, Fault> {
        let mut pax = Self::default();
        let mut seen = std::collections::BTreeSet::new();
        while !data.is_empty() {
            let Record { key, value, rest } = record(data)?;
            data = rest;
            if !seen.insert(key) && !Records::repeats(key) {
                return Err(format!("PAX record {:?} is given twice", lossy(key)));
            }
            pax.apply(key, value)?;
        }
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(key) = key.strip_prefix(SPARSE_PREFIX) {
            return self.sparse.get_or_insert_default().add(key, value);
        }
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            if name.is_empty() || name.contains(&0) || name.len() > 255 {
                return Err("an extended attribute's name must be 1 to 255 bytes without NUL".into());
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // POSIX: an empty value takes back an override, and what the header says stands.
        if value.is_empty() {
            return Ok(());
        }
        let number = || decimal(value).ok_or_else(|| format!("PAX {} is not a decimal number", lossy(key)));
        match key {
            b"path" => self.path = Some(without_nul(key, value)?),
            b"linkpath" => self.link = Some(without_nul(key, value)?),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or("PAX mtime is not a decimal number")?),
            // Names of users, other times, comments: nothing that we use.
            _ => (),
        }
        Ok(())
    }

    /// Checks a `g` header, whose other records are ignored as containerd does. One that changes what the following entries are called
    /// or how long they are is refused: readers that heed it would see another archive.
    pub(super) fn check_global(data: &[u8]) -> Result<(), Fault> {
        let pax = Self::parse(data)?;
        let harmless = pax.path.is_none() && pax.link.is_none() && pax.size.is_none() && pax.xattrs.is_empty() && pax.sparse.is_none();
        if harmless { Ok(()) } else { Err("a global PAX header that sets path, linkpath, size, attributes or holes".into()) }
    }
}

/// One record, and what follows it.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

fn record(data: &[u8]) -> Result<Record<'_>, Fault> {
    let bad = || "malformed PAX record".to_owned();
    let space = data.iter().take(12).position(|b| *b == b' ').ok_or_else(bad)?;
    let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
    if length <= space + 1 || length > data.len() {
        return Err(bad());
    }
    let (record, rest) = data.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
    let equals = body.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
    Ok(Record { key: &body[..equals], value: &body[equals + 1..], rest })
}

fn without_nul(key: &[u8], value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.contains(&0) { Err(format!("PAX {} holds a NUL byte", lossy(key))) } else { Ok(value.to_vec()) }
}

/// Decimal digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// `[-]seconds[.fraction]`; finer than nanoseconds is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let dot = text.iter().position(|b| *b == b'.');
    let (seconds, fraction) = dot.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |n, at| n * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
    let seconds = i64::try_from(decimal(seconds)?).ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        // Nanoseconds count forwards from the second before.
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pax_record;

    #[test]
    fn records_are_read() {
        let data = [
            pax_record("path", "ä/b".as_bytes()),
            pax_record("size", b"12"),
            pax_record("mtime", b"1700000000.25"),
            pax_record("SCHILY.xattr.user.a", b"x=\n\0y"),
            pax_record("comment", b""),
            pax_record("linkpath", b""),
        ]
        .concat();
        let pax = Pax::parse(&data).unwrap();
        assert_eq!((pax.path.as_deref(), pax.size, pax.link), (Some("ä/b".as_bytes()), Some(12), None));
        assert_eq!(pax.mtime, Some((1_700_000_000, 250_000_000)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x=\n\0y".to_vec())]);
    }

    #[test]
    fn times_before_1970_count_forwards() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.0000000019"), Some((1, 1)));
        for bad in [&b""[..], b"-", b".5", b"1.x", b"1e3", b"99999999999999999999"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let bad: [&[u8]; 13] = [
            b"x",
            b"5 a=b",
            b"6 a=b\n\n",
            b"7 a=b\n",
            b"3 =\n",
            b"5 =b\n",
            b"5 ab\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"+6 a=b\n",
            b"99999999999999 a=b\n",
            b"9 path=\0\n",
            b"20 GNU.sparse.a=000\n",
        ];
        for data in bad {
            assert!(Pax::parse(data).is_err(), "{:?}", lossy(data));
        }
        let twice = [pax_record("size", b"1"), pax_record("size", b"2")].concat();
        assert!(Pax::parse(&twice).unwrap_err().contains("twice"));
        for number in ["-1", "0x1", "1 ", "18446744073709551616"] {
            assert!(Pax::parse(&pax_record("size", number.as_bytes())).is_err(), "{number}");
        }
    }

    #[test]
    fn a_global_header_changes_nothing() {
        assert_eq!(Pax::check_global(&pax_record("comment", b"0123abc")), Ok(()));
        assert!(Pax::check_global(&pax_record("size", b"0")).is_err());
        assert!(Pax::check_global(&pax_record("path", b"etc/passwd")).is_err());
        assert!(Pax::check_global(&pax_record("GNU.sparse.size", b"5")).is_err());
    }
}

//! What the tables of release rules for kinds of hardware have in common: ids, lists of them, and how they are held against claims.

use crate::mismatch::{mismatch, shown};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::fmt::{self, Display};

/// Entries in any list.
pub(crate) const MAX_ENTRIES: usize = 256;

/// An id of a fixed length, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id<const N: usize>([u8; N]);

impl<const N: usize> Id<N> {
    pub(crate) fn bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<'de, const N: usize> Deserialize<'de> for Id<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Option<[u8; N]> = hex::decode(&text).ok().and_then(|bytes| bytes.try_into().ok());
        // Zeros stand for none: a rule that named them would take whoever has none.
        if bytes == Some([0; N]) {
            return Err(D::Error::custom("zeros stand for none, which cannot be named"));
        }
        bytes.map(Self).ok_or_else(|| D::Error::custom(format!("expected {N} bytes in hexadecimal")))
    }
}

/// A register of TDX that may be demanded to be untouched: unlike an id's, its zeros say something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Register([u8; 48]);

impl<'de> Deserialize<'de> for Register {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hex::decode(String::deserialize(deserializer)?).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("expected 48 bytes in hexadecimal"))
    }
}

impl AsRef<[u8; 48]> for Register {
    fn as_ref(&self) -> &[u8; 48] {
        &self.0
    }
}

impl Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> AsRef<[u8; N]> for Id<N> {
    fn as_ref(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> Display for Id<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Whether an id is one of a list; an empty list wants nothing.
pub(crate) fn one_of<const N: usize, T>(claim: &str, found: &[u8; N], wanted: &[T], remedy: &str) -> Result<(), String>
where
    T: AsRef<[u8; N]> + Display,
{
    if wanted.is_empty() || wanted.iter().any(|id| id.as_ref() == found) {
        Ok(())
    } else {
        Err(mismatch(claim, &shown(found), wanted, remedy))
    }
}

/// A bit by the name that rules use.
pub(crate) fn name(bit: impl Serialize) -> String {
    serde_json::to_value(bit).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `"x"` or `["x", "y"]`; an empty list would say nothing.
pub(crate) fn one_or_more<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    // Not an untagged enum: that would say "did not match any variant" where the entry knows what is wrong with it.
    struct OneOrMore<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for OneOrMore<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            T::deserialize(serde::de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(entry) = list.next_element()? {
                all.push(entry);
                if all.len() > MAX_ENTRIES {
                    return Err(A::Error::custom(format!("more than {MAX_ENTRIES} entries")));
                }
            }
            if all.is_empty() { Err(A::Error::custom("an empty list says nothing; leave the key out")) } else { Ok(all) }
        }
    }
    deserializer.deserialize_any(OneOrMore(std::marker::PhantomData))
}

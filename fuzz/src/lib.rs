//! What is fuzzed: the image path in [`targets`], the line between host and guest in [`line`].

pub mod line;
pub mod targets;

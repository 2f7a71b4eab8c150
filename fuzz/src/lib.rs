//! What is fuzzed: the image path in [`targets`], the line between host and guest in [`line`], what decides on trust in [`trust`].

pub mod line;
pub mod targets;
pub mod trust;

//! One module for each command.

pub(crate) mod broker;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod guest;
pub(crate) mod image;
pub(crate) mod initdata;
pub(crate) mod install;
pub(crate) mod man;
pub(crate) mod measure;
pub(crate) mod policy;
pub(crate) mod seal;
pub(crate) mod snapshotter;
pub(crate) mod verify;

//! The verifier against recorded evidence of real machines, and against evidence of our own making.

mod made;
mod recorded;

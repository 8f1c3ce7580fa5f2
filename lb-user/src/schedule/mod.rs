//! Schedulers that user space prepares for the program. Pure.

pub mod ring;

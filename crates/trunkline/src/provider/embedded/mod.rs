//! The embedded broker: a segmented log in a directory, shared by the processes of one host.

pub mod config;

//! One file per command: `Args` is what it takes, `run` is what it does.

pub mod apply;
pub mod brokers;
pub mod completions;
pub mod consume;
pub mod dead;
pub mod demo;
pub mod doctor;
pub mod groups;
pub mod help;
pub mod init;
pub mod jobs;
pub mod messages;
pub mod produce;
pub mod products;
pub mod replay;
pub mod run;
pub mod stats;
pub mod store;
pub mod topics;

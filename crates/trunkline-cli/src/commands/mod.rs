//! One file per command: `Args` is what it takes, `run` is what it does.

pub mod apply;
pub mod audit;
pub mod brokers;
pub mod caches;
pub mod completions;
pub mod consume;
pub mod dashboard;
pub mod dead;
pub mod demo;
pub mod dispatch;
pub mod doctor;
pub mod events;
pub mod groups;
pub mod help;
pub mod init;
pub mod jobs;
pub mod keys;
pub mod messages;
pub mod produce;
pub mod products;
pub mod replay;
pub mod run;
pub mod schedules;
pub mod secrets;
pub mod stats;
pub mod topics;

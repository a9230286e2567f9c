//! RabbitMQ. So far its config, which is always compiled so that every build validates alike.

pub mod config;

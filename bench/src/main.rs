//! The raw client beside Trunkline, on the same machine in the same run.
//!
//! `cargo run --release -p trunkline-bench -- embedded` prints a table with ratios; `--json` prints one line per cell.
//! `network redis` does the same for a server that `scripts/brokers` started.
//! No number here is a promise and no test asserts one: they are for reading, and for comparing two runs.

mod cell;
mod counters;
mod embedded;
mod instructions;
mod load;
mod network;
mod raw;
mod raws;
mod worker;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: counters::Counting = counters::Counting;

#[derive(Parser)]
#[command(about = "Measures Trunkline beside the raw client")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The embedded broker beside a bare group-commit log.
    Embedded(embedded::Args),
    /// The client of a real broker beside Trunkline on the same client and server.
    Network(network::Args),
    /// One process of a cell with several (started by the bench itself).
    #[command(hide = true)]
    Worker(worker::Args),
}

fn main() {
    let result = match Cli::parse().what {
        What::Embedded(args) => embedded::run(&args),
        What::Network(args) => network::run(&args),
        What::Worker(args) => worker::run(&args),
    };
    if let Err(error) = result {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

//! What every command gets: the flags, the output, and the instance, opened when it is first asked for.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::OnceCell;
use trunkline::catalog::Catalog;
use trunkline::file::File;
use trunkline::store::is_postgres;
use trunkline::{Code, Env, Error, Result, Trunkline};

use crate::args::Global;
use crate::output::{self, Format, Table};
use crate::signals::Stop;

/// The user ended the command before it was done.
pub fn interrupted(what: &str) -> Error {
    Error::new(Code::Closed, what).reason(crate::exit::INTERRUPTED_REASON)
}

/// How long the end of a command may take: what was sent is confirmed, what is in hand is finished or given back.
pub const DRAIN: Duration = Duration::from_secs(30);

/// The name of the declarative file.
pub const FILE: &str = "trunkline.yaml";

/// What every command gets.
#[derive(Debug)]
pub struct Ctx {
    global: Global,
    stop: Stop,
    trunkline: OnceCell<Trunkline>,
    default_data: OnceLock<String>,
}

impl Ctx {
    /// Sets up colours, logs and signals; opens nothing yet.
    pub fn new(global: Global) -> Result<Self> {
        if global.no_color {
            anstream::ColorChoice::Never.write_global();
        }
        log(&global);
        let stop = Stop::listen().map_err(|error| Error::new(Code::Closed, format!("signals cannot be listened to: {error}")))?;
        Ok(Ctx { global, stop, trunkline: OnceCell::new(), default_data: OnceLock::new() })
    }

    /// Whether the output is for programs.
    pub fn is_json(&self) -> bool {
        self.global.output == Format::Json
    }

    /// Prints one thing: as a JSON document, or as the table that is made for people.
    pub fn show(&self, value: &impl Serialize, table: impl FnOnce() -> Table) -> Result<()> {
        if self.is_json() { output::json(value) } else { table().print() }
    }

    /// Says what was done: the thing as JSON, or one line for people.
    pub fn done(&self, value: &impl Serialize, text: impl AsRef<str>) -> Result<()> {
        if self.is_json() { output::json(value) } else { output::line(text) }
    }

    /// Ctrl-C and SIGTERM.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The store as it was given: `--data`, `TRUNKLINE_URL`, or `store.url` of the file.
    pub fn data(&self) -> Result<Option<String>> {
        if let Some(data) = self.global.data.as_deref().filter(|data| !data.is_empty()) {
            return Ok(Some(data.to_owned()));
        }
        let file = self.file()?.and_then(|(_, file)| file.store.url);
        Ok(file.or_else(|| self.default_data.get().cloned()))
    }

    /// What `--data` says on the command line itself: the demo makes a directory of its own rather than write where
    /// `TRUNKLINE_URL` or a file point. A store on a server is no place for a demo either.
    pub fn data_flag(&self) -> Option<&str> {
        let data = self.global.data.as_deref().filter(|data| !data.is_empty() && !is_postgres(data))?;
        (std::env::var("TRUNKLINE_URL").as_deref() != Ok(data)).then_some(data)
    }

    /// What is opened when nothing else is said; by default the nearest `.trunkline` upward.
    pub fn default_data(&self, url: String) {
        let _ = self.default_data.set(url);
    }

    /// What `--product` says.
    pub fn product_flag(&self) -> Option<&str> {
        self.global.product.as_deref().filter(|product| !product.is_empty())
    }

    /// What `--env` says.
    pub fn env_flag(&self) -> Option<&str> {
        self.global.env.as_deref().filter(|env| !env.is_empty())
    }

    /// The instance.
    pub async fn trunkline(&self) -> Result<&Trunkline> {
        self.trunkline
            .get_or_try_init(|| async {
                let single = self.file()?.is_some_and(|(_, file)| file.store.single_host);
                let mut builder = Trunkline::builder().sdk("cli").single_host(single);
                if let Some(data) = self.data()? {
                    builder = builder.url(data);
                }
                let trunkline = builder.open().await?;
                if self.global.verbose > 0 {
                    output::note(format!("store: {}", trunkline.store().location()));
                }
                Ok(trunkline)
            })
            .await
    }

    /// The catalogue: products, brokers, topics, groups.
    pub async fn catalog(&self) -> Result<&Catalog> {
        Ok(self.trunkline().await?.catalog())
    }

    /// The product's tag: `--product`, else the file's, else the only one there is.
    pub async fn product(&self) -> Result<String> {
        let given = self.given_product()?;
        self.catalog().await?.product_or_only(given.as_deref()).map_err(|error| {
            if error.details().contains_key("known") {
                error.next("name one with --product TAG; `trunkline products list` shows them")
            } else {
                error.next("start with `trunkline init --example`, or create a broker: `trunkline brokers create TAG --product PRODUCT --on ENV=EMBEDDED`")
            }
        })
    }

    /// The env's slug: `--env`, else the file's, else the only one there is.
    pub async fn env_slug(&self) -> Result<String> {
        let given = match self.env_flag() {
            Some(env) => Some(env.to_owned()),
            None => self.file()?.and_then(|(_, file)| file.env),
        };
        let product = self.product().await?;
        self.catalog().await?.env_or_only(&product, given.as_deref()).map_err(|error| {
            if error.details().contains_key("known") {
                error.next("name one with --env SLUG")
            } else {
                error.next("create a broker first: `trunkline brokers create TAG --on ENV=EMBEDDED`")
            }
        })
    }

    /// The product's env: where messages are produced and consumed.
    pub async fn env(&self) -> Result<Env> {
        let (product, env) = (self.product().await?, self.env_slug().await?);
        Ok(self.trunkline().await?.env(&product, &env))
    }

    /// What `--product` says, else the file: for a create, which makes its product.
    pub fn given_product(&self) -> Result<Option<String>> {
        match self.product_flag() {
            Some(product) => Ok(Some(product.to_owned())),
            None => Ok(self.file()?.and_then(|(_, file)| file.product)),
        }
    }

    /// The nearest `trunkline.yaml` upward from the working directory, with its path.
    pub fn file(&self) -> Result<Option<(PathBuf, File)>> {
        let here =
            std::env::current_dir().map_err(|error| Error::input("file", format!("the working directory cannot be read: {error}")))?;
        match here.ancestors().map(|dir| dir.join(FILE)).find(|path| path.is_file()) {
            Some(path) => read_file(&path).map(|file| Some((path, file))),
            None => Ok(None),
        }
    }

    /// Closes the instance, if it was opened.
    pub async fn close(&self) {
        if let Some(trunkline) = self.trunkline.get() {
            trunkline.close(DRAIN).await;
        }
    }
}

/// Reads and checks a `trunkline.yaml`.
pub fn read_file(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::input("file", format!("{} cannot be read: {error}", path.display()))
            .next("check the path, or write one with `trunkline init`")
    })?;
    File::parse(&text).map_err(|error| error.detail("path", path.display().to_string()))
}

/// Logs go to stderr: warnings by default, nothing in JSON mode, more with `-v`; TRUNKLINE_LOG says it in detail.
fn log(global: &Global) {
    use tracing_subscriber::EnvFilter;
    let level = match (global.verbose, global.output) {
        (0, Format::Json) => "off",
        (0 | 1, _) => "warn",
        (2, _) => "trunkline=info,warn",
        (3, _) => "trunkline=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("TRUNKLINE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let ansi = !global.no_color && anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).with_target(false).try_init();
}

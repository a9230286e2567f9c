//! What every command gets: the flags, the output, and the instance, opened when it is first asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::OnceCell;
use trunkline::{Code, Env, Error, Result, Trunkline};

use crate::args::Global;
use crate::output::{self, Format, Table};
use crate::signals::Stop;

/// The reason of an error that says that the user ended the command.
pub const INTERRUPTED: &str = "interrupted";

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
}

impl Ctx {
    /// Sets up colours, logs and signals; opens nothing yet.
    pub fn new(global: Global) -> Result<Self> {
        if global.no_color {
            anstream::ColorChoice::Never.write_global();
        }
        log(&global);
        let stop = Stop::listen().map_err(|error| Error::new(Code::Closed, format!("signals cannot be listened to: {error}")))?;
        Ok(Ctx { global, stop, trunkline: OnceCell::new() })
    }

    /// For whom the output is.
    pub fn format(&self) -> Format {
        self.global.output
    }

    /// Whether the output is for programs.
    pub fn is_json(&self) -> bool {
        self.global.output == Format::Json
    }

    /// How often `-v` was given.
    pub fn verbose(&self) -> u8 {
        self.global.verbose
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

    /// The data directory as it was given: `--data`, `TRUNKLINE_URL`, or `store.url` of the file.
    pub fn data(&self) -> Result<Option<String>> {
        if let Some(data) = self.global.data.as_deref().filter(|data| !data.is_empty()) {
            return Ok(Some(data.to_owned()));
        }
        Ok(self.file()?.and_then(|file| Some(file.value.get("store")?.get("url")?.as_str()?.to_owned())))
    }

    /// The instance.
    pub async fn trunkline(&self) -> Result<&Trunkline> {
        self.trunkline
            .get_or_try_init(|| async {
                let single = self.file()?.is_some_and(|file| file.value["store"]["singleHost"] == Value::Bool(true));
                let mut builder = Trunkline::builder().sdk("cli").single_host(single);
                if let Some(data) = self.data()? {
                    builder = builder.url(data);
                }
                let trunkline = builder.open().await?;
                if self.global.verbose > 0 {
                    output::note(format!("data directory: {}", trunkline.location()));
                }
                Ok(trunkline)
            })
            .await
    }

    /// The product's tag: `--product`, else the file's, else the only one there is.
    pub async fn product(&self) -> Result<String> {
        if let Some(product) = self.given("product", self.global.product.as_deref())? {
            return Ok(product);
        }
        let mut products = self.trunkline().await?.products().await?.into_iter().map(|product| product.tag);
        match (products.next(), products.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Error::new(Code::ProductNotFound, "there is no product yet")
                .next("make one with `trunkline init --example` or `trunkline apply -f trunkline.yaml`")),
            (Some(_), Some(_)) => Err(Error::input("product", "there is more than one product")
                .next("name one with `--product TAG`; `trunkline products list` shows them")),
        }
    }

    /// The env's slug: `--env`, else the file's, else the only one there is.
    pub async fn env_slug(&self) -> Result<String> {
        if let Some(env) = self.given("env", self.global.env.as_deref())? {
            return Ok(env);
        }
        let product = self.product().await?;
        let brokers = self.trunkline().await?.brokers(&product).await?;
        let mut slugs: Vec<String> = brokers.into_iter().flat_map(|broker| broker.envs).map(|env| env.slug).collect();
        slugs.sort_unstable();
        slugs.dedup();
        match slugs.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Error::new(Code::BrokerNotFound, format!("product '{product}' has no broker yet"))
                .next("create one with `trunkline brokers create TAG --embedded ENV`")),
            many => Err(Error::input("env", format!("product '{product}' has several envs: {}", many.join(", ")))
                .next("name one with `--env SLUG`")),
        }
    }

    /// The product's env: where messages are produced and consumed.
    pub async fn env(&self) -> Result<Env> {
        let (product, env) = (self.product().await?, self.env_slug().await?);
        self.trunkline().await?.env(&product, &env)
    }

    /// The nearest `trunkline.yaml` upward from the working directory.
    pub fn file(&self) -> Result<Option<File>> {
        let here = std::env::current_dir().map_err(|error| Error::input("file", format!("the working directory cannot be read: {error}")))?;
        match here.ancestors().map(|dir| dir.join(FILE)).find(|path| path.is_file()) {
            Some(path) => File::read(&path).map(Some),
            None => Ok(None),
        }
    }

    /// Closes the instance, if it was opened.
    pub async fn close(&self) {
        if let Some(trunkline) = self.trunkline.get() {
            trunkline.close(DRAIN).await;
        }
    }

    fn given(&self, name: &str, flag: Option<&str>) -> Result<Option<String>> {
        if let Some(flag) = flag.filter(|flag| !flag.is_empty()) {
            return Ok(Some(flag.to_owned()));
        }
        Ok(self.file()?.and_then(|file| Some(file.value.get(name)?.as_str()?.to_owned())))
    }
}

/// A `trunkline.yaml`, parsed but not validated.
#[derive(Debug)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says.
    pub value: Value,
}

impl File {
    /// Reads and parses a file; YAML includes JSON.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::input("file", format!("{} cannot be read: {error}", path.display())).next("check the path, or write one with `trunkline init`")
        })?;
        Ok(File { path: path.to_owned(), value: Self::parse(&text).map_err(|error| error.context(&path.display().to_string()))? })
    }

    /// Parses a text.
    pub fn parse(text: &str) -> Result<Value> {
        serde_yaml_ng::from_str(text).map_err(|error| {
            let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
            Error::input("file", format!("not valid YAML{at}")).next("check indentation and quotes near there")
        })
    }
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

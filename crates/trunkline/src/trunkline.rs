//! [`Trunkline`]: opened once per process; everything else is reached from it.

use std::collections::HashMap;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::access::{ACCESS_KEY_ENV, Access, Call};
use crate::catalog::Catalog;
use crate::consume::shared::IN_HAND;
use crate::error::{Code, Error, Result};
use crate::history::History;
use crate::inner::{Inner, Parts, Wrap};
use crate::message::{Headers, Millis};
use crate::policy::LotPlace;
use crate::produce::{Plain, ProduceOptions, Queued, Receipt, produce, try_plain};
use crate::provider::Provider;
use crate::route::Route;
use crate::secret::{Secret, Vault};
use crate::sessions::{Gate, Session, Sessions};
use crate::store::{self, Address, Opened, SealedStore, Store};
use crate::tracker::Tracker;

/// An open instance. Cheap to clone; [`Trunkline::close`] ends it.
///
/// ```no_run
/// # async fn doc() -> trunkline::Result<()> {
/// let trunkline = trunkline::Trunkline::open(".trunkline").await?;
/// let shop = trunkline.env("my-product", "prd");
/// shop.produce("order-events:order-created", &serde_json::json!({ "orderId": "123" })).await?;
/// trunkline.close(std::time::Duration::from_secs(30)).await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Trunkline(pub(crate) Arc<Inner>);

impl Trunkline {
    /// How it shall be opened.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Opens a data directory, which is made if it is missing, or a store on a server.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub async fn open(url: &str) -> Result<Trunkline> {
        Trunkline::builder().url(url).open().await
    }

    /// An env of a product.
    #[must_use]
    pub fn env(&self, product: &str, env: &str) -> Env {
        Env::new(self.0.clone(), product, env)
    }

    /// Products, brokers, topics and groups.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    /// The store itself: no permission is asked for there, and nothing is audited.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// The history itself: no permission is asked for there, and nothing is audited.
    ///
    /// # Errors
    /// `STORE_FAILED` if this process keeps none, because it could not be opened.
    pub fn history(&self) -> Result<&History> {
        self.0.tracker.history()
    }

    /// Writes the history of what this process has done so far, so that every query sees it.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn flush(&self) -> Result<()> {
        self.0.tracker.flush().await
    }

    /// Opens every route whose waiting messages and dead letters lie on its broker, so that this instance publishes what is
    /// due there and indexes what died there. What cannot be opened is named with the reason.
    pub async fn attend(&self) -> Vec<(Address, Error)> {
        let mut failed = Vec::new();
        for product in self.catalog().list_products() {
            for broker in self.catalog().list_brokers(&product.tag).unwrap_or_default() {
                for env in broker.envs.iter().filter(|env| self.0.lot_place(env.kind) == LotPlace::Topics) {
                    for topic in &broker.topics {
                        if let Err(error) = self.0.route(&product.tag, &env.slug, topic.tag.as_str()).await {
                            let (product, env) = (product.tag.as_str().into(), env.slug.as_str().into());
                            failed.push((Address { product, env, event: topic.tag.clone() }, error));
                        }
                    }
                }
            }
        }
        failed
    }

    /// Drains consumers, sends what waits, writes the history, closes connections; at most `within` and a little.
    pub async fn close(&self, within: Duration) {
        self.0.close(within).await;
    }
}

/// The host's name, for the registry.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Puts something between the core and the store (for tests).
type WrapStore = Arc<dyn Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync>;

/// How an instance is opened.
#[derive(Clone, Default)]
pub struct Builder {
    url: Option<String>,
    single_host: bool,
    sdk: Option<String>,
    in_hand_bytes: Option<usize>,
    lot_on_broker: bool,
    wrap: Option<Wrap>,
    wrap_store: Option<WrapStore>,
    access_key: Option<Secret>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("url", &self.url.as_deref().map(store::shown))
            .field("single_host", &self.single_host)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Where the data lies: `sqlite:DIR` or a plain directory (made if it is missing), or `postgres://…` for many hosts. By
    /// default `TRUNKLINE_URL`, else the nearest `.trunkline` directory upward from the working directory. See [`store::open`].
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Says that this host is all there is: what a host store keeps may then carry order and waits of network brokers.
    #[must_use]
    pub fn single_host(mut self, yes: bool) -> Self {
        self.single_host = yes;
        self
    }

    /// Names the kind of program in the registry (`rust` by default).
    #[must_use]
    pub fn sdk(mut self, sdk: impl Into<String>) -> Self {
        self.sdk = Some(sdk.into());
        self
    }

    /// At most this many bytes of messages are in hand over all consumers of the instance (64 MB by default). A consumer that
    /// has nothing in hand may take one message all the same.
    #[must_use]
    pub fn in_hand_bytes(mut self, most: usize) -> Self {
        self.in_hand_bytes = Some(most);
        self
    }

    /// The access key that opens the workspace (default: the environment variable `TRUNKLINE_ACCESS_KEY`). A workspace
    /// without keys accepts any.
    #[must_use]
    pub fn access_key(mut self, key: impl Into<String>) -> Self {
        self.access_key = Some(Secret::new(key));
        self
    }

    /// For tests only: puts the lot on the broker although the embedded broker is of this host.
    #[doc(hidden)]
    #[must_use]
    pub fn lot_on_broker(mut self, yes: bool) -> Self {
        self.lot_on_broker = yes;
        self
    }

    /// For tests only: puts something between the core and each provider.
    #[doc(hidden)]
    #[must_use]
    pub fn wrap_providers(mut self, wrap: impl Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync + 'static) -> Self {
        self.wrap = Some(Arc::new(wrap));
        self
    }

    /// For tests only: puts something between the core and the store.
    #[doc(hidden)]
    #[must_use]
    pub fn wrap_store(mut self, wrap: impl Fn(Arc<dyn Store>) -> Arc<dyn Store> + Send + Sync + 'static) -> Self {
        self.wrap_store = Some(Arc::new(wrap));
        self
    }

    /// Opens it.
    ///
    /// # Errors
    /// `STORE_FAILED`: there is no data directory (`trunkline init` makes one), it is damaged, newer or read-only; the database
    /// cannot be reached (retryable) or refuses the user; this host's master key is not the store's.
    /// `ACCESS_DENIED`: the workspace has access keys, and none was given that holds.
    pub async fn open(self) -> Result<Trunkline> {
        let Opened { mut store, directory, .. } = store::open(self.url.as_deref()).await?;
        if let Some(wrap) = &self.wrap_store {
            store = wrap(store);
        }
        let host = host_name();
        let key = self.access_key.or_else(|| std::env::var(ACCESS_KEY_ENV).ok().filter(|key| !key.is_empty()).map(Secret::new));
        let access = Arc::new(Access::open(store.clone(), key.as_ref(), &host).await?);
        let keyring = Arc::new(directory.keyring()?);
        let sessions = Gate::new(store.clone(), keyring.clone());
        // From here on nobody sees what sessions' subjects sent but through their keys.
        let store: Arc<dyn Store> = Arc::new(SealedStore::new(store, sessions.vault.clone()));
        let catalog = Catalog::open(store.clone(), keyring.clone()).await?.guarded(access.clone());
        let vault = Vault::new(store.clone(), keyring);
        vault.refresh(catalog.version()).await?;
        let tracker = Tracker::open(directory.path())?;
        let inner = Inner::new(Parts {
            store,
            catalog,
            access,
            vault,
            sessions,
            tracker,
            directory: directory.path().to_owned(),
            single_host: self.single_host,
            lot_on_broker: self.lot_on_broker,
            wrap: self.wrap,
            sdk: self.sdk.unwrap_or_else(|| "rust".into()),
            host,
            in_hand: self.in_hand_bytes.unwrap_or(IN_HAND),
        });
        inner.start_background();
        Ok(Trunkline(inner))
    }
}

/// Routes by event, as of one version of the catalogue.
type Known = (u64, HashMap<String, Arc<Route>>);

/// A product's env: where messages are produced and consumed.
#[derive(Clone)]
pub struct Env(Arc<EnvInner>);

/// Behind one pointer, since programs clone an env for every task.
struct EnvInner {
    inner: Arc<Inner>,
    product: Arc<str>,
    slug: Arc<str>,
    /// Routes this env has used.
    routes: ArcSwap<Known>,
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Env({}/{})", self.0.product, self.0.slug)
    }
}

impl Env {
    pub(crate) fn new(inner: Arc<Inner>, product: &str, env: &str) -> Self {
        Env(Arc::new(EnvInner { inner, product: product.into(), slug: env.into(), routes: ArcSwap::default() }))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    /// The product's sessions.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions::of(&self.0.inner, self.0.product.clone())
    }

    /// The product's tag.
    #[must_use]
    pub fn product_tag(&self) -> &str {
        &self.0.product
    }

    /// The env's slug.
    #[must_use]
    pub fn slug(&self) -> &str {
        &self.0.slug
    }

    /// The route of an event among those this handle knows, if it is open and nothing changed since.
    fn known<'k>(&self, routes: &'k Known, event: &str) -> Result<Option<&'k Arc<Route>>> {
        let inner = &self.0.inner;
        match routes.1.get(event).filter(|_| routes.0 == inner.routes_version()) {
            Some(route) => inner.check_open().map(|()| Some(route)),
            None => Ok(None),
        }
    }

    /// The open route of an event.
    pub(crate) async fn route(&self, event: &str) -> Result<Arc<Route>> {
        let Env(this) = self;
        if let Some(route) = self.known(&this.routes.load(), event)? {
            return Ok(route.clone());
        }
        let version = this.inner.routes_version();
        let route = this.inner.route(&this.product, &this.slug, event).await?;
        this.routes.rcu(|known| {
            let mut routes = if known.0 == version { known.1.clone() } else { HashMap::new() };
            routes.insert(event.to_owned(), route.clone());
            (version, routes)
        });
        Ok(route)
    }

    /// Produces a message: await the result for the confirm.
    ///
    /// ```no_run
    /// # async fn doc(shop: trunkline::Env) -> trunkline::Result<()> {
    /// let receipt = shop.produce("order-events:order-created", &serde_json::json!({ "orderId": "123" })).key("123").await?;
    /// println!("{}", receipt.process_id);
    /// # Ok(()) }
    /// ```
    pub fn produce<'a, T: Serialize + ?Sized>(&'a self, event: &'a str, payload: &T) -> Produce<'a> {
        let payload = serde_json::to_vec(payload)
            .map(Bytes::from)
            .map_err(|error| Error::new(Code::PayloadInvalid, format!("the payload cannot be written as JSON: {error}")).field("message"));
        Produce { env: self, event, payload, key: None, options: None }
    }

    /// Produces bytes as they are.
    pub fn produce_raw<'a>(&'a self, event: &'a str, payload: impl Into<Bytes>) -> Produce<'a> {
        Produce { env: self, event, payload: Ok(payload.into()), key: None, options: None }
    }

    /// Produces many messages of one event at once; a result for each, in order.
    pub async fn produce_batch(&self, event: &str, messages: Vec<(Bytes, ProduceOptions)>) -> Result<Vec<Result<Receipt>>> {
        self.inner().access.allow(Call::Produce)?;
        let route = self.route(event).await?;
        let sent = messages.into_iter().map(|(payload, options)| self.produce_on(route.clone(), event, payload, options));
        Ok(futures_util::future::join_all(sent).await)
    }

    /// The options with their session verified, and what it stamps on the message in its place.
    async fn verified(&self, mut options: ProduceOptions) -> Result<ProduceOptions> {
        if let Some(session) = options.session.take() {
            options.stamp = Some(self.sessions().check(&session).await?.stamp.clone());
        }
        Ok(options)
    }

    /// Produces on the route; on the one that took its place if it was closed meanwhile, since the env moved.
    pub(crate) async fn produce_on(&self, mut route: Arc<Route>, event: &str, payload: Bytes, options: ProduceOptions) -> Result<Receipt> {
        let options = self.verified(options).await?;
        loop {
            let sent = produce(&route, payload.clone(), options.clone()).await;
            match sent {
                Err(error) if error.code() == Code::Closed && error.details().get("ambiguous").is_some_and(|said| said == false) => {
                    let now = self.route(event).await?;
                    if Arc::ptr_eq(&now, &route) {
                        return Err(error);
                    }
                    route = now;
                }
                sent => return sent,
            }
        }
    }
}

/// A produce being described. Awaiting it sends the message and waits for the confirm.
#[derive(Debug)]
#[must_use = "a produce sends when it is awaited"]
pub struct Produce<'a> {
    env: &'a Env,
    event: &'a str,
    payload: Result<Bytes>,
    key: Option<Bytes>,
    /// All but the key, where there are any: most messages have none.
    options: Option<Box<ProduceOptions>>,
}

impl<'a> Produce<'a> {
    fn rest(&mut self) -> &mut ProduceOptions {
        self.options.get_or_insert_default()
    }

    /// Sets all options at once.
    pub fn options(mut self, mut options: ProduceOptions) -> Self {
        self.key = options.key.take();
        self.options = Some(Box::new(options));
        self
    }

    /// The key: messages of one key keep their order on ordered topics.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(Bytes::from(key.into()));
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.rest().headers.push(name, value);
        self
    }

    /// Replaces all headers.
    pub fn headers(mut self, headers: Headers) -> Self {
        self.rest().headers = headers;
        self
    }

    /// Published once within the window (24 h), however often it is tried.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.rest().idempotency_key = Some(key.into());
        self
    }

    /// How long the idempotency key is remembered.
    pub fn window(mut self, window: Duration) -> Self {
        self.rest().window = Some(window);
        self
    }

    /// Not to be handed out before this long.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.rest().delay = Some(delay);
        self
    }

    /// Not to be handed out before this time (ms since 1970).
    pub fn deliver_at(mut self, at: Millis) -> Self {
        self.rest().deliver_at = Some(at);
        self
    }

    /// Not to be handled after this time (ms since 1970).
    pub fn expires_at(mut self, at: Millis) -> Self {
        self.rest().expires_at = Some(at);
        self
    }

    /// Who it is produced for: a token with its tag, as a session's start gives it. It is verified before anything is sent
    /// (`SESSION_INVALID`); the user's context then travels with the message.
    ///
    /// ```no_run
    /// # async fn doc(shop: trunkline::Env, token: String) -> trunkline::Result<()> {
    /// shop.produce("order-events:order-created", &serde_json::json!({ "orderId": "123" })).session(token).await?;
    /// # Ok(()) }
    /// ```
    pub fn session(mut self, session: impl Into<Session>) -> Self {
        self.rest().session = Some(session.into());
        self
    }

    /// Under this cache: what equals a message that was produced within its expiry is not sent again.
    ///
    /// Messages are equal if env, event, key and payload are (the payload in RFC 8785 form; headers do not count). The receipt
    /// is then that of the first one, with `cached: Some(true)`. While the store is down the message is sent. An unknown tag is
    /// `CACHE_NOT_FOUND`.
    pub fn cache(mut self, tag: impl Into<String>) -> Self {
        self.rest().cache = Some(tag.into());
        self
    }

    /// Confirmed within this, or failed (default 30 s).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.rest().timeout = Some(timeout);
        self
    }
}

impl<'a> Produce<'a> {
    /// What was described.
    pub(crate) fn into_parts(self) -> (&'a Env, &'a str, Result<Bytes>, ProduceOptions) {
        let options = ProduceOptions { key: self.key, ..self.options.map(|options| *options).unwrap_or_default() };
        (self.env, self.event, self.payload, options)
    }
}

impl<'a> IntoFuture for Produce<'a> {
    type Output = Result<Receipt>;
    type IntoFuture = Producing<'a>;

    fn into_future(self) -> Self::IntoFuture {
        Producing(Progress::Asked(self))
    }
}

/// A produce under way: resolves with the confirm. Dropping it after its first poll does not take the message back.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Producing<'a>(Progress<'a>);

enum Progress<'a> {
    Asked(Produce<'a>),
    /// A plain message on an open route, queued: nothing but the answer is waited for.
    Queued(Queued),
    /// All else.
    Longer(BoxFuture<'a, Result<Receipt>>),
    Over,
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Progress::Asked(_) => "Asked",
            Progress::Queued(_) => "Queued",
            Progress::Longer(_) => "Longer",
            Progress::Over => "Over",
        })
    }
}

impl<'a> Produce<'a> {
    fn start(self) -> Result<Progress<'a>> {
        let Produce { env, event, mut payload, mut key, options } = self;
        env.inner().access.allow(Call::Produce)?;
        if options.is_none()
            && payload.is_ok()
            && let routes = env.0.routes.load()
            && let Some(route) = env.known(&routes, event)?
        {
            match try_plain(route, Plain { payload: payload?, key })? {
                Ok(queued) => return Ok(Progress::Queued(queued)),
                Err(back) => (payload, key) = (Ok(back.payload), back.key),
            }
        }
        let options = ProduceOptions { key, ..options.map(|options| *options).unwrap_or_default() };
        Ok(Progress::Longer(Box::pin(async move {
            let route = env.route(event).await?;
            let options = env.verified(options).await?;
            env.produce_on(route, event, payload?, options).await
        })))
    }
}

impl Future for Producing<'_> {
    type Output = Result<Receipt>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let progress = &mut self.get_mut().0;
        if let Progress::Asked(_) = progress
            && let Progress::Asked(asked) = std::mem::replace(progress, Progress::Over)
        {
            *progress = asked.start()?;
        }
        let result = match progress {
            Progress::Queued(queued) => queued.poll(context),
            Progress::Longer(future) => future.as_mut().poll(context),
            Progress::Asked(_) | Progress::Over => panic!("a produce was polled after it was over"),
        };
        if result.is_ready() {
            *progress = Progress::Over;
        }
        result
    }
}

//! What an open instance holds: the store, the catalogue, the connections, the routes, and the work behind.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::background::publish_from_topics;
use crate::catalog::{Catalog, RouteEntry};
use crate::config::{ProviderConfig, ProviderKind};
use crate::consume::engine::Engine;
use crate::consume::shared::{GroupShare, Hand};
use crate::consume::state::State;
use crate::error::{Code, Error, Result};
use crate::event::Event;
use crate::history::{Batch, Class, Filed};
use crate::lot::topics::TopicLot;
use crate::message::{MessageId, millis};
use crate::payloads::Payloads;
use crate::policy::{LotPlace, Schedule, Wishes, plan};
use crate::produce::sender::Sender;
use crate::provider::{GroupSpec, Provider, Stage, Start};
use crate::route::Route;
use crate::secret::Vault;
use crate::sessions::Gate;
use crate::store::{Address, Scope, Store};
use crate::tracker::Tracker;

/// What the consumers of one group share in this process, by topic and group.
type GroupShares = HashMap<(Address, Arc<str>), std::sync::Weak<GroupShare>>;

/// See the module. What it was made of is read as if it were its own.
pub(crate) struct Inner {
    parts: Parts,
    /// This process: in claims, leases and the registry.
    pub(crate) process: Arc<str>,
    pub(crate) tasks: TaskTracker,
    pub(crate) end: CancellationToken,
    pub(crate) delayed: Arc<Notify>,
    /// Told when a schedule was made or resumed.
    pub(crate) scheduled: Arc<Notify>,
    /// What the consumers of a group share, while there are any.
    groups: Mutex<GroupShares>,
    /// What all consumers have in hand.
    pub(crate) hand: Arc<Hand>,
    pub(crate) engines: Mutex<Vec<std::sync::Weak<Engine>>>,
    /// Who stands in the registry because of this process.
    pub(crate) reported: Mutex<HashSet<String>>,
    providers: tokio::sync::Mutex<HashMap<ProviderKey, Arc<dyn Provider>>>,
    routes: RwLock<HashMap<Address, Arc<Route>>>,
    /// Routes of servers that envs have left, by epoch.
    left: Mutex<HashMap<(Address, u64), Arc<Route>>>,
    /// Connections that some route has left.
    fading: Mutex<Vec<Arc<dyn Provider>>>,
    /// Since when nothing waits for a group on a server that is being left.
    pub(crate) quiet: Mutex<HashMap<Quiet, Instant>>,
    /// The version of the catalogue that the checks of payloads follow.
    topics_followed: AtomicU64,
    opening: tokio::sync::Mutex<()>,
    /// The catalogue's version that open connections were brought to.
    pub(crate) followed: AtomicU64,
    closed: std::sync::atomic::AtomicBool,
}

/// Puts something between the core and each provider (for tests).
pub(crate) type Wrap = Arc<dyn Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync>;

/// Topics of one server and config share a connection.
type ProviderKey = (ProviderKind, String);

/// A group of a topic on a server that is being left, which has an epoch.
pub(crate) type Quiet = (Address, u64, Arc<str>);

/// So long after an env moved, what was handed to its old side by then is still sent there.
const AFTERGLOW: Duration = Duration::from_secs(5);

impl Deref for Inner {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trunkline({})", self.store.location())
    }
}

/// What an instance is made of.
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) catalog: Catalog,
    pub(crate) access: Arc<Access>,
    pub(crate) vault: Vault,
    pub(crate) sessions: Arc<Gate>,
    pub(crate) tracker: Tracker,
    pub(crate) directory: PathBuf,
    pub(crate) single_host: bool,
    pub(crate) lot_on_broker: bool,
    pub(crate) wrap: Option<Wrap>,
    pub(crate) sdk: String,
    pub(crate) host: String,
    /// The bytes that all consumers may have in hand.
    pub(crate) in_hand: usize,
}

impl Inner {
    pub(crate) fn new(parts: Parts) -> Arc<Inner> {
        Arc::new(Inner {
            process: MessageId::now().to_string().into(),
            tasks: TaskTracker::new(),
            end: CancellationToken::new(),
            delayed: Arc::new(Notify::new()),
            scheduled: Arc::new(Notify::new()),
            groups: Mutex::default(),
            hand: Hand::new(parts.in_hand),
            engines: Mutex::new(Vec::new()),
            reported: Mutex::default(),
            providers: tokio::sync::Mutex::new(HashMap::new()),
            routes: RwLock::new(HashMap::new()),
            left: Mutex::default(),
            fading: Mutex::default(),
            quiet: Mutex::default(),
            topics_followed: AtomicU64::new(0),
            opening: tokio::sync::Mutex::new(()),
            followed: AtomicU64::new(parts.catalog.version()),
            closed: std::sync::atomic::AtomicBool::new(false),
            parts,
        })
    }

    /// Told to the history; never waits.
    pub(crate) fn record(&self, batch: Batch) {
        self.tracker.record(batch);
    }

    /// Grows whenever a route may have changed, so that handles drop what they remember.
    pub(crate) fn routes_version(&self) -> u64 {
        self.catalog.version()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::new(Code::Closed, "this instance is closed")) } else { Ok(()) }
    }

    /// The open routes.
    pub(crate) fn open_routes(&self) -> Vec<Arc<Route>> {
        self.routes.read().values().cloned().collect()
    }

    /// Brings the checks of payloads to what the catalogue says of the topics, if it changed since the last time.
    pub(crate) fn follow_topics(&self) {
        let version = self.catalog.version();
        if self.topics_followed.swap(version, Ordering::AcqRel) == version {
            return;
        }
        for route in self.open_routes().into_iter().chain(self.left_routes()) {
            let Address { product, env, event } = &route.filed.address;
            if let Ok(entry) = self.catalog.route(product, env, event) {
                route.payloads.follow(&entry.topic);
            }
        }
    }

    /// The open routes of servers that envs have left.
    pub(crate) fn left_routes(&self) -> Vec<Arc<Route>> {
        self.left.lock().values().cloned().collect()
    }

    /// Takes routes out: their topics are gone.
    pub(crate) fn take_routes(&self, concerns: impl Fn(&Address) -> bool) -> Vec<Arc<Route>> {
        self.left.lock().retain(|(address, _), _| !concerns(address));
        let mut routes = self.routes.write();
        let gone: Vec<Address> = routes.keys().filter(|address| concerns(address)).cloned().collect();
        gone.iter().filter_map(|address| routes.remove(address)).collect()
    }

    /// The open route of an event; opened on its first use.
    pub(crate) async fn route(self: &Arc<Self>, product: &str, env: &str, event: &str) -> Result<Arc<Route>> {
        self.check_open()?;
        // The order of checks is fixed: product, then the event's syntax, then broker, env and topic.
        let event: Event = match event.parse() {
            Ok(event) => event,
            Err(error) => return Err(self.catalog.list_brokers(product).err().unwrap_or(error)),
        };
        let entry = self.catalog.route(product, env, &event)?;
        self.vault.refresh(self.catalog.version()).await?;
        let connection = self.connection_of(&entry)?;
        let is_it = |route: &&Arc<Route>| route.epoch == entry.epoch && route.connection == connection;
        if let Some(route) = self.routes.read().get(&entry.address).filter(is_it) {
            route.payloads.follow(&entry.topic);
            return Ok(route.clone());
        }
        let _one = self.opening.lock().await;
        if let Some(route) = self.routes.read().get(&entry.address).filter(is_it) {
            return Ok(route.clone());
        }
        let route = self.open_and_tend(&entry).await?;
        let old = self.routes.write().insert(entry.address.clone(), route.clone());
        if let Some(old) = old {
            if entry.leaving.iter().any(|left| left.epoch == old.epoch) {
                self.left.lock().insert((entry.address.clone(), old.epoch), old.clone());
            }
            // What was handed to the old side is still confirmed there.
            self.fading.lock().push(old.provider.clone());
            self.tasks.spawn(async move {
                tokio::time::sleep(AFTERGLOW).await;
                old.sender.close(Instant::now() + crate::produce::TIMEOUT).await;
            });
        }
        Ok(route)
    }

    /// The open route to a server that an env has left.
    pub(crate) async fn route_left(self: &Arc<Self>, entry: &RouteEntry) -> Result<Arc<Route>> {
        self.check_open()?;
        let key = (entry.address.clone(), entry.epoch);
        self.vault.refresh(self.catalog.version()).await?;
        let connection = self.connection_of(entry)?;
        let is_it = |route: &&Arc<Route>| route.epoch == entry.epoch && route.connection == connection;
        let _one = self.opening.lock().await;
        if let Some(route) = self.left.lock().get(&key).filter(is_it) {
            return Ok(route.clone());
        }
        let now = self.routes.read().get(&entry.address).filter(is_it).cloned();
        let route = match now {
            Some(route) => route,
            None => self.open_and_tend(entry).await?,
        };
        if let Some(old) = self.left.lock().insert(key, route.clone()) {
            self.fading.lock().push(old.provider.clone());
        }
        Ok(route)
    }

    async fn open_and_tend(self: &Arc<Self>, entry: &RouteEntry) -> Result<Arc<Route>> {
        let route = Arc::new(self.open_route(entry).await?);
        if let Some(lot) = &route.delays {
            let work = publish_from_topics(Arc::downgrade(self), Arc::downgrade(&route), lot.clone(), self.end.clone());
            self.tasks.spawn(work);
        }
        Ok(route)
    }

    /// Lets go of the servers that no env leads to any more and that no env is leaving.
    pub(crate) async fn forget_left(&self) {
        let _one = self.opening.lock().await;
        let is_left = |(address, epoch): &(Address, u64)| {
            let entry = self.catalog.route(&address.product, &address.env, &address.event);
            entry.is_ok_and(|entry| entry.leaving.iter().any(|left| left.epoch == *epoch))
        };
        let mut fading = std::mem::take(&mut *self.fading.lock());
        self.left.lock().retain(|key, route| {
            let stays = is_left(key);
            if !stays {
                fading.push(route.provider.clone());
            }
            stays
        });
        let mut used: Vec<_> = self.open_routes().iter().map(|route| route.provider.clone()).collect();
        used.extend(self.left.lock().values().map(|route| route.provider.clone()));
        let engines: Vec<_> = self.engines.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        let at_work = engines.iter().filter(|engine| *engine.state().borrow() != State::Closed).map(|engine| engine.provider.clone());
        let working: Vec<_> = at_work.collect();
        fading.retain(|provider| !used.iter().any(|of| Arc::ptr_eq(of, provider)));
        let (later, gone): (Vec<_>, Vec<_>) = fading.into_iter().partition(|provider| working.iter().any(|of| Arc::ptr_eq(of, provider)));
        self.fading.lock().extend(later);
        self.providers.lock().await.retain(|_, provider| !gone.iter().any(|of| Arc::ptr_eq(of, provider)));
        for provider in gone {
            provider.close(Instant::now() + Duration::from_secs(5)).await;
        }
    }

    async fn open_route(self: &Arc<Self>, entry: &RouteEntry) -> Result<Route> {
        let connection = self.connection_of(entry)?;
        let Address { product, env, .. } = &entry.address;
        let provider = self.provider((product, env), entry.kind, &entry.config).await?;
        let topic = entry.topic_spec();
        let capabilities = provider.capabilities(&topic);
        let retention = entry.topic.retention.unwrap_or_default();
        let class = Class { capture: entry.topic.capture, age_ms: retention.age.map_or(0, millis), bytes: retention.bytes.unwrap_or(0) };
        let filed = Arc::new(Filed { address: entry.address.clone(), provider: entry.kind.as_str(), class });
        // A produce asks only for what is confirmed; the retry schedule is the consumer's wish.
        let never = Schedule::never();
        self.plan(entry, &never, false, &capabilities)?;
        // What is produced before the first consume is delivered to it: every group the catalogue knows is made now.
        let start = if capabilities.keeps_messages { Start::Earliest } else { Start::Latest };
        let groups: Vec<GroupSpec> = entry.groups.iter().map(|group| entry.group_spec(&group.name, &start)).collect();
        let ensured = provider.ensure(&topic, &groups).await?;
        for drift in &ensured.drift {
            tracing::warn!(address = %entry.address, %drift, "the broker differs from the catalogue");
        }
        // What the topic is like on its server is only known now: another may have made it, with settings of its own.
        let capabilities = provider.capabilities(&topic);
        self.plan(entry, &never, false, &capabilities)?;
        let sender = Sender::new(provider.clone(), topic.clone(), filed.clone(), self.process.clone(), self.tracker.clone());
        let delays = if self.lot_place(entry.kind) == LotPlace::Topics {
            let lot = TopicLot::of_delays(provider.clone(), &topic, entry.address.clone(), self.store.clone());
            lot.ensure().await?;
            Some(Arc::new(lot))
        } else {
            None
        };
        Ok(Route {
            filed,
            provider,
            topic,
            capabilities,
            store: self.store.clone(),
            sender,
            process: self.process.clone(),
            delayed: self.delayed.clone(),
            delays,
            lots: Mutex::default(),
            sessions: self.sessions.clone(),
            pulse: crate::background::Pulse::default(),
            epoch: entry.epoch,
            connection,
            payloads: Arc::new(Payloads::of(&entry.topic)),
            instance: Arc::downgrade(self),
        })
    }

    /// Whether the broker is of this host only, so that the store may be the lot.
    fn of_this_host(&self, kind: ProviderKind) -> bool {
        (kind == ProviderKind::Embedded && !self.lot_on_broker) || self.single_host
    }

    pub(crate) fn lot_place(&self, kind: ProviderKind) -> LotPlace {
        if self.store.scope() == Scope::Shared || self.of_this_host(kind) { LotPlace::Store } else { LotPlace::Topics }
    }

    /// Checks what is asked of a route against what its provider can do.
    pub(crate) fn plan(
        &self,
        entry: &RouteEntry,
        schedule: &Schedule,
        ordered: bool,
        capabilities: &crate::capability::Capabilities,
    ) -> Result<LotPlace> {
        let wishes = Wishes {
            provider: entry.kind.as_str(),
            ordered,
            schedule,
            durability: entry.topic.durability,
            scope: self.store.scope(),
            single_host: self.of_this_host(entry.kind),
        };
        plan(&wishes, capabilities)
    }

    /// Tells the connection of a route from the one it had before its config or a secret in it changed. What lies in memory
    /// would be lost with its connection, so that one never changes.
    pub(crate) fn connection_of(&self, entry: &RouteEntry) -> Result<u64> {
        let Address { product, env, .. } = &entry.address;
        let resolved = self.vault.resolve(product, env, &entry.config)?;
        let in_memory = entry.kind == ProviderKind::Embedded && resolved.get("memory") == Some(&serde_json::Value::Bool(true));
        Ok(if in_memory { 0 } else { xxhash_rust::xxh3::xxh3_64(resolved.to_string().as_bytes()) })
    }

    /// The connection of a config in an env of a product, opened on its first use.
    pub(crate) async fn provider(
        &self,
        (product, env): (&str, &str),
        kind: ProviderKind,
        config: &serde_json::Value,
    ) -> Result<Arc<dyn Provider>> {
        kind.require_compiled_in()?;
        self.vault.refresh(self.catalog.version()).await?;
        let resolved = self.vault.resolve(product, env, config)?;
        let config = ProviderConfig::parse(kind, &resolved)?;
        let key = (kind, resolved.to_string());
        let mut providers = self.providers.lock().await;
        if let Some(provider) = providers.get(&key) {
            return Ok(provider.clone());
        }
        let mut provider = crate::provider::open(&config, &self.directory).await?;
        if let Some(wrap) = &self.wrap {
            provider = wrap(provider);
        }
        providers.insert(key, provider.clone());
        Ok(provider)
    }

    /// Tests a config in stages, by the deadline. What cannot be tested before it is open, is opened.
    pub(crate) async fn test(
        &self,
        (product, env): (&str, &str),
        kind: ProviderKind,
        config: &serde_json::Value,
        deadline: Instant,
    ) -> Result<Vec<Stage>> {
        kind.require_compiled_in()?;
        self.vault.refresh(self.catalog.version()).await?;
        let parsed = ProviderConfig::parse(kind, &self.vault.resolve(product, env, config)?)?;
        if let Some(stages) = crate::provider::test(&parsed, deadline).await? {
            return Ok(stages);
        }
        let opened = tokio::time::timeout_at(deadline.into(), self.provider((product, env), kind, config)).await;
        let opened = opened.map_err(|_| Error::new(Code::Timeout, "the broker did not answer in time"))?;
        Ok(opened?.probe(deadline).await)
    }

    /// Sends what waits, closes every connection, writes what is left of the history.
    pub(crate) async fn close(&self, within: Duration) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let deadline = Instant::now() + within;
        let engines: Vec<_> = std::mem::take(&mut *self.engines.lock()).into_iter().filter_map(|engine| engine.upgrade()).collect();
        futures_util::future::join_all(engines.iter().map(|engine| engine.close(within))).await;
        let mut routes = self.open_routes();
        routes.extend(self.left_routes());
        futures_util::future::join_all(routes.iter().map(|route| route.sender.close(deadline))).await;
        self.end.cancel();
        self.tasks.close();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let _ = tokio::time::timeout(left, self.tasks.wait()).await;
        for provider in self.providers.lock().await.values() {
            provider.close(Instant::now() + left.min(Duration::from_secs(5))).await;
        }
        self.leave_registry().await;
        if let Err(error) = self.tracker.close().await {
            tracing::warn!(%error, "the last of the history could not be written");
        }
        self.store.close().await;
    }
}

impl Inner {
    /// Reads what the dead topics of an event say into the store, for one group or all that the catalogue knows.
    pub(crate) async fn catch_up(self: &Arc<Self>, product: &str, env: &str, event: &Event, group: Option<&str>) -> Result<()> {
        let route = self.route(product, env, event.as_str()).await?;
        for lot in self.lots_on_broker(&route, group)? {
            lot.catch_up().await?;
        }
        Ok(())
    }

    /// The lots of a route that lie on the broker: of delayed publishes, and of the groups that the catalogue knows.
    pub(crate) fn lots_on_broker(&self, route: &Route, group: Option<&str>) -> Result<Vec<Arc<TopicLot>>> {
        let Address { product, env, event } = &route.filed.address;
        let entry = self.catalog.route(product, env, event)?;
        let groups = entry.groups.iter().map(|known| &*known.name).chain([""]);
        Ok(groups.filter(|name| group.is_none_or(|group| group == *name)).filter_map(|name| route.lot_of(name)).collect())
    }

    /// What the consumers of this group in this process share.
    pub(crate) fn group_share(&self, address: &Address, group: &Arc<str>) -> Arc<GroupShare> {
        let mut groups = self.groups.lock();
        groups.retain(|_, share| share.strong_count() > 0);
        let key = (address.clone(), group.clone());
        if let Some(share) = groups.get(&key).and_then(std::sync::Weak::upgrade) {
            return share;
        }
        let share = GroupShare::new();
        groups.insert(key, Arc::downgrade(&share));
        share
    }

    /// Whether the catalogue says that the group is paused.
    pub(crate) fn is_paused(&self, address: &Address, group: &str) -> bool {
        self.catalog
            .route(&address.product, &address.env, &address.event)
            .is_ok_and(|entry| entry.groups.iter().any(|known| &*known.name == group && known.paused))
    }
}

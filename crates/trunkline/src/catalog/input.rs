//! What the calls take: their fields, the spellings that mean the same, and what can be said without knowing the catalogue.

use serde_json::{Map, Value};

use super::record::{Ordering, OwnName, QueueUrl};
use super::session::{Period, SessionDoc, field_of};
use crate::capability::Durability;
use crate::config::fields::{Field, INPUT, Kind, is_absent, join};
use crate::config::{self, ProviderKind};
use crate::error::{Error, Result};
use crate::event::{Event, check_tag};
use crate::history::Capture;
use crate::message::{Millis, millis};
use crate::policy_config::{Defaults, Retention, duration};
use crate::schema::Validate;

const SLUGS: &[&str] = &["env", "env_slug", "env_type"];
const KINDS: &[&str] = &["KAFKA", "RABBITMQ", "REDIS", "AWS_SQS", "GOOGLE_PUBSUB", "NATS", "EMBEDDED"];

const PRODUCT: Field = Field::new("product", Kind::Tag).aliases(&["product_tag"]);
const ENV: &[Field] = &[
    Field::new("slug", Kind::Tag).required().aliases(SLUGS),
    Field::new("type", Kind::Word(KINDS)).required(),
    Field::new("config", Kind::Any),
];

const BROKER: &[Field] = &[
    PRODUCT,
    Field::new("name", Kind::Text).required(),
    Field::new("tag", Kind::Tag).required(),
    Field::new("description", Kind::Text),
    Field::new("envs", Kind::Objects(ENV)).required(),
];

const BROKER_PATCH: &[Field] = &[
    PRODUCT,
    Field::new("name", Kind::Text),
    Field::new("tag", Kind::Tag),
    Field::new("description", Kind::Text),
    Field::new("envs", Kind::Objects(ENV)),
    Field::new("cut", Kind::Bool),
];

const PRODUCT_FIELDS: &[Field] = &[
    Field::new("tag", Kind::Tag).aliases(&["product", "product_tag"]),
    Field::new("name", Kind::Text),
    Field::new("description", Kind::Text),
];

const CACHE: &[Field] = &[
    PRODUCT,
    Field::new("tag", Kind::Tag).required(),
    Field::new("name", Kind::Text),
    Field::new("description", Kind::Text),
    Field::new("expiry", Kind::By(expiry)).required(),
];

const CACHE_PATCH: &[Field] = &[
    PRODUCT,
    Field::new("tag", Kind::Tag),
    Field::new("name", Kind::Text),
    Field::new("description", Kind::Text),
    Field::new("expiry", Kind::By(expiry)),
];

fn expiry(path: &str, value: &Value) -> Result<()> {
    if duration(path, value)?.is_zero() { Err(Error::input(path, format!("`{path}` must be at least 1 ms"))) } else { Ok(()) }
}

const SHARDS_MAX: i64 = 1_024;
const NAME: &[Field] = &[Field::new("slug", Kind::Tag).required().aliases(SLUGS), Field::new("name", Kind::Text).required()];
const QUEUE: &[Field] = &[Field::new("slug", Kind::Tag).required().aliases(SLUGS), Field::new("url", Kind::Text).required()];

macro_rules! topic_fields {
    ($name:expr, $tag:expr) => {
        &[
            PRODUCT,
            $name,
            $tag,
            Field::new("messageBrokerTag", Kind::Tag).aliases(&["brokerTag"]),
            Field::new("description", Kind::Text),
            Field::new("sample", Kind::Any),
            Field::new("schema", Kind::By(schema)),
            Field::new("validate", Kind::Word(&["off", "warn", "reject"])),
            Field::new("ordering", Kind::Word(&["none", "key"])),
            Field::new("shards", Kind::Int(1, SHARDS_MAX)),
            Field::new("durability", Kind::Word(&["memory", "written", "fsynced", "replicated", "cloud"])),
            Field::new("capture", Kind::Word(&["full", "metadata", "off"])),
            Field::new("retention", Kind::By(|path, value| Retention::read(path, value).map(drop))),
            Field::new("queueUrls", Kind::By(queue_urls)),
            Field::new("queueUrl", Kind::By(queue_urls)),
            Field::new("names", Kind::Objects(NAME)),
            Field::new("defaults", Kind::By(|path, value| Defaults::read(path, value).map(drop))),
        ]
    };
}

const TOPIC: &[Field] = topic_fields!(Field::new("name", Kind::Text).required(), Field::new("tag", Kind::Text).required());
const TOPIC_PATCH: &[Field] = topic_fields!(Field::new("name", Kind::Text), Field::new("tag", Kind::Text));

fn schema(path: &str, value: &Value) -> Result<()> {
    if !value.is_object() && !value.is_boolean() {
        return Err(INPUT.wrong(path, "a JSON Schema (an object or a boolean)", value));
    }
    crate::schema::check(path, value)
}

fn queue_urls(path: &str, value: &Value) -> Result<()> {
    match value {
        Value::String(_) => Ok(()),
        Value::Array(_) => read_queue_urls(path, value, &[]).map(drop),
        _ => Err(INPUT.wrong(path, "a URL or a list of { env_slug, url }", value)),
    }
}

const EXPIRY_MOST: i64 = 1_000_000_000;

macro_rules! session_fields {
    ($($required:ident)?) => {
        &[
            PRODUCT,
            Field::new("name", Kind::Text)$(.$required())?,
            Field::new("tag", Kind::Tag)$(.$required())?,
            Field::new("description", Kind::Text),
            Field::new("selector", Kind::By(selector))$(.$required())?,
            Field::new("expiry", Kind::Int(1, EXPIRY_MOST))$(.$required())?,
            Field::new("period", Kind::Word(&["seconds", "minutes", "hours", "days"]))$(.$required())?,
            Field::new("schema", Kind::By(sample))$(.$required())?,
        ]
    };
}

const SESSION: &[Field] = session_fields!(required);
const SESSION_PATCH: &[Field] = session_fields!();

fn selector(path: &str, value: &Value) -> Result<()> {
    match value.as_str() {
        Some(text) if field_of(text).is_some() => Ok(()),
        _ => Err(INPUT.wrong(path, "a text of the form $Session{field}", value)),
    }
}

fn sample(path: &str, value: &Value) -> Result<()> {
    if value.is_object() { Ok(()) } else { Err(INPUT.wrong(path, "a sample of the data (an object)", value)) }
}

/// What a create or an update of a session definition says.
#[derive(Debug, Clone)]
pub(crate) struct SessionInput {
    pub(crate) product: Option<String>,
    pub(crate) tag: Option<String>,
    name: Option<String>,
    description: Option<String>,
    selector: Option<String>,
    expiry: Option<u64>,
    period: Option<Period>,
    schema: Option<Value>,
}

impl SessionInput {
    pub(crate) fn create(product: Option<&str>, input: &Value) -> Result<Self> {
        SessionInput::read(product, SESSION, input)
    }

    pub(crate) fn update(product: Option<&str>, patch: &Value) -> Result<Self> {
        SessionInput::read(product, SESSION_PATCH, patch)
    }

    fn read(product: Option<&str>, fields: &'static [Field], input: &Value) -> Result<Self> {
        let mut map = INPUT.object("", fields, input)?;
        Ok(SessionInput {
            product: product_of(product, &mut map)?,
            tag: take(&mut map, "tag"),
            name: take(&mut map, "name"),
            description: take(&mut map, "description"),
            selector: take(&mut map, "selector"),
            expiry: map.get("expiry").and_then(Value::as_u64),
            period: word(&mut map, "period"),
            schema: map.remove("schema"),
        })
    }

    /// The definition that a create makes.
    pub(crate) fn fresh(&self, product: &str, now: Millis) -> Result<SessionDoc> {
        let required = |field: &'static str| move || Error::input(field, format!("`{field}` is required"));
        let tag = self.tag.clone().ok_or_else(required("tag"))?;
        Ok(SessionDoc {
            name: self.name.clone().unwrap_or_else(|| tag.clone()),
            tag,
            description: self.description.clone(),
            product: product.to_owned(),
            selector: self.selector.clone().ok_or_else(required("selector"))?,
            expiry: self.expiry.ok_or_else(required("expiry"))?,
            period: self.period.ok_or_else(required("period"))?,
            schema: self.schema.clone().ok_or_else(required("schema"))?,
            created_at: now,
            updated_at: now,
        })
    }

    /// What a definition becomes.
    pub(crate) fn over(&self, old: &SessionDoc) -> SessionDoc {
        let old = old.clone();
        SessionDoc {
            name: self.name.clone().unwrap_or(old.name),
            description: self.description.clone().or(old.description),
            selector: self.selector.clone().unwrap_or(old.selector),
            expiry: self.expiry.unwrap_or(old.expiry),
            period: self.period.unwrap_or(old.period),
            schema: self.schema.clone().unwrap_or(old.schema),
            ..old
        }
    }
}

/// What a create or an update of a broker says.
#[derive(Debug, Clone)]
pub(crate) struct BrokerInput {
    pub(crate) product: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) envs: Option<Vec<EnvInput>>,
    pub(crate) cut: bool,
}

/// One env of it, its config checked as it is written.
#[derive(Debug, Clone)]
pub(crate) struct EnvInput {
    pub(crate) slug: String,
    pub(crate) kind: ProviderKind,
    pub(crate) config: Value,
}

impl BrokerInput {
    pub(crate) fn create(product: Option<&str>, input: &Value) -> Result<Self> {
        let read = BrokerInput::read(product, BROKER, input)?;
        if read.envs.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::input("envs", "`envs` must have at least one entry"));
        }
        Ok(read)
    }

    pub(crate) fn update(product: Option<&str>, patch: &Value) -> Result<Self> {
        BrokerInput::read(product, BROKER_PATCH, patch)
    }

    fn read(product: Option<&str>, fields: &'static [Field], input: &Value) -> Result<Self> {
        let mut map = INPUT.object("", fields, input)?;
        Ok(BrokerInput {
            product: product_of(product, &mut map)?,
            tag: take(&mut map, "tag"),
            name: take(&mut map, "name"),
            description: take(&mut map, "description"),
            envs: map.remove("envs").map(envs).transpose()?,
            cut: map.get("cut").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

fn envs(list: Value) -> Result<Vec<EnvInput>> {
    let Value::Array(list) = list else { return Ok(Vec::new()) };
    let mut envs: Vec<EnvInput> = Vec::with_capacity(list.len());
    for (i, env) in list.into_iter().enumerate() {
        let slug = env["slug"].as_str().unwrap_or_default().to_owned();
        let kind: ProviderKind = env["type"].as_str().unwrap_or_default().parse()?;
        let config = config::validate(kind, env.get("config").unwrap_or(&Value::Null))
            .map_err(|error| error.context(&format!("env '{slug}'")).detail("env", slug.as_str()))?;
        if envs.iter().any(|other| other.slug == slug) {
            return Err(Error::input(&format!("envs[{i}].slug"), format!("env '{slug}' is given twice")));
        }
        envs.push(EnvInput { slug, kind, config });
    }
    Ok(envs)
}

/// What a create or an update of a product says.
#[derive(Debug, Clone)]
pub(crate) struct ProductInput {
    pub(crate) tag: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
}

impl ProductInput {
    pub(crate) fn read(input: &Value) -> Result<Self> {
        let mut map = INPUT.object("", PRODUCT_FIELDS, input)?;
        Ok(ProductInput { tag: take(&mut map, "tag"), name: take(&mut map, "name"), description: take(&mut map, "description") })
    }
}

/// What a create or an update of a cache says.
#[derive(Debug, Clone)]
pub(crate) struct CacheInput {
    pub(crate) product: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    /// In milliseconds.
    pub(crate) expiry: Option<Millis>,
}

impl CacheInput {
    pub(crate) fn create(product: Option<&str>, input: &Value) -> Result<Self> {
        CacheInput::read(product, CACHE, input)
    }

    pub(crate) fn update(product: Option<&str>, patch: &Value) -> Result<Self> {
        CacheInput::read(product, CACHE_PATCH, patch)
    }

    fn read(product: Option<&str>, fields: &'static [Field], input: &Value) -> Result<Self> {
        let mut map = INPUT.object("", fields, input)?;
        Ok(CacheInput {
            product: product_of(product, &mut map)?,
            tag: take(&mut map, "tag"),
            name: take(&mut map, "name"),
            description: take(&mut map, "description"),
            expiry: map.get("expiry").map(|value| duration("expiry", value).map(millis)).transpose()?,
        })
    }
}

/// What a create or an update of a topic says.
#[derive(Debug, Clone)]
pub(crate) struct TopicInput {
    pub(crate) product: Option<String>,
    pub(crate) event: Option<Event>,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) sample: Option<Value>,
    pub(crate) schema: Option<Value>,
    pub(crate) validate: Option<Validate>,
    pub(crate) ordering: Option<Ordering>,
    pub(crate) shards: Option<u32>,
    pub(crate) durability: Option<Durability>,
    pub(crate) capture: Option<Capture>,
    pub(crate) retention: Option<Retention>,
    pub(crate) names: Option<Vec<OwnName>>,
    pub(crate) defaults: Option<Defaults>,
    queue_urls: Option<Value>,
    queue_url: Option<Value>,
}

impl TopicInput {
    pub(crate) fn create(product: Option<&str>, input: &Value) -> Result<Self> {
        TopicInput::read(product, TOPIC, input)
    }

    pub(crate) fn update(product: Option<&str>, patch: &Value) -> Result<Self> {
        TopicInput::read(product, TOPIC_PATCH, patch)
    }

    fn read(product: Option<&str>, fields: &'static [Field], input: &Value) -> Result<Self> {
        let mut map = INPUT.object("", fields, input)?;
        let broker = take(&mut map, "messageBrokerTag");
        let tag = take(&mut map, "tag");
        Ok(TopicInput {
            product: product_of(product, &mut map)?,
            event: tag.map(|tag| event_of("tag", &tag, broker.as_deref())).transpose()?,
            name: take(&mut map, "name"),
            description: take(&mut map, "description"),
            sample: map.remove("sample"),
            schema: map.remove("schema"),
            validate: word(&mut map, "validate"),
            ordering: word(&mut map, "ordering"),
            shards: map.remove("shards").and_then(|n| n.as_u64()).and_then(|n| u32::try_from(n).ok()),
            durability: word(&mut map, "durability"),
            capture: word(&mut map, "capture"),
            retention: map.get("retention").map(|value| Retention::read("retention", value)).transpose()?,
            names: map.remove("names").map(names).transpose()?,
            defaults: map.get("defaults").map(|value| Defaults::read("defaults", value)).transpose()?,
            queue_urls: map.remove("queueUrls"),
            queue_url: map.remove("queueUrl"),
        })
    }

    /// The queue URLs, a lone one being that of the broker's only env.
    pub(crate) fn queue_urls(&self, envs: &[&str]) -> Result<Option<Vec<QueueUrl>>> {
        let read = |field, value: &Option<Value>| value.as_ref().map(|value| read_queue_urls(field, value, envs)).transpose();
        match (read("queueUrls", &self.queue_urls)?, read("queueUrl", &self.queue_url)?) {
            (Some(a), Some(b)) if a != b => Err(Error::input("queueUrl", "`queueUrl` and `queueUrls` are both given, and differ")),
            (a, b) => Ok(a.or(b)),
        }
    }
}

fn read_queue_urls(path: &str, value: &Value, envs: &[&str]) -> Result<Vec<QueueUrl>> {
    let items = match (value, envs) {
        (Value::Array(items), _) => items,
        (Value::String(url), [only]) => return Ok(vec![QueueUrl { slug: (*only).to_owned(), url: url.clone() }]),
        _ => {
            let message = format!("`{path}` as one URL needs a broker with one env; this one has {}", envs.join(", "));
            return Err(Error::input(path, message).next("give a list of { env_slug, url }"));
        }
    };
    let mut urls: Vec<QueueUrl> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let mut item = INPUT.object(&path, QUEUE, item)?;
        let queue = QueueUrl { slug: take(&mut item, "slug").unwrap_or_default(), url: take(&mut item, "url").unwrap_or_default() };
        match urls.iter().find(|other| other.slug == queue.slug) {
            Some(other) if *other == queue => {}
            Some(_) => return Err(Error::input(&join(&path, "env_slug"), format!("env '{}' has two queue URLs", queue.slug))),
            None => urls.push(queue),
        }
    }
    Ok(urls)
}

fn names(list: Value) -> Result<Vec<OwnName>> {
    let Value::Array(list) = list else { return Ok(Vec::new()) };
    let mut names: Vec<OwnName> = Vec::new();
    for (i, item) in list.iter().enumerate() {
        let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
        let own = OwnName { slug: text("slug"), name: text("name") };
        if names.iter().any(|other| other.slug == own.slug) {
            return Err(Error::input(&format!("names[{i}].slug"), format!("env '{}' has two names", own.slug)));
        }
        names.push(own);
    }
    Ok(names)
}

/// A topic's tag in either form: full, or short beside its broker's.
pub(crate) fn event_of(field: &str, tag: &str, broker: Option<&str>) -> Result<Event> {
    let (broker, topic) = match (tag.split_once(':'), broker) {
        (Some((given, topic)), Some(broker)) if given == broker => (broker, topic),
        (Some(_), Some(_)) => {
            return Err(Error::input(field, format!("`{field}` names another broker than the broker's tag given beside it")));
        }
        (Some(parts), None) => parts,
        (None, Some(broker)) => (broker, tag),
        (None, None) => {
            check_tag(field, tag)?;
            return Err(Error::input(field, format!("`{field}` must be the full tag, `brokerTag:topicTag`"))
                .next(format!("write it like order-events:{tag}")));
        }
    };
    check_tag(field, broker)?;
    check_tag(field, topic)?;
    Event::new(broker, topic)
}

/// The product of a call: given as an argument, in the input, or in both alike.
fn product_of(argument: Option<&str>, map: &mut Map<String, Value>) -> Result<Option<String>> {
    let given = take(map, "product");
    let argument = argument.filter(|product| !product.is_empty());
    if let Some(product) = argument {
        check_tag("product", product)?;
    }
    match (argument, given) {
        (Some(a), Some(b)) if a != b => Err(Error::input("product", "`product` is given twice, and differs")),
        (a, b) => Ok(a.map(str::to_owned).or(b)),
    }
}

fn take(map: &mut Map<String, Value>, name: &str) -> Option<String> {
    match map.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// A word that the table of fields has checked.
fn word<T: serde::de::DeserializeOwned>(map: &mut Map<String, Value>, name: &str) -> Option<T> {
    map.remove(name).and_then(|word| serde_json::from_value(word).ok())
}

/// An argument that may be absent.
pub(crate) fn given<'a>(value: Option<&'a str>, field: &str) -> Result<Option<&'a str>> {
    match value.filter(|value| !is_absent(&Value::from(*value))) {
        Some(tag) => check_tag(field, tag).map(|()| Some(tag)),
        None => Ok(None),
    }
}

//! Dead letters: found, grouped, shown, edited, handed over again, discarded. The ledger of a reprocess is exact.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::history::{Batch, Step};
use crate::lot::topics::TopicLot;
use crate::message::{Headers, MessageId, Millis, now_ms};
use crate::policy::LotPlace;
use crate::produce::{ProduceOptions, produce};
use crate::store::{Address, DeadGroup, Job, LotEdit, LotEntry, LotFilter, LotState, erased};
use crate::trunkline::Env;

/// What a reprocess moves in one transaction.
const STEP: usize = 500;
/// How long a call waits for its job before it answers with the progress so far.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which dead letters. Empty fields match all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeadFilter {
    /// The broker's tag.
    pub broker: Option<String>,
    /// The topic's short tag.
    pub topic: Option<String>,
    /// The consumer group.
    pub group: Option<String>,
    /// The first line of the error, or the reason, exactly.
    pub error: Option<String>,
    /// These messages only.
    pub ids: Vec<MessageId>,
    /// Died at or after (ms since 1970).
    pub from: Option<Millis>,
    /// Died before.
    pub to: Option<Millis>,
}

/// Whom a dead letter is handed to again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The group it died at: the same message, attempts from 0.
    #[default]
    Group,
    /// Everyone: a new message that says which one it replays.
    Topic,
}

/// A reprocess.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reprocess {
    /// Which dead letters.
    pub filter: DeadFilter,
    /// To whom.
    pub target: Target,
    /// A new payload for each.
    pub payload: Option<Value>,
    /// At most this many.
    pub limit: Option<u64>,
    /// Messages per second.
    pub rate: Option<f64>,
    /// Only count.
    pub dry_run: bool,
}

/// What came of a reprocess.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reprocessed {
    /// How many matched when it began.
    pub matched: u64,
    /// How many were handed over.
    pub reprocessed: u64,
    /// How many could not be.
    pub failed: u64,
    /// How many were passed over.
    pub skipped: u64,
    /// One line a message, the newest 1,000.
    pub results: Vec<Value>,
    /// The job, to look after a long one. `None` for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// `done`, or `running` if it goes on behind.
    pub state: String,
}

impl Env {
    /// Dead letters that match, newest first, and how many there are in all.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn dead_letters(&self, filter: &DeadFilter, page: usize, limit: usize) -> Result<(Vec<LotEntry>, u64)> {
        self.inner().access.allow(Call::DeadLetterRead)?;
        self.look_at_brokers(filter).await;
        let filter = self.lot_filter(filter);
        let offset = page.saturating_sub(1) * limit;
        let mut letters = self.inner().store.lot_list(&filter, limit, offset, true).await?;
        let target = format!("{}/{}: a page of {} dead letters", self.product_tag(), self.slug(), letters.len());
        self.open_letters(&mut letters, &target).await?;
        Ok((letters, self.inner().store.lot_count(&filter).await?))
    }

    /// Leaves payloads in what is shown, and writes that down, if the caller may see them; else takes them out.
    async fn open_letters(&self, letters: &mut [LotEntry], target: &str) -> Result<()> {
        let access = &self.inner().access;
        if letters.is_empty() {
            return Ok(());
        }
        if access.may(Call::PayloadRead) {
            return access.note(Call::PayloadRead, target, None).await;
        }
        letters.iter_mut().for_each(|letter| letter.message.payload = Bytes::new());
        Ok(())
    }

    /// Dead letters grouped by error, most first.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn dead_groups(&self, filter: &DeadFilter) -> Result<Vec<DeadGroup>> {
        self.inner().access.allow(Call::DeadLetterRead)?;
        self.look_at_brokers(filter).await;
        self.inner().store.lot_groups(&self.lot_filter(filter)).await
    }

    /// The dead letters of one message: one for each group it died at.
    ///
    /// # Errors
    /// `MESSAGE_NOT_FOUND` if there is none.
    pub async fn dead_letter(&self, id: MessageId) -> Result<Vec<LotEntry>> {
        self.inner().access.allow(Call::DeadLetterRead)?;
        let mut letters = self.letters_of(id).await?;
        self.open_letters(&mut letters, &self.letter_target(id)).await?;
        Ok(letters)
    }

    fn letter_target(&self, id: MessageId) -> String {
        format!("{}/{}/{id}", self.product_tag(), self.slug())
    }

    async fn letters_of(&self, id: MessageId) -> Result<Vec<LotEntry>> {
        let filter = DeadFilter { ids: vec![id], ..DeadFilter::default() };
        self.look_at_brokers(&filter).await;
        let filter = self.lot_filter(&filter);
        let found = self.inner().store.lot_list(&filter, 100, 0, false).await?;
        if found.is_empty() {
            return Err(Error::new(Code::MessageNotFound, format!("no dead letter {id} in {}/{}", self.product_tag(), self.slug()))
                .field("eventId")
                .next("list them with `trunkline dead list`"));
        }
        Ok(found)
    }

    /// Changes payload or headers of a dead letter in place, at one group or at all it died at.
    ///
    /// # Errors
    /// `MESSAGE_NOT_FOUND`, with reason `erased` where the subject of its session was erased.
    pub async fn edit_dead_letter(
        &self,
        id: MessageId,
        group: Option<&str>,
        payload: Option<Bytes>,
        headers: Option<Headers>,
    ) -> Result<u64> {
        let edited = self.edit_letters(id, group, payload, headers);
        self.inner().access.audited(Call::DeadLetterEdit, &self.letter_target(id), edited).await
    }

    async fn edit_letters(&self, id: MessageId, group: Option<&str>, payload: Option<Bytes>, headers: Option<Headers>) -> Result<u64> {
        let mut edited = 0;
        for mut entry in self.letters_of(id).await? {
            if group.is_some_and(|group| group != &*entry.group) {
                continue;
            }
            if entry.is_erased() {
                return Err(erased(id));
            }
            if let Some(lot) = self.lot_on_broker(&entry).await? {
                entry.message.payload = payload.clone().unwrap_or(entry.message.payload);
                entry.message.headers = headers.clone().unwrap_or(entry.message.headers);
                lot.amended(&entry).await?;
            }
            if self.inner().store.lot_edit(entry.seq, LotEdit { payload: payload.clone(), headers: headers.clone() }).await? {
                edited += 1;
            }
        }
        if edited == 0 {
            return Err(Error::new(Code::MessageNotFound, format!("message {id} did not die at that group")).field("group"));
        }
        Ok(edited)
    }

    /// Removes dead letters for good; how many.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn discard_dead_letters(&self, filter: &DeadFilter) -> Result<u64> {
        self.inner().access.audited(Call::DeadLetterDiscard, &self.filter_target(filter), self.discard_letters(filter)).await
    }

    /// Names what a filter is about.
    fn filter_target(&self, filter: &DeadFilter) -> String {
        let all = serde_json::to_value(filter).unwrap_or_default();
        let given = all
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|ids| !ids.is_empty()));
        let given: Vec<String> = given.map(|(name, value)| format!("{name}={value}")).collect();
        let text = if given.is_empty() { "all".to_owned() } else { given.join(" ") };
        format!("{}/{}: {}", self.product_tag(), self.slug(), text.chars().take(500).collect::<String>())
    }

    async fn discard_letters(&self, filter: &DeadFilter) -> Result<u64> {
        self.look_at_brokers(filter).await;
        let mut filter = self.lot_filter(filter);
        let mut gone = 0;
        loop {
            let found = self.inner().store.lot_list(&filter, STEP, 0, false).await?;
            let Some(last) = found.last() else { return Ok(gone) };
            filter.after = Some(last.seq);
            self.say_gone(&found).await?;
            let seqs: Vec<u64> = found.iter().map(|entry| entry.seq).collect();
            gone += self.inner().store.lot_discard(&seqs).await?;
        }
    }

    /// Hands dead letters over again. A long one goes on as a job; after a crash any process goes on with it.
    ///
    /// # Errors
    /// `STORE_FAILED`.
    pub async fn reprocess(&self, what: Reprocess) -> Result<Reprocessed> {
        if what.dry_run {
            self.inner().access.allow(Call::DeadLetterRead)?;
            return self.reprocess_now(what).await;
        }
        let target = self.filter_target(&what.filter);
        self.inner().access.audited(Call::DeadLetterReprocess, &target, self.reprocess_now(what)).await
    }

    async fn reprocess_now(&self, what: Reprocess) -> Result<Reprocessed> {
        let store = &self.inner().store;
        self.look_at_brokers(&what.filter).await;
        let matched = store.lot_count(&self.lot_filter(&what.filter)).await?;
        let matched = what.limit.map_or(matched, |limit| matched.min(limit));
        if what.dry_run || matched == 0 {
            let state = "done".to_owned();
            return Ok(Reprocessed { matched, reprocessed: 0, failed: 0, skipped: 0, results: Vec::new(), job_id: None, state });
        }
        let now = now_ms();
        let job = Job {
            id: MessageId::now().to_string(),
            kind: "reprocess".into(),
            product: self.product_tag().to_owned(),
            state: "running".into(),
            spec: json!({ "env": self.slug(), "what": what }),
            cursor: 0,
            matched,
            done: 0,
            failed: 0,
            skipped: 0,
            results: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        store.job_put(&job).await?;
        let (env, id) = (self.clone(), job.id.clone());
        let work = self.inner().tasks.spawn(async move { env.run_reprocess(&id).await });
        let ended = tokio::time::timeout(PATIENCE, work).await;
        if let Ok(Ok(Err(error))) = ended {
            return Err(error.detail("job_id", job.id));
        }
        let job = store.job_get(&job.id).await?.unwrap_or(job);
        Ok(Reprocessed {
            matched: job.matched,
            reprocessed: job.done,
            failed: job.failed,
            skipped: job.skipped,
            results: job.results,
            job_id: Some(job.id),
            state: job.state,
        })
    }

    /// Works on a reprocess job until it is done, cancelled, or taken by another process.
    pub(crate) async fn run_reprocess(&self, id: &str) -> Result<()> {
        const LEASE: Duration = Duration::from_secs(10);
        let store = &self.inner().store;
        // A run's own, not the process's: the background work of this process must not join in either.
        let (lease, owner) = (format!("job/{id}"), MessageId::now().to_string());
        let started = tokio::time::Instant::now();
        let mut moved = 0u64;
        loop {
            if store.lease_take(&lease, &owner, LEASE).await?.is_none() {
                return Ok(());
            }
            let Some(mut job) = store.job_get(id).await?.filter(|job| job.state == "running") else { break };
            let what: Reprocess = serde_json::from_value(job.spec["what"].clone())
                .map_err(|error| Error::store(format!("job {id} cannot be read: {error}")))?;
            let left = job.matched.saturating_sub(job.done + job.failed + job.skipped);
            let step = what.rate.map_or(STEP, |rate| (rate.max(1.0) as usize).clamp(1, STEP)).min(usize::try_from(left).unwrap_or(STEP));
            let filter = self.lot_filter(&what.filter);
            let n = if step == 0 {
                0
            } else {
                match what.target {
                    Target::Group => {
                        let edit =
                            what.payload.as_ref().map(|payload| LotEdit { payload: Some(payload.to_string().into()), headers: None });
                        let revived = store.lot_revive(id, &filter, edit.as_ref(), step).await?;
                        self.record_reprocessed(&revived).await;
                        self.forward(&revived).await;
                        revived.len()
                    }
                    Target::Topic => self.replay_dead(&mut job, &what, filter, step).await?,
                }
            };
            if n == 0 {
                if let Some(mut job) = store.job_get(id).await?.filter(|job| job.state == "running") {
                    job.state = "done".into();
                    job.updated_at = now_ms();
                    store.job_put(&job).await?;
                }
                break;
            }
            moved += n as u64;
            if let Some(rate) = what.rate.filter(|rate| *rate > 0.0) {
                let next = started + Duration::from_secs_f64(moved as f64 / rate);
                while next > tokio::time::Instant::now() {
                    tokio::time::sleep_until(next.min(tokio::time::Instant::now() + LEASE / 3)).await;
                    if store.lease_take(&lease, &owner, LEASE).await?.is_none() {
                        return Ok(());
                    }
                }
            }
        }
        store.lease_release(&lease, &owner).await
    }

    /// Replays a step of dead letters to everyone. The new ids follow from job and entry, so that a step that is done
    /// again after a crash produces the same messages.
    async fn replay_dead(&self, job: &mut Job, what: &Reprocess, mut filter: LotFilter, step: usize) -> Result<usize> {
        let store = &self.inner().store;
        filter.after = Some(job.cursor).filter(|cursor| *cursor > 0);
        let entries = store.lot_list(&filter, step, 0, false).await?;
        for entry in &entries {
            let id = MessageId::derived(job.created_at, &[job.id.as_bytes(), &entry.seq.to_le_bytes()]);
            let payload = what.payload.as_ref().map_or_else(|| entry.message.payload.clone(), |payload| payload.to_string().into());
            let options = ProduceOptions {
                key: entry.message.key.clone(),
                headers: entry.message.headers.clone(),
                replay_of: Some(entry.message.id),
                id: Some(id),
                trusted: true,
                ..ProduceOptions::default()
            };
            let route = self.inner().route(&entry.address.product, &entry.address.env, entry.address.event.as_str()).await?;
            let produced = if entry.is_erased() { Err(erased(entry.message.id)) } else { produce(&route, payload, options).await };
            let result = match produced {
                Ok(_) => {
                    self.say_gone(std::slice::from_ref(entry)).await?;
                    store.lot_discard(&[entry.seq]).await?;
                    self.inner().record(Batch::Replayed { filed: route.filed.clone(), id: entry.message.id, by: id, at: now_ms() });
                    job.done += 1;
                    json!({ "process_id": entry.message.id, "group": entry.group, "success": true, "replayed_as": id })
                }
                Err(error) => {
                    job.failed += 1;
                    json!({ "process_id": entry.message.id, "group": entry.group, "success": false, "error": error })
                }
            };
            job.results.push(result);
            job.cursor = entry.seq;
        }
        let extra = job.results.len().saturating_sub(1_000);
        job.results.drain(..extra);
        job.updated_at = now_ms();
        // It may have been cancelled meanwhile.
        if let Some(now) = store.job_get(&job.id).await? {
            job.state = now.state;
        }
        store.job_put(job).await?;
        Ok(entries.len())
    }

    async fn record_reprocessed(&self, entries: &[LotEntry]) {
        for entry in entries {
            let Ok(route) = self.inner().route(&entry.address.product, &entry.address.env, entry.address.event.as_str()).await else {
                continue;
            };
            let item = crate::history::Attempt {
                id: entry.message.id,
                produced_at: entry.message.produced_at,
                step: Step::Reprocessed,
                attempts: 0,
                started_at: now_ms(),
                wait_us: 0,
                run_us: 0,
                error: None,
                key: entry.message.key.clone(),
                position: entry.message.position,
            };
            self.inner().record(Batch::Attempts {
                filed: route.filed.clone(),
                group: entry.group.clone(),
                consumer: self.inner().process.clone(),
                session: None,
                items: vec![item],
            });
        }
    }

    /// Where dead letters lie on a broker, the index of this host is brought up to date. A broker that cannot be reached
    /// leaves it as it is.
    async fn look_at_brokers(&self, filter: &DeadFilter) {
        let (inner, product) = (self.inner(), self.product_tag());
        let Ok(brokers) = inner.catalog.list_brokers(product) else { return };
        for broker in brokers.iter().filter(|broker| filter.broker.as_ref().is_none_or(|tag| *tag == broker.tag)) {
            let Some(kind) = broker.envs.iter().find(|env| env.slug == self.slug()).map(|env| env.kind) else { continue };
            if inner.lot_place(kind) != LotPlace::Topics {
                continue;
            }
            for topic in broker.topics.iter().filter(|topic| filter.topic.as_deref().is_none_or(|tag| tag == topic.tag.topic())) {
                if let Err(error) = inner.catch_up(product, self.slug(), &topic.tag, filter.group.as_deref()).await {
                    tracing::warn!(%error, event = %topic.tag, "dead letters on the broker cannot be read: what is known here is shown");
                }
            }
        }
    }

    /// The lot on the broker that a letter lies in; none if it lies in the store, or its topic is no longer there.
    async fn lot_on_broker(&self, entry: &LotEntry) -> Result<Option<Arc<TopicLot>>> {
        let Address { product, env, event } = &entry.address;
        match self.inner().route(product, env, event.as_str()).await {
            Ok(route) => Ok(route.lot_of(&entry.group)),
            Err(error)
                if matches!(error.code(), Code::ProductNotFound | Code::BrokerNotFound | Code::BrokerEnvNotFound | Code::TopicNotFound) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Says on the broker that these letters are no longer ones.
    async fn say_gone(&self, entries: &[LotEntry]) -> Result<()> {
        for of in entries.chunk_by(|a, b| (&a.address, &a.group) == (&b.address, &b.group)) {
            if let Some(lot) = self.lot_on_broker(&of[0]).await? {
                lot.gone(of).await?;
            }
        }
        Ok(())
    }

    /// Moves what was set back to waiting to the broker, where its lot lies there. What cannot be moved now is moved later.
    async fn forward(&self, entries: &[LotEntry]) {
        for of in entries.chunk_by(|a, b| (&a.address, &a.group) == (&b.address, &b.group)) {
            let moved = async {
                match self.lot_on_broker(&of[0]).await? {
                    Some(lot) => lot.forward(&self.inner().process).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = moved.await {
                tracing::warn!(%error, group = %of[0].group, "what is to be handled again waits until the broker is back");
            }
        }
    }

    pub(crate) fn lot_filter(&self, filter: &DeadFilter) -> LotFilter {
        LotFilter {
            product: Some(self.product_tag().to_owned()),
            env: Some(self.slug().to_owned()),
            broker: filter.broker.clone(),
            topic: filter.topic.clone(),
            group: filter.group.clone(),
            state: Some(LotState::Dead),
            ids: filter.ids.clone(),
            error: filter.error.clone(),
            from: filter.from,
            to: filter.to,
            after: None,
        }
    }
}

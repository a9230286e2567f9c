//! The part of a store the catalogue needs, over a store or in memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;

use crate::error::Result;
use crate::message::Millis;
use crate::store::{Doc, DocChange, DocKind, Store};

#[async_trait]
pub(crate) trait Docs: Send + Sync + Debug {
    fn now(&self) -> Millis;
    async fn version(&self) -> Result<u64>;
    async fn read(&self) -> Result<(u64, Vec<Doc>)>;
    async fn write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>>;
}

#[async_trait]
impl Docs for Arc<dyn Store> {
    fn now(&self) -> Millis {
        self.as_ref().now()
    }

    async fn version(&self) -> Result<u64> {
        self.catalog_version().await
    }

    async fn read(&self) -> Result<(u64, Vec<Doc>)> {
        self.catalog().await
    }

    async fn write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>> {
        self.catalog_write(expected, changes).await
    }
}

/// Documents in memory: where a plan is tried out before it is applied.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    now: Millis,
    docs: Mutex<(u64, Bodies)>,
}

type Bodies = BTreeMap<(DocKind, String), Value>;

impl Memory {
    pub(crate) fn new(now: Millis, version: u64, docs: Vec<Doc>) -> Self {
        Memory { now, docs: Mutex::new((version, docs.into_iter().map(|doc| ((doc.kind, doc.path), doc.body)).collect())) }
    }
}

#[async_trait]
impl Docs for Memory {
    fn now(&self) -> Millis {
        self.now
    }

    async fn version(&self) -> Result<u64> {
        Ok(self.docs.lock().0)
    }

    async fn read(&self) -> Result<(u64, Vec<Doc>)> {
        let docs = self.docs.lock();
        Ok((docs.0, docs.1.iter().map(|((kind, path), body)| Doc { kind: *kind, path: path.clone(), body: body.clone() }).collect()))
    }

    async fn write(&self, expected: u64, changes: Vec<DocChange>) -> Result<Option<u64>> {
        let mut docs = self.docs.lock();
        if docs.0 != expected {
            return Ok(None);
        }
        for change in changes {
            match change {
                DocChange::Put(doc) => drop(docs.1.insert((doc.kind, doc.path), doc.body)),
                DocChange::Remove(kind, path) => drop(docs.1.remove(&(kind, path))),
            }
        }
        docs.0 += 1;
        Ok(Some(docs.0))
    }
}

//! The numbers under which topics and groups are filed. They are never removed or changed, so what was read once stays true.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::link::Db;
use crate::error::Result;
use crate::store::Address;

/// A topic in an env, and a group of it.
pub(super) type Name = (Address, Arc<str>);

/// The numbers that this process knows.
#[derive(Debug, Default)]
pub(super) struct Targets(RwLock<HashMap<Name, i64>>);

impl Targets {
    /// The target's number, if anything was ever filed under it.
    pub(super) async fn find(&self, db: &Db, address: &Address, group: &str) -> Result<Option<i64>> {
        let name = (address.clone(), Arc::from(group));
        if let Some(id) = self.0.read().get(&name) {
            return Ok(Some(*id));
        }
        let sql = "SELECT id FROM target WHERE product = $1 AND env = $2 AND broker = $3 AND topic = $4 AND grp = $5";
        let event = &address.event;
        let row = db.first("look up a group", sql, &[&&*address.product, &&*address.env, &event.broker(), &event.topic(), &group]).await?;
        let found = row.map(|row| row.get(0));
        if let Some(id) = found {
            self.0.write().insert(name, id);
        }
        Ok(found)
    }

    /// The target's number, given now if need be. Outside of any transaction, so that what is remembered is never taken back.
    pub(super) async fn number(&self, db: &Db, address: &Address, group: &str) -> Result<i64> {
        loop {
            if let Some(id) = self.find(db, address, group).await? {
                return Ok(id);
            }
            let sql = "INSERT INTO target (product, env, broker, topic, grp) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
            let event = &address.event;
            db.run("file a group", sql, &[&&*address.product, &&*address.env, &event.broker(), &event.topic(), &group]).await?;
        }
    }
}

//! Sessions on the embedded broker: tokens that are refused, the life of a session, and what an erasure leaves.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Sessions, Started};
use crate::history::Query;
use crate::{Code, Env, Error, Trunkline};

mod erasure;
mod life;
mod tokens;

const EVENT: &str = "orders:created";
/// No test waits longer than this for anything.
const DEADLINE: Duration = Duration::from_secs(20);

struct Bed {
    trunkline: Trunkline,
    env: Env,
    sessions: Sessions,
    dir: TempDir,
}

impl Bed {
    async fn new() -> Bed {
        let dir = tempfile::tempdir().expect("a directory");
        let trunkline = open(&dir).await;
        let catalog = trunkline.catalog();
        let broker = json!({ "name": "Orders", "tag": "orders", "envs": [{ "slug": "prd", "type": "EMBEDDED" }] });
        catalog.create_broker(Some("shop"), broker).await.expect("a broker");
        catalog.create_topic(Some("shop"), json!({ "name": "Created", "tag": EVENT })).await.expect("a topic");
        for tag in ["user", "admin"] {
            let session = json!({
                "name": tag, "tag": tag, "selector": "$Session{user.id}", "expiry": 2, "period": "hours",
                "schema": { "user": { "id": "u-1" }, "plan": "free" }
            });
            catalog.create_session(Some("shop"), session).await.expect("a definition");
        }
        Bed { env: trunkline.env("shop", "prd"), sessions: trunkline.sessions("shop"), trunkline, dir }
    }

    async fn start(&self, user: &str) -> Started {
        self.sessions.start("user", json!({ "user": { "id": user }, "plan": "free" })).await.expect("a session")
    }

    /// Produces with this session; the error, if it is refused.
    async fn refused(&self, session: &str) -> Option<Error> {
        self.env.produce(EVENT, &json!({})).session(session).await.err()
    }

    /// How many messages there are in all.
    async fn sent(&self) -> u64 {
        self.env.messages(Query::default()).await.expect("a page").total
    }

    async fn end(self) -> TempDir {
        self.trunkline.close(Duration::from_secs(5)).await;
        self.dir
    }
}

async fn open(dir: &TempDir) -> Trunkline {
    Trunkline::open(&dir.path().join("data").to_string_lossy()).await.expect("it opens")
}

fn is_invalid(error: Option<&Error>, what: &str) {
    assert_eq!(error.map(Error::code), Some(Code::SessionInvalid), "{what}: {error:?}");
}

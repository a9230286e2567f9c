//! Connection tests: whether a broker of an env can be used, stage by stage. A failed test is a result, not an error.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::access::Call;
use crate::error::Result;
use crate::provider::{Stage, stage};
use crate::trunkline::Env;

/// How long a test may take.
const WITHIN: Duration = Duration::from_secs(15);

/// What came of a connection test.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionTest {
    /// Whether every stage passed.
    pub success: bool,
    /// The stages, in order; the first one that failed is the last.
    pub stages: Vec<Stage>,
}

impl Env {
    /// Tests the connection of a broker in this env.
    ///
    /// # Errors
    /// `PRODUCT_NOT_FOUND`, `BROKER_NOT_FOUND`, `BROKER_ENV_NOT_FOUND`, `STORE_FAILED`.
    pub async fn test_connection(&self, broker: &str) -> Result<ConnectionTest> {
        let inner = self.inner();
        inner.access.allow(Call::ConnectionTest)?;
        let (kind, config) = inner.catalog.env_config(self.product_tag(), self.slug(), broker)?;
        let since = Instant::now();
        let stages = match inner.test((self.product_tag(), self.slug()), kind, &config, since + WITHIN).await {
            Ok(stages) => stages,
            Err(error) => {
                let fix = error.detail_str("next").unwrap_or("check the config of this env").to_owned();
                vec![stage("open", since, Err((error, &fix)))]
            }
        };
        Ok(ConnectionTest { success: stages.iter().all(|stage| stage.ok), stages })
    }
}

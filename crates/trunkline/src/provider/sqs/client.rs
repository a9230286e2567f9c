//! The AWS clients of one connection: one config, one pool for short calls and one for long polls.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Credentials;

use super::http;
use super::options::Options;
use crate::config::{Secret, SqsConfig, Tls};
use crate::error::Result;

/// A short call that takes longer than this has failed.
pub(super) const CALL: Duration = Duration::from_secs(10);

/// See the module. All share credentials; none retries but `again`, whose calls may be made twice.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    /// Sends: what is not confirmed is the caller's to send again.
    pub(super) once: Client,
    /// Deletes, leases, names: doing them twice is doing them once.
    pub(super) again: Client,
    /// Receives, which wait at the server.
    pub(super) poll: Client,
}

/// Prepares the clients; nothing is connected yet.
pub(super) async fn connect(config: &SqsConfig, options: &Options) -> Result<Clients> {
    let plain = config.common.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http:"));
    let default = Tls::default();
    let tls = (!plain).then(|| config.common.tls.as_ref().unwrap_or(&default));
    let short = http::client(tls).await?;
    let long = http::client(tls).await?;
    // The chain asks other services (STS, SSO, the instance), to which `endpoint` and `tls` do not apply.
    let alone = config.access_key_id.is_none() && (plain || config.common.tls.is_some());
    let chain = if alone { http::client(Some(&default)).await? } else { short.clone() };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(config.region.clone())).http_client(chain);
    if let Some((id, key)) = config.access_key_id.as_ref().zip(config.secret_access_key.as_ref()) {
        let token = config.session_token.as_ref().map(|token| Secret::expose(token).to_owned());
        loader = loader.credentials_provider(Credentials::new(id, Secret::expose(key), token, None, "trunkline"));
    }
    if let Some(endpoint) = &config.common.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let base = loader.load().await;
    let limits = |one: Duration| TimeoutConfig::builder().operation_attempt_timeout(one).build();
    let of = |http, retry, one| {
        let config = aws_sdk_sqs::config::Builder::from(&base).http_client(http).retry_config(retry).timeout_config(limits(one));
        // Every call has its own deadline; a long poll is meant to stall.
        Client::from_conf(config.stalled_stream_protection(StalledStreamProtectionConfig::disabled()).build())
    };
    let twice = RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(100));
    Ok(Clients {
        once: of(short.clone(), RetryConfig::disabled(), CALL),
        again: of(short, twice, CALL),
        poll: of(long, RetryConfig::disabled(), options.wait + CALL),
    })
}

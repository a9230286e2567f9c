//! Who we are: the key of the config, else application default credentials (environment, gcloud, the machine's account).

use std::time::Duration;

use google_cloud_auth::credentials::{self, CacheableResource, Credentials, external_account, impersonated, service_account, user_account};
use serde_json::Value;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tonic::codegen::http::{Extensions, HeaderMap};

use crate::config::{PubsubConfig, Secret};
use crate::error::{Code, Error, Result};

/// What a token may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/pubsub";
/// A token that takes longer than this is not to be had.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) enum Auth {
    /// No credentials are sent: an emulator, over a connection that anybody could listen to.
    Nobody,
    /// Tokens of these.
    Known(Box<Credentials>),
}

impl Auth {
    /// Reads what the config gives; `plain` is a connection without TLS.
    ///
    /// # Errors
    /// `CONFIG_INVALID` naming the field, never showing its value.
    pub(super) async fn of(config: &PubsubConfig, plain: bool) -> Result<Auth> {
        let given = match (&config.credentials, &config.key_filename) {
            (Some(key), _) => Some(("credentials", Secret::expose(&key.0).to_owned())),
            (None, Some(path)) => Some(("keyFilename", read(path).await?)),
            (None, None) => None,
        };
        // The official client signs and connects with what the process has chosen; nothing is changed where it has.
        if CryptoProvider::get_default().is_none() {
            let _ = ring::default_provider().install_default();
        }
        let known = match given {
            Some((field, text)) => Some(of_key(field, &text)?),
            None if plain => None,
            None => Some(credentials::Builder::default().with_scopes([SCOPE]).build().map_err(|_| {
                Error::new(Code::AuthenticationFailed, "the application default credentials of this machine cannot be used")
                    .reason("no_credentials")
                    .next("check the file that GOOGLE_APPLICATION_CREDENTIALS names, or run `gcloud auth application-default login`")
            })?),
        };
        // A token over a connection without TLS would be anybody's.
        Ok(known.filter(|_| !plain).map_or(Auth::Nobody, |known| Auth::Known(Box::new(known))))
    }

    /// What a call says about us. Tokens are kept until they end.
    ///
    /// # Errors
    /// `AUTHENTICATION_FAILED` where there is no token to be had.
    pub(super) async fn headers(&self) -> Result<HeaderMap> {
        let Auth::Known(known) = self else { return Ok(HeaderMap::new()) };
        let (transient, what) = match tokio::time::timeout(PATIENCE, known.headers(Extensions::new())).await {
            Ok(Ok(CacheableResource::New { data, .. })) => return Ok(data),
            Ok(Ok(CacheableResource::NotModified)) => (true, "no token came"),
            Ok(Err(error)) => (error.is_transient(), "no token could be had for these credentials"),
            Err(_) => (true, "no token came in time"),
        };
        // What is said beyond that may quote the token's own request.
        Err(Error::new(Code::AuthenticationFailed, what).with_retryable(transient).reason("no_credentials").next(
            "give `keyFilename` or `credentials`, or set up application default credentials: `gcloud auth application-default login`",
        ))
    }
}

async fn read(path: &str) -> Result<String> {
    let read = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || std::fs::read_to_string(path)
    });
    let text = read.await.map_err(|e| wrong("keyFilename", &format!("cannot be read: {e}")))?;
    text.map_err(|e| wrong("keyFilename", &format!("names a file that cannot be read: {}", e.kind())))
}

fn of_key(field: &str, text: &str) -> Result<Credentials> {
    let key: Value = serde_json::from_str(text).map_err(|_| wrong(field, "is not the JSON of a key"))?;
    let kind = key.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let built = match &*kind {
        "service_account" => {
            let scopes = service_account::AccessSpecifier::from_scopes([SCOPE]);
            service_account::Builder::new(key).with_access_specifier(scopes).build()
        }
        "authorized_user" => user_account::Builder::new(key).with_scopes([SCOPE]).build(),
        "external_account" => external_account::Builder::new(key).with_scopes([SCOPE]).build(),
        "impersonated_service_account" => impersonated::Builder::new(key).with_scopes([SCOPE]).build(),
        _ => return Err(wrong(field, "holds no `type` of credentials that is known here")),
    };
    built.map_err(|_| wrong(field, &format!("holds no complete key of type `{kind}`")))
}

fn wrong(field: &str, what: &str) -> Error {
    Error::new(Code::ConfigInvalid, format!("`{field}` {what}"))
        .field(field)
        .next("give the JSON file of a service account's key, as the console or `gcloud iam service-accounts keys create` writes it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};
    use serde_json::json;

    fn config(fields: &Value) -> PubsubConfig {
        let mut config = json!({ "projectId": "p" });
        config.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        match ProviderConfig::parse(ProviderKind::GooglePubSub, &config).expect("a config") {
            ProviderConfig::GooglePubSub(config) => config,
            other => panic!("{other:?}"),
        }
    }

    fn key() -> Value {
        json!({ "type": "service_account", "client_email": "a@b.iam.gserviceaccount.com", "private_key_id": "1",
            "private_key": "hunter2", "project_id": "p" })
    }

    #[tokio::test]
    async fn a_key_is_taken_in_every_spelling() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("key.json");
        std::fs::write(&file, key().to_string()).expect("written");
        for fields in
            [json!({ "credentials": key() }), json!({ "credentials": key().to_string() }), json!({ "keyFilename": file.to_string_lossy() })]
        {
            let auth = Auth::of(&config(&fields), false).await.expect("a key");
            assert!(matches!(auth, Auth::Known(_)));
            assert!(!format!("{auth:?}").contains("hunter2"));
            // What cannot be signed with is found when it is used.
            let error = auth.headers().await.expect_err("no key at all");
            assert_eq!(error.code(), Code::AuthenticationFailed);
            assert!(!format!("{error:?}").contains("hunter2"));
            // Over a plain connection it is checked, and not sent.
            assert!(Auth::of(&config(&fields), true).await.expect("a key").headers().await.expect("nothing").is_empty());
        }
    }

    #[tokio::test]
    async fn what_is_no_key_names_its_field() {
        for (fields, field) in [
            (json!({ "credentials": "hunter2" }), "credentials"),
            (json!({ "credentials": { "type": "hunter2" } }), "credentials"),
            (json!({ "credentials": { "type": "service_account" } }), "credentials"),
            (json!({ "keyFilename": "/nowhere/key.json" }), "keyFilename"),
        ] {
            let error = Auth::of(&config(&fields), true).await.expect_err("no key");
            assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some(field)));
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}

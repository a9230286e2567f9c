//! Where the servers are, and who we are to them.

use async_nats::{Auth, AuthError, ServerAddr};

use crate::config::{NatsConfig, Secret};
use crate::error::{Code, Error, Result};

/// One server of the list, without the credentials that may have stood in its URL.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether its URL asks for TLS.
    pub(super) tls: bool,
    addr: ServerAddr,
    user: Option<Identity>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Who we are.
#[derive(Clone)]
pub(super) enum Identity {
    User(String, Secret),
    Token(Secret),
    /// The JWT of a credentials file, and the seed that signs for it.
    Signed(Secret, Secret),
}

impl Server {
    /// `host:port`, for messages.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn addr(&self) -> ServerAddr {
        self.addr.clone()
    }

    fn parse(field: &str, text: &str) -> Result<Server> {
        let wrong = |what: &str| Error::new(Code::ConfigInvalid, format!("`{field}` {what}")).field(field);
        let url = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        let given: ServerAddr = url.parse().map_err(|_| wrong("is not an address like `nats://host:4222`"))?;
        if given.is_websocket() {
            return Err(wrong("is a WebSocket address; this client speaks `nats://` and `tls://`"));
        }
        let (host, port, tls) = (given.host().to_owned(), given.port(), given.tls_required());
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let user = match (given.username().map(unescaped), given.password().map(unescaped)) {
            (Some(user), Some(pass)) => Some(Identity::User(user, Secret::new(pass))),
            (Some(token), None) => Some(Identity::Token(Secret::new(token))),
            _ => None,
        };
        // What is handed to the client may stand in its logs, so it holds no credentials.
        let plain_host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let addr = format!("{}://{plain_host}:{port}", given.scheme()).parse().map_err(|_| wrong("is not an address"))?;
        Ok(Server { host, port, tls, addr, user })
    }
}

/// The servers of a config; `endpoint` stands for all of them.
pub(super) fn servers(config: &NatsConfig) -> Result<Vec<Server>> {
    if let Some(endpoint) = &config.common.endpoint {
        return Ok(vec![Server::parse("endpoint", endpoint)?]);
    }
    let named = config.servers.iter().map(Secret::expose).map(str::trim).filter(|text| !text.is_empty());
    let servers: Vec<Server> = named.map(|text| Server::parse("servers", text)).collect::<Result<_>>()?;
    if servers.is_empty() { Err(Error::new(Code::ConfigInvalid, "`servers` names no server").field("servers")) } else { Ok(servers) }
}

/// Who the config says we are.
pub(super) async fn identity(config: &NatsConfig) -> Result<Option<Identity>> {
    if let Some(creds) = &config.creds {
        return credentials(creds).await.map(Some);
    }
    if let Some(token) = &config.token {
        return Ok(Some(Identity::Token(token.clone())));
    }
    Ok(config.user.as_ref().map(|user| Identity::User(user.clone(), config.pass.clone().unwrap_or_else(|| Secret::new("")))))
}

/// Answers the server's nonce. The config's identity counts before the one in a server's URL.
pub(super) fn answer(identity: Option<&Identity>, server: &Server, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match identity.or(server.user.as_ref()) {
        None => {}
        Some(Identity::User(user, pass)) => {
            auth.username = Some(user.clone());
            auth.password = Some(pass.expose().to_owned());
        }
        Some(Identity::Token(token)) => auth.token = Some(token.expose().to_owned()),
        Some(Identity::Signed(jwt, seed)) => {
            let key = nkeys::KeyPair::from_seed(seed.expose()).map_err(|_| AuthError::new("the seed is not one"))?;
            auth.signature = Some(key.sign(nonce).map_err(|_| AuthError::new("the seed cannot sign"))?);
            auth.jwt = Some(jwt.expose().to_owned());
        }
    }
    Ok(auth)
}

/// A credentials file: its text, or its path.
async fn credentials(given: &Secret) -> Result<Identity> {
    let text = if given.expose().contains("-----BEGIN") {
        given.clone()
    } else {
        let path = given.expose().to_owned();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
        let read = read.map_err(|e| Error::input("creds", format!("`creds` cannot be read: {e}")))?;
        Secret::new(read.map_err(|e| {
            Error::input("creds", format!("`creds` is neither the text nor the path of a credentials file: {}", e.kind()))
                .next("give the text of the .creds file, or the path of one this process may read")
        })?)
    };
    let jwt = block(text.expose(), "NATS USER JWT");
    let seed = block(text.expose(), "USER NKEY SEED");
    match (jwt, seed) {
        (Some(jwt), Some(seed)) if nkeys::KeyPair::from_seed(seed.expose()).is_ok() => Ok(Identity::Signed(jwt, seed)),
        (Some(_), Some(_)) => Err(Error::input("creds", "the seed in `creds` is not a key of a user")),
        _ => Err(Error::input("creds", "`creds` holds no user JWT with its seed")
            .next("a .creds file has a block `NATS USER JWT` and a block `USER NKEY SEED`")),
    }
}

/// What stands between `-----BEGIN title-----` and the next line of dashes.
fn block(text: &str, title: &str) -> Option<Secret> {
    let begin = format!("BEGIN {title}");
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(&begin)).skip(1);
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---")).map(Secret::new)
}

/// `%40` and the like in the user part of a URL.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProviderConfig, ProviderKind};
    use serde_json::json;

    fn config(value: &serde_json::Value) -> NatsConfig {
        match ProviderConfig::parse(ProviderKind::Nats, value) {
            Ok(ProviderConfig::Nats(config)) => config,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn servers_in_each_spelling() {
        for (given, expected) in [
            (json!("nats://a:1, tls://b, c:3"), vec!["a:1 false", "b:4222 true", "c:3 false"]),
            (json!(["a", "nats://[::1]:9"]), vec!["a:4222 false", "::1:9 false"]),
        ] {
            let found = servers(&config(&json!({ "servers": given }))).expect("valid");
            let found: Vec<_> = found.iter().map(|server| format!("{} {}", server.name(), server.tls)).collect();
            assert_eq!(found, expected);
        }
        let endpoint = config(&json!({ "servers": "a", "endpoint": "nats://proxy:7" }));
        assert_eq!(servers(&endpoint).expect("valid")[0].name(), "proxy:7");
        for wrong in ["ws://a", "http://a", "nats://"] {
            let error = servers(&config(&json!({ "servers": wrong }))).expect_err(wrong);
            assert_eq!((error.code(), error.detail_str("field")), (Code::ConfigInvalid, Some("servers")), "{wrong}");
        }
    }

    #[tokio::test]
    async fn identities_in_each_spelling() {
        let url = config(&json!({ "servers": "nats://us%40er:p%3Aw@h" }));
        let server = &servers(&url).expect("valid")[0];
        assert!(!format!("{server:?} {}", server.addr().as_url_str()).contains("er"), "no credentials reach the client's logs");
        let auth = answer(None, server, b"").expect("an answer");
        assert_eq!((auth.username.as_deref(), auth.password.as_deref()), (Some("us@er"), Some("p:w")));
        let own = config(&json!({ "servers": "nats://x:y@h", "user": "u", "pass": "p" }));
        let auth = answer(identity(&own).await.expect("valid").as_ref(), server, b"").expect("an answer");
        assert_eq!((auth.username.as_deref(), auth.password.as_deref()), (Some("u"), Some("p")));
        let token = config(&json!({ "servers": "nats://tok@h" }));
        let auth = answer(None, &servers(&token).expect("valid")[0], b"").expect("an answer");
        assert_eq!(auth.token.as_deref(), Some("tok"));
    }

    #[tokio::test]
    async fn credentials_as_text_and_as_a_file() {
        let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
        let text = format!(
            "-----BEGIN NATS USER JWT-----\njwt.of.user\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("user.creds");
        std::fs::write(&path, &text).expect("written");
        for given in [text.clone(), path.to_string_lossy().into_owned()] {
            let config = config(&json!({ "servers": "h", "creds": given }));
            let identity = identity(&config).await.expect("valid");
            let auth = answer(identity.as_ref(), &servers(&config).expect("valid")[0], b"nonce").expect("an answer");
            assert_eq!((auth.jwt.as_deref(), auth.signature.map(|s| s.len())), (Some("jwt.of.user"), Some(64)));
        }
        let broken = text.replace(&seed, "SUAHUNTER2");
        for given in [broken, "/none/user.creds".into(), "-----BEGIN NATS USER JWT-----\nx\n".into()] {
            let error = identity(&config(&json!({ "servers": "h", "creds": given }))).await.err().expect("refused");
            assert_eq!((error.code(), error.detail_str("field")), (Code::InputInvalid, Some("creds")));
            assert!(!error.to_string().contains("HUNTER2"), "{error}");
        }
    }
}

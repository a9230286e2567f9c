//! Every token that is not exactly one of ours is refused, and nothing is sent.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use sha2::{Sha256, Sha384};
use zeroize::Zeroizing;

use super::super::token::Claims;
use super::super::vault::open_key;
use super::*;
use crate::message::now_ms;
use crate::secret::Sealer;
use crate::store::SessionKeyUse;
use crate::store::datadir::DataDir;

/// What signs the workspace's tokens, and its id.
async fn secret(bed: &Bed) -> (String, Zeroizing<[u8; 32]>) {
    let data = DataDir::find(Some(&bed.dir.path().join("data").to_string_lossy())).expect("a directory");
    let sealer = Sealer::new(&data.master_key().expect("a key"));
    let keys = bed.trunkline.store().session_keys().await.expect("keys");
    let key = keys.into_iter().find(|key| key.purpose == SessionKeyUse::Sign).expect("a key that signs");
    let secret = open_key(&sealer, &format!("session-key/{}", key.id), &key.sealed).expect("it opens");
    (key.id, secret)
}

/// A token of this header and these claims, with the MAC of HS256, or of HS384.
fn forge(header: &Value, claims: &Value, secret: &[u8; 32], long: bool) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let mac = if long {
        <Hmac<Sha384> as hmac::Mac>::new_from_slice(secret).expect("a key").chain_update(&message).finalize().into_bytes().to_vec()
    } else {
        <Hmac<Sha256> as hmac::Mac>::new_from_slice(secret).expect("a key").chain_update(&message).finalize().into_bytes().to_vec()
    };
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac))
}

/// The claims of a token.
fn claims(jwt: &str) -> Value {
    let body = jwt.split('.').nth(1).expect("a body");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).expect("base64")).expect("JSON")
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_changed_anywhere_is_refused() {
    let bed = Bed::new().await;
    let token = bed.start("ann").await.token;
    assert!(bed.refused(&token).await.is_none(), "it is good as it is");
    let mut tried = 0;
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        is_invalid(bed.refused(&String::from_utf8(bytes).expect("ASCII")).await.as_ref(), &format!("changed at {at}"));
        is_invalid(bed.refused(&token[..at]).await.as_ref(), &format!("cut at {at}"));
        tried += 2;
    }
    assert!(tried > 200, "{tried}");
    assert_eq!(bed.sent().await, 1, "nothing but the good one was sent");
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_says_has_to_be_right_even_if_it_is_signed() {
    let bed = Bed::new().await;
    let started = bed.start("ann").await;
    let (kid, secret) = secret(&bed).await;
    let good = claims(started.token.strip_prefix("user:").expect("a tag"));
    let header = json!({ "typ": "JWT", "alg": "HS256", "kid": kid });
    let now = now_ms() / 1_000;
    assert!(bed.refused(&format!("user:{}", forge(&header, &good, &secret, false))).await.is_none(), "the forge makes good ones");
    let said = [
        ("expired", with(&good, "exp", json!(now))),
        ("long expired", with(&good, "exp", json!(1))),
        ("not yet valid", with(&good, "nbf", json!(now + 60))),
        ("another issuer", with(&good, "iss", json!("other"))),
        ("another product", with(&good, "aud", json!("other"))),
        ("another tag", with(&good, "tag", json!("admin"))),
        ("a subject nobody knows", with(&good, "sub", json!("0".repeat(32)))),
        ("a text for a time", with(&good, "exp", json!("soon"))),
        ("no expiry", without(&good, "exp")),
        ("no start", without(&good, "nbf")),
        ("no issuer", without(&good, "iss")),
        ("no audience", without(&good, "aud")),
        ("no session", without(&good, "sid")),
    ];
    for (what, claims) in &said {
        is_invalid(bed.refused(&format!("user:{}", forge(&header, claims, &secret, false))).await.as_ref(), what);
    }
    let unsigned = |token: String| format!("{}.", token.rsplit_once('.').expect("parts").0);
    for algorithm in ["none", "None", "HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", ""] {
        let header = with(&header, "alg", json!(algorithm));
        for token in
            [forge(&header, &good, &secret, false), forge(&header, &good, &secret, true), unsigned(forge(&header, &good, &secret, false))]
        {
            is_invalid(bed.refused(&format!("user:{token}")).await.as_ref(), algorithm);
        }
    }
    for (what, header) in [("no kid", without(&header, "kid")), ("another kid", with(&header, "kid", json!("0".repeat(32))))] {
        is_invalid(bed.refused(&format!("user:{}", forge(&header, &good, &secret, false))).await.as_ref(), what);
    }
    is_invalid(bed.refused(&format!("user:{}", forge(&header, &good, &[7; 32], false))).await.as_ref(), "another key");
    assert_eq!(bed.sent().await, 1);
    bed.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_named_in_any_spelling_and_in_no_other() {
    let (bed, other) = (Bed::new().await, Bed::new().await);
    let started = bed.start("ann").await;
    let (token, id) = (&started.token, &started.session_id);
    let jwt = token.strip_prefix("user:").expect("a tag");
    for good in [token.clone(), format!("{id}:{jwt}"), format!("{id}:user:{jwt}")] {
        assert!(bed.refused(&good).await.is_none(), "{good}");
    }
    for given in [crate::Session::new("user", jwt), crate::Session::new("user", token.as_str())] {
        bed.env.produce(EVENT, &json!({})).session(given).await.expect("tag and token");
    }
    let foreign = other.start("ann").await;
    let bad = [
        jwt.to_owned(),
        format!("admin:{jwt}"),
        format!("user:{id}:{jwt}"),
        format!("{}:{jwt}", foreign.session_id),
        format!("x:{id}:user:{jwt}"),
        format!("{token}:"),
        format!(" {token}"),
        "abc123xyz".to_owned(),
        "eyJhbGciOi...".to_owned(),
        format!("user:{}", "a.b.c"),
        format!("user:{}", "x".repeat(100_000)),
        foreign.token.clone(),
        format!("user:{}", started.refresh_token),
    ];
    for bad in &bad {
        is_invalid(bed.refused(bad).await.as_ref(), bad);
    }
    is_invalid(
        bed.env.produce(EVENT, &json!({})).session(crate::Session::new("admin", token.as_str())).await.err().as_ref(),
        "another tag",
    );
    assert_eq!(bed.sent().await, 5);
    // The order of checks: what is wrong with the topic comes before the session, and the payload after it.
    let unknown = bed.env.produce("orders:lost", &json!({})).session("user:x").await.expect_err("refused");
    assert_eq!(unknown.code(), Code::TopicNotFound);
    let huge = bed.env.produce_raw(EVENT, vec![b'x'; 32 << 20]).session("user:x").await.expect_err("refused");
    assert_eq!(huge.code(), Code::SessionInvalid);
    bed.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_signs_and_the_old_one_verifies_until_its_tokens_are_over() {
    let bed = Bed::new().await;
    let old = bed.start("ann").await;
    let second = open(&bed.dir).await;
    let elsewhere = second.sessions("shop");
    assert!(elsewhere.verify("user", &old.token).await.expect("verified").valid);
    let (before, _) = secret(&bed).await;
    let kid = bed.sessions.rotate_keys().await.expect("rotated");
    assert_ne!(before, kid);
    let new = bed.start("ann").await;
    for token in [&old.token, &new.token] {
        assert!(bed.sessions.verify("user", token).await.expect("verified").valid);
    }
    // The other process hears of the new key within a second or two.
    let end = tokio::time::Instant::now() + DEADLINE;
    while !elsewhere.verify("user", &new.token).await.expect("verified").valid {
        assert!(tokio::time::Instant::now() < end, "the new key is not known elsewhere");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A key that is over verifies no more, whatever it signed.
    bed.trunkline.0.sessions.ring.rotate(0).await.expect("rotated");
    let claims = claims(new.token.strip_prefix("user:").expect("a tag"));
    let claims: Claims = serde_json::from_value(claims).expect("claims");
    assert!(bed.trunkline.0.sessions.ring.sign(&claims).await.is_ok());
    assert!(!open(&bed.dir).await.sessions("shop").verify("user", &new.token).await.expect("verified").valid);
    second.close(Duration::from_secs(5)).await;
    bed.end().await;
}

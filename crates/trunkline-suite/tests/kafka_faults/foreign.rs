//! Other clients: kcat on both sides.

use std::process::{Command, Stdio};

use serde_json::json;
use trunkline::Headers;
use trunkline::delivery::EnvelopeId;
use trunkline::provider::Provider as _;
use trunkline_suite::server::setting;

use crate::bed::{group, join, listen, message, open, send, spec};

/// Runs kcat (Debian: `apt install kcat`) with this on its standard input.
pub(crate) fn kcat(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut command = Command::new("kcat");
    command.args(["-b", &setting("KAFKA")]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("kcat cannot be run: {e}: install the package `kcat`"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kcat {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_reads_what_we_produce() {
    let kafka = open(&json!({})).await.unwrap();
    let topic = spec(1, false);
    kafka.ensure(&topic, &[]).await.unwrap();
    let mut ours = message("{\"total\": 7}");
    ours.key = Some("customer-1".into());
    ours.headers = [("color", "blue"), ("color", "red")].into_iter().collect::<Headers>();
    send(&kafka, &topic, ours).await;
    let read = kcat(&["-C", "-q", "-t", &topic.name, "-o", "beginning", "-e", "-f", "%k|%s|%h\n"], "");
    let (key_and_payload, headers) = read.trim_end().rsplit_once('|').unwrap();
    assert_eq!(key_and_payload, "customer-1|{\"total\": 7}", "untouched");
    assert!(headers.starts_with("trunkline-id=") && headers.ends_with(",color=blue,color=red"), "{headers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_consume_what_kcat_produces_in_every_compression() {
    let kafka = open(&json!({})).await.unwrap();
    let (topic, group) = (spec(1, false), group());
    kafka.ensure(&topic, std::slice::from_ref(&group)).await.unwrap();
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let value = format!("key-{codec}\tpayload {codec}\n");
        kcat(&["-P", "-t", &topic.name, "-K", "\t", "-H", "from=kcat", "-X", &format!("compression.codec={codec}")], &value);
    }
    let member = join(&kafka, &topic, &group).await;
    let told = listen(&*member, true, |told| told.messages.len() == codecs.len()).await;
    for (came, codec) in told.messages.iter().zip(codecs) {
        assert_eq!(came.id, EnvelopeId::Foreign);
        assert_eq!(came.key.as_deref(), Some(format!("key-{codec}").as_bytes()));
        assert_eq!(came.payload.as_deref(), Some(format!("payload {codec}").as_bytes()));
        assert_eq!(came.headers.get_str("from"), Some("kcat"));
    }
}

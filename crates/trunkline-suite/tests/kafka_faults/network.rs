//! A bad network between a client and the server.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use trunkline::Code;
use trunkline::provider::kafka::Kafka;
use trunkline_suite::proxy::{Proxy, Weather};
use trunkline_suite::server::setting;

use crate::bed::{SHORT, config};
use crate::outage::{PAUSE, progress, through};

/// A proxy that all connections of a client go through. Brokers tell clients their own addresses; behind the proxy the
/// answers are read, and name the proxy's instead.
struct Detour {
    proxy: Proxy,
    behind: JoinHandle<()>,
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.behind.abort();
    }
}

impl Detour {
    async fn new() -> Detour {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::new(listener.local_addr().unwrap().to_string()).await.unwrap();
        let behind = tokio::spawn(accept(listener, setting("KAFKA").parse().unwrap(), proxy.address()));
        Detour { proxy, behind }
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, proxy: SocketAddr) {
    while let Ok((client, _)) = listener.accept().await {
        // A connection that ends, ends for both sides: that is all there is to say about it.
        tokio::spawn(async move { pass(client, server, proxy).await.unwrap_or_default() });
    }
}

/// An address as it lies in an answer of Kafka's: the host's name, then the port in four bytes.
fn on_the_wire(address: SocketAddr) -> Vec<u8> {
    let mut bytes = address.ip().to_string().into_bytes();
    bytes.extend_from_slice(&u32::from(address.port()).to_be_bytes());
    bytes
}

async fn pass(client: TcpStream, server: SocketAddr, proxy: SocketAddr) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    let (theirs, ours) = (on_the_wire(server), on_the_wire(proxy));
    let answers = async {
        let mut frame = Vec::new();
        loop {
            let length = from_server.read_u32().await?;
            frame.resize(length as usize, 0);
            from_server.read_exact(&mut frame).await?;
            let found: Vec<usize> = frame.windows(theirs.len()).enumerate().filter(|(_, at)| *at == theirs).map(|(at, _)| at).collect();
            for at in found {
                frame[at..at + ours.len()].copy_from_slice(&ours);
            }
            to_client.write_u32(length).await?;
            to_client.write_all(&frame).await?;
        }
    };
    let asked = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    tokio::select! {
        answered = answers => answered,
        asked = asked => asked.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_weather_passes_and_nothing_is_lost() {
    let detour = Detour::new().await;
    // A silent connection is given up after three seconds, so that the silence of the test may be short.
    let options = json!({ SHORT.0: SHORT.1, "socket.timeout.ms": 3_000 });
    let proxy = &detour.proxy;
    through(&proxy.address().to_string(), options, PAUSE, |seen| async move {
        assert!(proxy.open() > 2, "the connections do not go through the proxy");
        for _ in 0..5 {
            proxy.cut_once().await;
            progress(&seen, 30).await;
        }
        proxy.set(Weather::Cut);
        // Longer than a session: the group has forgotten the member.
        tokio::time::sleep(Duration::from_secs(8)).await;
        proxy.set(Weather::Fair);
        progress(&seen, 30).await;
        proxy.set(Weather::HalfOpen);
        tokio::time::sleep(Duration::from_secs(8)).await;
        proxy.set(Weather::Fair);
        progress(&seen, 30).await;
        proxy.set(Weather::Delay(Duration::from_millis(50)));
        progress(&seen, 100).await;
        proxy.set(Weather::Throttle(50_000));
        progress(&seen, 100).await;
        proxy.set(Weather::Fair);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_was_not_there_is_found_later() {
    let proxy = Proxy::new(setting("KAFKA")).await.unwrap();
    proxy.set(Weather::Cut);
    let config = config(&json!({ "brokers": [proxy.address().to_string()] }));
    let refused = Kafka::open(&config).await.unwrap_err();
    assert_eq!(refused.code(), Code::ConnectionFailed, "{refused:?}");
    proxy.set(Weather::HalfOpen);
    let begun = Instant::now();
    let refused = Kafka::open(&config).await.unwrap_err();
    assert!(refused.retryable() && begun.elapsed() < Duration::from_secs(15), "{refused:?} after {:?}", begun.elapsed());
    proxy.set(Weather::Fair);
    Kafka::open(&config).await.unwrap();
}

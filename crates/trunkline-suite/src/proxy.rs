//! A TCP proxy that hurts what goes through it: between a client and a real server it plays the network at its worst.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    Fair,
    /// Open connections were closed, new ones are closed at once.
    Cut,
    /// Connections stand, new ones too, and nothing passes: no byte, no end.
    HalfOpen,
    /// Every piece of bytes arrives this much later.
    Delay(Duration),
    /// At most this many bytes a second and direction.
    Throttle(u32),
}

/// See the module. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of this machine and passes on to `target`, as `host:port`.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn new(target: impl Into<String>) -> io::Result<Proxy> {
        let target: Arc<str> = target.into().into();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fair);
        let open = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(accept(listener, target, seen, open.clone()));
        Ok(Proxy { address, weather, open, task })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, for open connections too.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Cuts every connection and lets new ones through at once.
    pub async fn cut_once(&self) {
        self.set(Weather::Cut);
        while self.open.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.set(Weather::Fair);
    }

    /// Connections that stand.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.weather.send_replace(Weather::Cut);
    }
}

async fn accept(listener: TcpListener, target: Arc<str>, weather: watch::Receiver<Weather>, open: Arc<AtomicUsize>) {
    // An error of one accept (a client that was gone before, no descriptor left) is no reason to end.
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        if *weather.borrow() == Weather::Cut {
            continue;
        }
        let (target, weather, open) = (target.clone(), weather.clone(), open.clone());
        open.fetch_add(1, Ordering::AcqRel);
        tokio::spawn(async move {
            // A connection that ends, ends for both sides: that is all there is to say about it.
            let _ = join(client, &target, weather).await;
            open.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

async fn join(client: TcpStream, target: &str, mut weather: watch::Receiver<Weather>) -> io::Result<()> {
    // A half-open network has accepted, and the server never hears of it.
    let cut = |weather: &Weather| *weather == Weather::Cut;
    while *weather.borrow_and_update() == Weather::HalfOpen {
        if weather.changed().await.is_err() {
            return Ok(());
        }
    }
    if cut(&weather.borrow()) {
        return reset(&client);
    }
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let ended = {
        let up = pass(&mut from_client, &mut to_server, weather.clone());
        let down = pass(&mut from_server, &mut to_client, weather.clone());
        let mut cut_off = weather.clone();
        tokio::select! {
            ended = async { tokio::try_join!(up, down).map(drop) } => ended,
            _ = cut_off.wait_for(cut) => Ok(()),
        }
    };
    // Both halves together, so that the end is a reset where the weather is a cut, as a machine that vanished would leave it.
    if let Ok(client) = from_client.reunite(to_client)
        && cut(&weather.borrow())
    {
        reset(&client)?;
    }
    ended
}

/// Closes with a reset instead of a polite end.
fn reset(stream: &TcpStream) -> io::Result<()> {
    stream.set_zero_linger()
}

/// One direction.
async fn pass<R, W>(from: &mut R, to: &mut W, mut weather: watch::Receiver<Weather>) -> io::Result<()>
where
    R: AsyncReadExt + Unpin,
    W: AsyncWriteExt + Unpin,
{
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        let mut at = 0;
        while at < n {
            let now = *weather.borrow_and_update();
            match now {
                Weather::Fair | Weather::Cut => {
                    to.write_all(&buffer[at..n]).await?;
                    at = n;
                }
                Weather::HalfOpen => {
                    if weather.changed().await.is_err() {
                        return Ok(());
                    }
                }
                Weather::Delay(by) => {
                    tokio::time::sleep(by).await;
                    to.write_all(&buffer[at..n]).await?;
                    at = n;
                }
                Weather::Throttle(per_second) => {
                    let piece = (per_second as usize / 20).clamp(1, n - at);
                    tokio::time::sleep(Duration::from_secs_f64(piece as f64 / f64::from(per_second.max(1)))).await;
                    to.write_all(&buffer[at..at + piece]).await?;
                    at += piece;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn fair_weather_passes_everything() {
        let proxy = Proxy::new(echo().await.to_string()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let (mut from, mut to) = stream.split();
        let mut back = vec![0; bytes.len()];
        let (sent, got) = tokio::join!(to.write_all(&bytes), from.read_exact(&mut back));
        assert!(sent.is_ok() && got.is_ok() && back == bytes);
        assert_eq!(proxy.open(), 1);
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_what_comes() {
        let proxy = Proxy::new(echo().await.to_string()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"before").await.unwrap(), b"before");
        proxy.set(Weather::Cut);
        assert!(ask(&mut stream, b"after").await.is_err());
        let refused = async { ask(&mut TcpStream::connect(proxy.address()).await?, b"new").await };
        assert!(refused.await.is_err());
        proxy.cut_once().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"again").await.unwrap(), b"again");
    }

    #[tokio::test]
    async fn half_open_keeps_everything_back_and_lets_it_go() {
        let proxy = Proxy::new(echo().await.to_string()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, b"before").await.unwrap(), b"before");
        proxy.set(Weather::HalfOpen);
        let silent = tokio::time::timeout(Duration::from_millis(100), ask(&mut stream, b"kept")).await;
        assert!(silent.is_err(), "something passed");
        let mut new = TcpStream::connect(proxy.address()).await.unwrap();
        new.write_all(b"new").await.unwrap();
        proxy.set(Weather::Fair);
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"kept");
        let mut back = [0; 3];
        new.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"new");
    }

    #[tokio::test]
    async fn slow_weather_is_slow() {
        let proxy = Proxy::new(echo().await.to_string()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.set(Weather::Delay(Duration::from_millis(50)));
        let start = Instant::now();
        ask(&mut stream, b"there and back").await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(100));
        proxy.set(Weather::Throttle(10_000));
        let start = Instant::now();
        ask(&mut stream, &[7; 2_000]).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
}

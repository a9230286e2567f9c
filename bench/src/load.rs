//! Load: so many callers at a time, each waiting for its own answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a closed loop came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) per_s: f64,
    pub(crate) worst_us: f64,
}

/// Runs `call` from `in_flight` tasks until `count` calls are answered.
pub(crate) async fn closed<F, R>(count: u64, in_flight: usize, call: F) -> Closed
where
    F: Fn() -> R + Clone + Send + Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let left = Arc::new(AtomicU64::new(count));
    let worst = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (left, worst, call) = (left.clone(), worst.clone(), call.clone());
            tokio::spawn(async move {
                let mut own = Duration::ZERO;
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    let at = Instant::now();
                    call().await;
                    own = own.max(at.elapsed());
                }
                worst.fetch_max(own.as_micros() as u64, Ordering::Relaxed);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a caller ended");
    }
    Closed { per_s: count as f64 / start.elapsed().as_secs_f64(), worst_us: worst.load(Ordering::Relaxed) as f64 }
}

/// 256 bytes that look like an order, different each time.
pub(crate) fn payload(size: usize, n: u64) -> bytes::Bytes {
    let head =
        format!(r#"{{"orderId":"{n:012}","customerId":"cust_{:06}","total":{}.{:02},"note":""#, n * 7919 % 100_000, n % 997, n % 100);
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(head.as_bytes());
    let words = ["alpha ", "bravo ", "charlie ", "delta ", "echo ", "foxtrot ", "golf ", "hotel "];
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() + 2 < size {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let word = words[(seed % 8) as usize].as_bytes();
        let n = word.len().min(size - 2 - out.len());
        out.extend_from_slice(&word[..n]);
    }
    out.extend_from_slice(b"\"}");
    out.into()
}

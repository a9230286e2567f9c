//! The yardstick: a bare group-commit log. A frame with its length, CRC and sequence, one write under a lock, one
//! fdatasync, one wake-up per caller; and its reader, which checks the CRC and appends one ack per batch.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, fdatasync, flock};
use tokio::sync::oneshot;

type Waiting = (Bytes, oneshot::Sender<u64>);

/// Appends for many callers.
#[derive(Clone)]
pub(crate) struct Appender {
    queue: Arc<std::sync::Mutex<Vec<Waiting>>>,
    wake: mpsc::SyncSender<()>,
}

impl Appender {
    pub(crate) fn open(path: &Path) -> std::io::Result<Appender> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let queue: Arc<std::sync::Mutex<Vec<Waiting>>> = Arc::default();
        let (wake, woken) = mpsc::sync_channel::<()>(1);
        let shared = queue.clone();
        std::thread::spawn(move || {
            let mut sequence = 0u64;
            let mut buffer = Vec::with_capacity(1 << 20);
            while woken.recv().is_ok() {
                let batch = std::mem::take(&mut *shared.lock().expect("nobody panics with it"));
                if batch.is_empty() {
                    continue;
                }
                buffer.clear();
                for (payload, _) in &batch {
                    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
                    buffer.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
                    buffer.extend_from_slice(&sequence.to_le_bytes());
                    buffer.extend_from_slice(payload);
                    sequence += 1;
                }
                flock(file.as_fd(), FlockOperation::LockExclusive).expect("the lock");
                file.write_all(&buffer).expect("the write");
                flock(file.as_fd(), FlockOperation::Unlock).expect("the lock");
                fdatasync(file.as_fd()).expect("the sync");
                for (at, (_, done)) in batch.into_iter().enumerate() {
                    let _ = done.send(at as u64);
                }
            }
        });
        Ok(Appender { queue, wake })
    }

    pub(crate) async fn append(&self, payload: Bytes) {
        let (done, confirmed) = oneshot::channel();
        self.queue.lock().expect("nobody panics with it").push((payload, done));
        let _ = self.wake.try_send(());
        confirmed.await.expect("the writer lives");
    }
}

/// Reads all frames, checks each, and appends an ack per 1,000; how many there were.
pub(crate) fn read_and_ack(path: &Path, acks: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut acks = OpenOptions::new().create(true).append(true).open(acks)?;
    let mut buffer = vec![0u8; 1 << 20];
    let (mut have, mut count) = (0, 0u64);
    loop {
        let n = file.read(&mut buffer[have..])?;
        if n == 0 {
            return Ok(count);
        }
        have += n;
        let mut at = 0;
        while have - at >= 16 {
            let len = u32::from_le_bytes(buffer[at..at + 4].try_into().expect("four bytes")) as usize;
            if have - at < 16 + len {
                break;
            }
            let crc = u32::from_le_bytes(buffer[at + 4..at + 8].try_into().expect("four bytes"));
            assert_eq!(crc32fast::hash(&buffer[at + 16..at + 16 + len]), crc);
            std::hint::black_box(&buffer[at + 16..at + 16 + len]);
            count += 1;
            if count.is_multiple_of(1_000) {
                acks.write_all(&count.to_le_bytes())?;
            }
            at += 16 + len;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
    }
}

/// How long one fdatasync of a small append takes here: the median, in microseconds.
pub(crate) fn sync_us(path: &Path) -> std::io::Result<f64> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        file.write_all(&[7; 300])?;
        let start = std::time::Instant::now();
        fdatasync(file.as_fd())?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(crate::cell::median(&times))
}

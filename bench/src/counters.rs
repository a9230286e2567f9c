//! What a message costs besides time: CPU and allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// Counted per thread and added up in lumps, so that counting does not become the cost.
    static LOCAL: Cell<u64> = const { Cell::new(0) };
}
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
const LUMP: u64 = 256;

/// The system's allocator, counting.
pub(crate) struct Counting;

fn count() {
    // A thread that is ending has no local any more; its last few are not counted.
    let _ = LOCAL.try_with(|local| {
        let n = local.get() + 1;
        if n >= LUMP {
            ALLOCATIONS.fetch_add(n, Ordering::Relaxed);
            local.set(0);
        } else {
            local.set(n);
        }
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller's.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

/// Allocations of this process so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// User and system time of this process so far, in microseconds.
pub(crate) fn cpu_us() -> f64 {
    let ticks = |text: &str| -> Option<f64> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    // Nanoseconds from schedstat where the kernel has them, else clock ticks of 10 ms.
    let mut nanos = 0u64;
    if let Ok(tasks) = std::fs::read_dir("/proc/self/task") {
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanos += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    if nanos > 0 {
        return nanos as f64 / 1_000.0;
    }
    std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| ticks(&text)).unwrap_or(0.0) * 10_000.0
}

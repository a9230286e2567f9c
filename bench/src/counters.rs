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

/// User and system time of this process so far, threads that have ended included, in microseconds.
pub(crate) fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

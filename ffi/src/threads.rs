//! The threads of the CPU forms.
//!
//! Each process has a pool of its own: after `fork` a child has none of its parent's threads, and would wait for them for ever.

use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::abi::Status;
use crate::status::{Failure, guard, longrope_last_error_message};

/// The pool of a process.
struct Pool {
    /// Its number.
    process: u32,
    threads: ThreadPool,
    /// That of the parent, if this is a child. It is kept, since its end would wait for locks that no thread will open.
    _parent: *mut Pool,
}

/// The last pool that was made. No lock, which another thread of the parent could have held when this process began.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// Runs work on the threads of this process, one a core or as many as `RAYON_NUM_THREADS` says.
pub fn run<R: Send>(work: impl FnOnce() -> Result<R, Failure> + Send) -> Result<R, Failure> {
    pool()?.threads.install(|| {
        // A panic is caught on the thread that it is of, which knows that it is inside an entry, and where it was.
        let mut result = None;
        let status = guard(|| {
            result = Some(work());
            Ok(())
        });
        result.unwrap_or_else(|| {
            // SAFETY: never null; copied at once.
            let message = unsafe { CStr::from_ptr(longrope_last_error_message()) };
            Err(Failure::new(status, message.to_string_lossy()))
        })
    })
}

/// The pool of this process.
fn pool() -> Result<&'static Pool, Failure> {
    let process = std::process::id();
    let mut last = POOL.load(Ordering::Acquire);
    // SAFETY: null, or a pool that was leaked below.
    if let Some(pool) = unsafe { last.as_ref() }.filter(|pool| pool.process == process) {
        return Ok(pool);
    }
    let threads = ThreadPoolBuilder::new().build().map_err(|error| {
        Failure::new(Status::Unsupported, format!("the threads of the CPU form can't be started: {error}"))
    })?;
    let made = Box::into_raw(Box::new(Pool { process, threads, _parent: last }));
    loop {
        match POOL.compare_exchange(last, made, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: made above, and never freed.
            Ok(_) => return Ok(unsafe { &*made }),
            Err(other) => last = other,
        }
        // SAFETY: as above: another thread of this process was first.
        if let Some(pool) = unsafe { last.as_ref() }.filter(|pool| pool.process == process) {
            // SAFETY: made above, and not handed out.
            drop(unsafe { Box::from_raw(made) });
            return Ok(pool);
        }
    }
}

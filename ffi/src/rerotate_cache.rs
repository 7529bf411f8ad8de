//! A change of the factor set of keys in a cache, on a GPU.

use std::ffi::c_void;

use longrope::device::{Context, Stream};
use longrope::ops::RerotateCache;

use crate::abi::{KvCache, RerotateCacheDesc, Status};
use crate::arguments;
use crate::cache::in_c;
use crate::status::{Failure, guard};
use crate::{cache, context};

/// Whether a re-rotation of a cache can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with rotations that are null or valid for their size, with factor sets that are null or
/// alive; `cache` is null or valid for its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_cache_supported(
    desc: *const RerotateCacheDesc,
    cache: *const KvCache,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { read(desc, cache) }?.supported().map_err(in_c)
    })
}

/// How much scratch memory a re-rotation of a cache needs.
///
/// # Safety
/// As [`longrope_rerotate_cache_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_cache_workspace_size(
    desc: *const RerotateCacheDesc,
    cache: *const KvCache,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { read(desc, cache) }?.supported().map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, 0) }
    })
}

/// Launches a re-rotation of a cache.
///
/// # Safety
/// As [`longrope_rerotate_cache_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of
/// device memory as `longrope::ops::RerotateCache::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_cache_run(
    context: *const Context,
    desc: *const RerotateCacheDesc,
    cache: *const KvCache,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let rerotate = unsafe { read(desc, cache) }?;
        // SAFETY: as above.
        unsafe { rerotate.run(context, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Checks what a re-rotation would find on the device.
///
/// # Safety
/// As [`longrope_rerotate_cache_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_cache_validate(
    context: *const Context,
    desc: *const RerotateCacheDesc,
    cache: *const KvCache,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let rerotate = unsafe { read(desc, cache) }?;
        // SAFETY: as above.
        unsafe { rerotate.validate(context, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads a re-rotation and its cache.
///
/// # Safety
/// As [`longrope_rerotate_cache_supported`]; the factor sets outlive `'a`.
unsafe fn read<'a>(
    desc: *const RerotateCacheDesc,
    cache: *const KvCache,
) -> Result<RerotateCache<'a>, Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let cache = unsafe { cache::cache(cache) }?;
    arguments::no_flags("desc.flags", desc.flags)?;
    // SAFETY: as above.
    let (to, from) = unsafe { (cache::rotary("desc.to", desc.to)?, cache::rotary("desc.from", desc.from)?) };
    Ok(RerotateCache { cache, from, to, status: arguments::optional(desc.status) })
}

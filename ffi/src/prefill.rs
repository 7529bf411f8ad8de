//! Attention of any number of new tokens over a cache, on a GPU; and what decoding shares with it.

use std::ffi::c_void;

use longrope::device::{Context, Stream};
use longrope::ops::{self, Prefill};

use crate::abi::{DecodeTensors, KvCache, PrefillDesc, Status};
use crate::arguments;
use crate::cache::{self, in_c};
use crate::context;
use crate::status::{Failure, guard};
use crate::tensor::{optional, tensor};

/// Whether a prefill can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with a rotation that is null or valid for its size, with factor sets that are null or
/// alive; `cache` is null or valid for its size; `tensors` is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_prefill_supported(
    desc: *const PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (prefill, tensors) = unsafe { read(desc, cache, tensors) }?;
        prefill.supported(&tensors).map_err(in_c)
    })
}

/// How much scratch memory a prefill needs.
///
/// # Safety
/// As [`longrope_prefill_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_prefill_workspace_size(
    desc: *const PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (prefill, tensors) = unsafe { read(desc, cache, tensors) }?;
        let size = prefill.workspace_size(&tensors).map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, size) }
    })
}

/// Launches a prefill.
///
/// # Safety
/// As [`longrope_prefill_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Prefill::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_prefill_run(
    context: *const Context,
    desc: *const PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (prefill, tensors) = unsafe { read(desc, cache, tensors) }?;
        let workspace = arguments::workspace(workspace, workspace_bytes);
        // SAFETY: as above.
        unsafe { prefill.run(context, &tensors, workspace, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Checks what a prefill would find on the device.
///
/// # Safety
/// As [`longrope_prefill_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_prefill_validate(
    context: *const Context,
    desc: *const PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (prefill, tensors) = unsafe { read(desc, cache, tensors) }?;
        // SAFETY: as above.
        unsafe { prefill.validate(context, &tensors, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads a prefill, its cache and its tensors.
///
/// # Safety
/// As [`longrope_prefill_supported`]; the factor sets outlive `'a`.
unsafe fn read<'a>(
    desc: *const PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
) -> Result<(Prefill<'a>, ops::DecodeTensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    unsafe { prefill(&desc, cache, tensors) }
}

/// What a descriptor asks for, with its cache and its tensors.
///
/// # Safety
/// The rotation is null or valid for its size, with factor sets that are null, or alive and outlive `'a`; `cache` is null or
/// valid for its size; `tensors` is null or valid for reading.
pub unsafe fn prefill<'a>(
    desc: &PrefillDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
) -> Result<(Prefill<'a>, ops::DecodeTensors), Failure> {
    // SAFETY: by this function's contract.
    let cache = unsafe { cache::cache(cache) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read_all("tensors", tensors) }?;
    let tensors = ops::DecodeTensors {
        q: tensor(&format_args!("tensors.q"), &given.q)?,
        out: tensor(&format_args!("tensors.out"), &given.out)?,
        lse: optional(&format_args!("tensors.lse"), &given.lse)?,
    };
    let window = arguments::count("desc.window", desc.window)?;
    let prefill = Prefill {
        cache,
        tokens: cache::new_tokens(&desc.tokens, tensors.q.layout.length())?,
        rotary: match desc.rotary.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { cache::rotary("desc.rotary", desc.rotary) }?),
        },
        scale: (desc.scale != 0.0).then_some(desc.scale),
        window: (window != 0).then_some(window),
        status: arguments::optional(desc.status),
    };
    Ok((prefill, tensors))
}

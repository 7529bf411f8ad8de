//! Attention of a few new tokens over a cache, on a GPU.

use std::ffi::c_void;

use longrope::device::{Context, Stream};
use longrope::ops::{self, Decode, Prefill, Split};

use crate::abi::{DecodeDesc, DecodeTensors, KvCache, PrefillDesc, Status};
use crate::arguments;
use crate::cache::in_c;
use crate::status::{Failure, guard};
use crate::{context, prefill};

/// `LONGROPE_DECODE_SETTLED`.
const SETTLED: u32 = 1;

/// Whether decoding can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with a rotation that is null or valid for its size, with factor sets that are null or
/// alive; `cache` is null or valid for its size; `tensors` is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_decode_supported(
    desc: *const DecodeDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (decode, tensors) = unsafe { read(desc, cache, tensors) }?;
        decode.supported(&tensors).map_err(in_c)
    })
}

/// How much scratch memory decoding needs.
///
/// # Safety
/// As [`longrope_decode_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_decode_workspace_size(
    desc: *const DecodeDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (decode, tensors) = unsafe { read(desc, cache, tensors) }?;
        let size = decode.workspace_size(&tensors).map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, size) }
    })
}

/// Launches decoding.
///
/// # Safety
/// As [`longrope_decode_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Decode::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_decode_run(
    context: *const Context,
    desc: *const DecodeDesc,
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
        let (decode, tensors) = unsafe { read(desc, cache, tensors) }?;
        let workspace = arguments::workspace(workspace, workspace_bytes);
        // SAFETY: as above.
        unsafe { decode.run(context, &tensors, workspace, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Checks what decoding would find on the device.
///
/// # Safety
/// As [`longrope_decode_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_decode_validate(
    context: *const Context,
    desc: *const DecodeDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (decode, tensors) = unsafe { read(desc, cache, tensors) }?;
        // SAFETY: as above.
        unsafe { decode.validate(context, &tensors, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads a decoding, its cache and its tensors.
///
/// # Safety
/// As [`longrope_decode_supported`]; the factor sets outlive `'a`.
unsafe fn read<'a>(
    desc: *const DecodeDesc,
    cache: *const KvCache,
    tensors: *const DecodeTensors,
) -> Result<(Decode<'a>, ops::DecodeTensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    let settled = match desc.flags {
        0 => false,
        SETTLED => true,
        other => {
            return Err(Failure::argument("desc.flags", other, "0 or LONGROPE_DECODE_SETTLED (1)"));
        }
    };
    let split = match u32::try_from(desc.splits) {
        Ok(0) => Split::Balanced,
        Ok(splits) => Split::Fixed(splits),
        Err(_) => {
            let expected = "0 (blocks of equal work) or 1 to 1024 parts";
            return Err(Failure::argument("desc.splits", desc.splits, expected));
        }
    };
    // All else is as for a prefill.
    let DecodeDesc { struct_size, scale, window, tokens, rotary, status, .. } = desc;
    let desc = PrefillDesc { struct_size, scale, window, tokens, rotary, status };
    // SAFETY: as above.
    let (prefill, tensors) = unsafe { prefill::prefill(&desc, cache, tensors) }?;
    let Prefill { cache, tokens, rotary, scale, window, status } = prefill;
    Ok((Decode { cache, tokens, rotary, scale, window, split, settled, status }, tensors))
}

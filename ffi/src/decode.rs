//! Attention of new tokens over a cache, on a GPU.

use std::ffi::c_void;

use longrope::Error;
use longrope::device::{Context, Stream};
use longrope::ops::{self, Decode, Split, Workspace};

use crate::abi::{DecodeDesc, DecodeTensors, KvCache, Status};
use crate::arguments::{self, Field};
use crate::status::{Failure, guard};
use crate::tensor::{optional, tensor};
use crate::{cache, context};

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
        let workspace = Workspace { address: workspace.expose_provenance() as u64, bytes: workspace_bytes };
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
    let name = |field| Field("desc.", field);
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let cache = unsafe { cache::cache(cache) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read_all("tensors", tensors) }?;
    let tensors = ops::DecodeTensors {
        q: tensor(&format_args!("tensors.q"), &given.q)?,
        out: tensor(&format_args!("tensors.out"), &given.out)?,
        lse: optional(&format_args!("tensors.lse"), &given.lse)?,
    };
    arguments::no_flags(name("flags"), desc.flags)?;
    let window = arguments::count(name("window"), desc.window)?;
    let decode = Decode {
        cache,
        tokens: cache::new_tokens(&desc.tokens, tensors.q.layout.length())?,
        rotary: match desc.rotary.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { cache::rotary("desc.rotary", desc.rotary) }?),
        },
        scale: (desc.scale != 0.0).then_some(desc.scale),
        window: (window != 0).then_some(window),
        split: match u32::try_from(desc.splits) {
            Ok(0) => Split::Balanced,
            Ok(splits) => Split::Fixed(splits),
            Err(_) => {
                let expected = "0 (blocks of equal work) or 1 to 1024 parts";
                return Err(Failure::argument(name("splits"), desc.splits, expected));
            }
        },
        status: arguments::optional(desc.status),
    };
    Ok((decode, tensors))
}

/// An error in the words of C.
fn in_c(error: Error) -> Failure {
    Failure::renamed(error, cache::in_c)
}

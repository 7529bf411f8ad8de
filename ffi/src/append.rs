//! New tokens into a cache, on a GPU.

use std::ffi::c_void;

use longrope::Error;
use longrope::device::{Context, Stream};
use longrope::ops::{self, Append, RotaryTensor};

use crate::abi::{AppendDesc, AppendTensors, CachedKeys, KvCache, Status, TensorIo};
use crate::arguments::{self, value};
use crate::status::{Failure, guard};
use crate::tensor::{is_zero, optional, tensor};
use crate::{cache, context};

/// Whether an append can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with a rotation that is null or valid for its size, with factor sets that are null or
/// alive; `cache` is null or valid for its size; `tensors` is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_append_supported(
    desc: *const AppendDesc,
    cache: *const KvCache,
    tensors: *const AppendTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (append, tensors) = unsafe { read(desc, cache, tensors) }?;
        append.supported(&tensors).map_err(in_c)
    })
}

/// How much scratch memory an append needs.
///
/// # Safety
/// As [`longrope_append_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_append_workspace_size(
    desc: *const AppendDesc,
    cache: *const KvCache,
    tensors: *const AppendTensors,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (append, tensors) = unsafe { read(desc, cache, tensors) }?;
        append.supported(&tensors).map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, 0) }
    })
}

/// Launches an append.
///
/// # Safety
/// As [`longrope_append_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Append::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_append_run(
    context: *const Context,
    desc: *const AppendDesc,
    cache: *const KvCache,
    tensors: *const AppendTensors,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (append, tensors) = unsafe { read(desc, cache, tensors) }?;
        // SAFETY: as above.
        unsafe { append.run(context, &tensors, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Checks what an append would find on the device.
///
/// # Safety
/// As [`longrope_append_run`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_append_validate(
    context: *const Context,
    desc: *const AppendDesc,
    cache: *const KvCache,
    tensors: *const AppendTensors,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (append, tensors) = unsafe { read(desc, cache, tensors) }?;
        // SAFETY: as above.
        unsafe { append.validate(context, &tensors, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads an append, its cache and its tensors.
///
/// # Safety
/// As [`longrope_append_supported`]; the factor sets outlive `'a`.
unsafe fn read<'a>(
    desc: *const AppendDesc,
    cache: *const KvCache,
    tensors: *const AppendTensors,
) -> Result<(Append<'a>, ops::AppendTensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let cache = unsafe { cache::cache(cache) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read_all("tensors", tensors) }?;
    let tensors = ops::AppendTensors {
        q: queries(&given.q)?,
        k: tensor(&format_args!("tensors.k"), &given.k)?,
        v: tensor(&format_args!("tensors.v"), &given.v)?,
    };
    let append = Append {
        cache,
        tokens: cache::new_tokens(&desc.tokens, tensors.k.layout.length())?,
        // SAFETY: as above.
        rotary: unsafe { cache::rotary("desc.rotary", desc.rotary) }?,
        keys: match value!(CachedKeys, "desc.cached_keys", desc.cached_keys)? {
            CachedKeys::Rotated => ops::CachedKeys::Rotated,
            CachedKeys::Unrotated => ops::CachedKeys::Unrotated,
        },
        status: arguments::optional(desc.status),
    };
    Ok((append, tensors))
}

/// The queries, if there are any.
fn queries(q: &TensorIo) -> Result<Option<RotaryTensor>, Failure> {
    if is_zero(&q.input) && is_zero(&q.output) {
        return Ok(None);
    }
    let input = tensor(&format_args!("tensors.q.input"), &q.input)?;
    let output = optional(&format_args!("tensors.q.output"), &q.output)?;
    Ok(Some(RotaryTensor { input, output: output.unwrap_or(input) }))
}

/// An error in the words of C.
fn in_c(error: Error) -> Failure {
    Failure::renamed(error, |argument| match argument {
        "q.heads" => cache::name_in_c("q.input.heads"),
        other => cache::name_in_c(other),
    })
}

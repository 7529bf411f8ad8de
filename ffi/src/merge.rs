//! The union of partial results of attention, on a GPU.

use std::ffi::c_void;

use longrope::device::{Context, Stream};
use longrope::ops::{Merge, Parts};

use crate::abi::{MergeParts, Status, Tensor};
use crate::arguments;
use crate::context;
use crate::status::{Failure, guard};
use crate::tensor::{is_zero, tensor};

/// Whether a merge can be launched.
///
/// # Safety
/// Every pointer is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_merge_supported(
    parts: *const MergeParts,
    out: *const Tensor,
    lse: *const Tensor,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        Ok(unsafe { read(parts, out, lse) }?.supported()?)
    })
}

/// How much scratch memory a merge needs.
///
/// # Safety
/// As [`longrope_merge_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_merge_workspace_size(
    parts: *const MergeParts,
    out: *const Tensor,
    lse: *const Tensor,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { read(parts, out, lse) }?.supported()?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, 0) }
    })
}

/// Launches a merge.
///
/// # Safety
/// As [`longrope_merge_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Merge::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_merge_run(
    context: *const Context,
    parts: *const MergeParts,
    out: *const Tensor,
    lse: *const Tensor,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let merge = unsafe { read(parts, out, lse) }?;
        // SAFETY: as above.
        Ok(unsafe { merge.run(context, Stream::from_raw(stream)) }?)
    })
}

/// Reads a merge. Errors of the Rust interface name its arguments as C does.
///
/// # Safety
/// Every pointer is null or valid for reading.
unsafe fn read(parts: *const MergeParts, out: *const Tensor, lse: *const Tensor) -> Result<Merge, Failure> {
    if parts.is_null() {
        return Err(Failure::null("parts", "a pointer to the struct"));
    }
    if out.is_null() {
        return Err(Failure::null("out", "a pointer to the tensor"));
    }
    // SAFETY: by this function's contract; alignment is not assumed.
    let (parts, out) = unsafe { (parts.read_unaligned(), out.read_unaligned()) };
    let lse = match lse.is_null() {
        true => None,
        // SAFETY: as above.
        false => Some(unsafe { lse.read_unaligned() }).filter(|lse| !is_zero(lse)),
    };
    Ok(Merge {
        parts: Parts {
            count: arguments::size("parts.count", parts.count)?,
            out: tensor(&format_args!("parts.out"), &parts.out)?,
            lse: tensor(&format_args!("parts.lse"), &parts.lse)?,
            out_stride: parts.out_stride,
            lse_stride: parts.lse_stride,
        },
        out: tensor(&format_args!("out"), &out)?,
        lse: lse.map(|lse| tensor(&format_args!("lse"), &lse)).transpose()?,
    })
}

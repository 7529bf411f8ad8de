//! The backward pass of attention on a GPU.

use std::ffi::c_void;

use longrope::device::{Context, Stream};
use longrope::ops::{self, Attention, AttentionBackward};

use crate::abi::{AttentionBackwardDesc, AttentionBackwardTensors, AttentionDesc, Status, Tensor};
use crate::arguments::{self, Field};
use crate::attention::{attention, in_c};
use crate::status::{Failure, guard};
use crate::tensor::{optional, tensor};
use crate::{cache, context};

/// `LONGROPE_ATTENTION_BACKWARD_FAST`.
const FAST: u32 = 1;

/// Whether a backward pass can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with a rotation that is null or valid for its own, `tensors` is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_backward_supported(
    desc: *const AttentionBackwardDesc,
    tensors: *const AttentionBackwardTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (backward, tensors) = unsafe { read(desc, tensors) }?;
        backward.supported(&tensors).map_err(in_c)
    })
}

/// How much scratch memory a backward pass needs.
///
/// # Safety
/// As [`longrope_attention_backward_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_backward_workspace_size(
    desc: *const AttentionBackwardDesc,
    tensors: *const AttentionBackwardTensors,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (backward, tensors) = unsafe { read(desc, tensors) }?;
        let size = backward.workspace_size(&tensors).map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, size) }
    })
}

/// Launches a backward pass.
///
/// # Safety
/// As [`longrope_attention_backward_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of
/// device memory as `longrope::ops::AttentionBackward::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_backward_run(
    context: *const Context,
    desc: *const AttentionBackwardDesc,
    tensors: *const AttentionBackwardTensors,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (backward, tensors) = unsafe { read(desc, tensors) }?;
        let workspace = arguments::workspace(workspace, workspace_bytes);
        // SAFETY: as above.
        unsafe { backward.run(context, &tensors, workspace, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads a backward pass and its tensors.
///
/// # Safety
/// As [`longrope_attention_backward_supported`].
pub unsafe fn read<'a>(
    desc: *const AttentionBackwardDesc,
    tensors: *const AttentionBackwardTensors,
) -> Result<(AttentionBackward<'a>, ops::AttentionBackwardTensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read_all("tensors", tensors) }?;
    let tensors = ops::AttentionBackwardTensors {
        q: tensor(&format_args!("tensors.q"), &given.q)?,
        k: tensor(&format_args!("tensors.k"), &given.k)?,
        v: tensor(&format_args!("tensors.v"), &given.v)?,
        out: optional(&format_args!("tensors.out"), &given.out)?,
        lse: tensor(&format_args!("tensors.lse"), &given.lse)?,
        delta: optional(&format_args!("tensors.delta"), &given.delta)?,
        d_out: tensor(&format_args!("tensors.d_out"), &given.d_out)?,
        dq: tensor(&format_args!("tensors.dq"), &given.dq)?,
        dk: tensor(&format_args!("tensors.dk"), &given.dk)?,
        dv: tensor(&format_args!("tensors.dv"), &given.dv)?,
    };
    let name = |field| Field("desc.", field);
    let accumulate = match desc.accumulate {
        0 => false,
        1 => true,
        other => return Err(Failure::argument(name("accumulate"), other, "0 or 1")),
    };
    arguments::unused(name("reserved"), desc.reserved == 0, "this version")?;
    let fast = match desc.flags {
        0 => false,
        FAST => true,
        other => {
            return Err(Failure::argument(name("flags"), other, "0 or LONGROPE_ATTENTION_BACKWARD_FAST (1)"));
        }
    };
    let rotary = match desc.rotary.is_null() {
        true => None,
        // SAFETY: by this function's contract.
        false => Some(unsafe { cache::rotary("desc.rotary", desc.rotary) }?),
    };
    // SAFETY: there is no rotation.
    let asked = unsafe { attention(&forward(&desc), tensors.q.layout.length()) }?;
    let Attention { attention, sequences, query_offsets, status, .. } = asked;
    Ok((AttentionBackward { attention, sequences, query_offsets, status, accumulate, rotary, fast }, tensors))
}

/// The attention that a backward pass is one of, without options.
fn forward(desc: &AttentionBackwardDesc) -> AttentionDesc {
    const NONE: Tensor = Tensor { data: std::ptr::null_mut(), dtype: 0, shape: [0; 4], stride: [0; 4] };
    AttentionDesc {
        struct_size: size_of::<AttentionDesc>() as u32,
        causal: desc.causal,
        scale: desc.scale,
        flags: 0,
        window: desc.window,
        query_offset: desc.query_offset,
        key_offset: desc.key_offset,
        sequence_kind: desc.sequence_kind,
        index_bits: desc.index_bits,
        sequences: desc.sequences,
        query_starts: desc.query_starts,
        key_starts: desc.key_starts,
        max_query_length: desc.max_query_length,
        query_offsets: desc.query_offsets,
        status: desc.status,
        query_rotary: std::ptr::null(),
        max_multiprocessors: 0,
        reserved: 0,
        carry_out: NONE,
        carry_lse: NONE,
    }
}

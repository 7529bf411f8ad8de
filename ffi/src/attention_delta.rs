//! The sum of outputs times their gradients, on a GPU and on the CPU.

use std::ffi::c_void;

use longrope::Error;
use longrope::cpu::{self, Tensor};
use longrope::device::{Context, Dtype, Stream};
use longrope::ops::AttentionDelta;

use crate::abi::{self, Status};
use crate::context;
use crate::sequence::{clear, gather, scatter};
use crate::status::{Failure, guard};
use crate::tensor::tensor;
use crate::threads;

/// Whether the sum can be launched.
///
/// # Safety
/// Every pointer is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_delta_supported(
    out: *const abi::Tensor,
    d_out: *const abi::Tensor,
    delta: *const abi::Tensor,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        Ok(unsafe { read(out, d_out, delta) }?.supported()?)
    })
}

/// Launches the sum.
///
/// # Safety
/// As [`longrope_attention_delta_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of
/// device memory as `longrope::ops::AttentionDelta::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_delta_run(
    context: *const Context,
    out: *const abi::Tensor,
    d_out: *const abi::Tensor,
    delta: *const abi::Tensor,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let delta = unsafe { read(out, d_out, delta) }?;
        // SAFETY: as above.
        Ok(unsafe { delta.run(context, Stream::from_raw(stream)) }?)
    })
}

/// The sum in host memory.
///
/// # Safety
/// As [`longrope_attention_delta_supported`]; all addresses are of host memory, valid for what the shapes say, and used by no
/// one else during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_delta_cpu(
    out: *const abi::Tensor,
    d_out: *const abi::Tensor,
    delta: *const abi::Tensor,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let delta = unsafe { read(out, d_out, delta) }?;
        // What is wrong for a launch is wrong here. What has no kernel is another matter.
        if let Err(error @ Error::Argument { .. }) = delta.supported() {
            return Err(error.into());
        }
        if delta.d_out.dtype != Dtype::F32 {
            let found = format!("{:?}", delta.d_out.dtype);
            let expected = "F32, which is what the CPU form takes";
            return Err(Error::unsupported("d_out.dtype", found, expected).into());
        }
        if delta.delta.layout.is_empty() {
            return Ok(());
        }
        // SAFETY: the addresses were checked, and are valid by this function's contract.
        threads::run(|| unsafe { sum(&delta) })
    })
}

/// The sums of each batch.
///
/// # Safety
/// The tensors are f32, in host memory, and valid for their shapes.
unsafe fn sum(AttentionDelta { out, d_out, delta }: &AttentionDelta) -> Result<(), Failure> {
    let tokens = 0..d_out.layout.length();
    for batch in 0..d_out.layout.batch() {
        if d_out.layout.head_dim() == 0 {
            // SAFETY: by this function's contract.
            unsafe { clear(delta, batch, &tokens) };
            continue;
        }
        // SAFETY: by this function's contract.
        let (a, a_layout) = unsafe { gather("out", out, batch, &tokens) }?;
        // SAFETY: as above.
        let (b, b_layout) = unsafe { gather("d_out", d_out, batch, &tokens) }?;
        let mut sums = vec![0.0; tokens.len() * d_out.layout.heads()];
        cpu::attention_delta(Tensor::new(&a, a_layout), Tensor::new(&b, b_layout), &mut sums)?;
        // SAFETY: as above.
        unsafe { scatter(&sums, delta, batch, &tokens, false) };
    }
    Ok(())
}

/// Reads the tensors. Errors of the Rust interface name them as C does.
///
/// # Safety
/// Every pointer is null or valid for reading.
unsafe fn read(
    out: *const abi::Tensor,
    d_out: *const abi::Tensor,
    delta: *const abi::Tensor,
) -> Result<AttentionDelta, Failure> {
    let one = |name: &str, pointer: *const abi::Tensor| {
        if pointer.is_null() {
            return Err(Failure::null(name, "a pointer to the tensor"));
        }
        // SAFETY: by this function's contract; alignment is not assumed.
        tensor(&format_args!("{name}"), &unsafe { pointer.read_unaligned() })
    };
    Ok(AttentionDelta { out: one("out", out)?, d_out: one("d_out", d_out)?, delta: one("delta", delta)? })
}

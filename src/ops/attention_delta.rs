//! The sum of outputs times their gradients, which the backward pass of attention subtracts.

use crate::Error;
use crate::device::params::backward::longrope_attention_delta_params;
use crate::device::{Context, DeviceTensor, Dtype, Family, Grid, Stream};
use crate::ops::attention_arguments::{
    blocks_of, check_address, check_dtype, check_row_numbers, pointer, row_strides,
};

/// `delta = Σ_d out · d_out`, over the head dimension: a number for each query of each head. What
/// [`AttentionBackward`](super::AttentionBackward) makes for itself where it is not given.
///
/// Where only a part of the keys is at hand, as in a ring of devices, `out` is that of all keys, and `delta` serves every part.
/// A gradient of the log-sum-exp itself is subtracted from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionDelta {
    /// The output of the forward pass, `[batch, query_length, query_heads, head_dim]`: of the type of `d_out`, or f32.
    pub out: DeviceTensor,
    /// Its gradient, f16 or bf16, of the same shape.
    pub d_out: DeviceTensor,
    /// The result, f32 `[batch, query_length, query_heads, 1]`.
    pub delta: DeviceTensor,
}

/// Threads of a block (`kDeltaThreads` in the kernel).
const THREADS: usize = 256;

impl AttentionDelta {
    /// Whether it can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`AttentionDelta::run`], but for those of the driver.
    pub fn supported(&self) -> Result<(), Error> {
        self.plan().map(drop)
    }

    /// Launches it.
    ///
    /// # Errors
    /// [`Error::Argument`]: shapes or types that do not belong together, a missing or misaligned address, a result that overlaps
    /// itself. [`Error::Unsupported`]: f32 gradients, more than 2^20 heads or dimensions, 2^34 rows. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their
    /// elements, and as large as the shapes say. The result must overlap no other memory in use.
    pub unsafe fn run(&self, context: &Context, stream: Stream) -> Result<(), Error> {
        let Some((name, grid, params)) = self.plan()? else { return Ok(()) };
        // SAFETY: the name is that of a kernel that takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(name, grid, &params, stream) }?)
    }

    /// Whether the arguments mean something, be it offered or not.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let Self { out, d_out, delta } = self;
        let shape = d_out.layout.shape();
        if out.layout.shape() != shape {
            return Err(Error::argument(
                "out",
                format!("shape {:?}", out.layout.shape()),
                format!("{shape:?}, as d_out"),
            ));
        }
        check_dtype("out", out, d_out, "d_out", true)?;
        for (name, tensor) in [("out", out), ("d_out", d_out)] {
            let size = tensor.dtype.size() as u64;
            check_address(name, Some(tensor.address), size, tensor.layout.is_empty())?;
        }
        check_row_numbers("delta", delta, d_out)?;
        delta.layout.check_distinct("delta")
    }

    fn plan(&self) -> Result<Option<(&'static str, Grid, longrope_attention_delta_params)>, Error> {
        self.validate()?;
        let Self { out, d_out, delta } = self;
        let shape @ [batch, length, heads, head_dim] = d_out.layout.shape();
        if d_out.dtype == Dtype::F32 {
            return Err(Error::unsupported("d_out.dtype", "F32", "F16 or Bf16"));
        }
        if heads > 1 << 20 || head_dim > 1 << 20 {
            let expected = "at most 2^20 heads and 2^20 dimensions";
            return Err(Error::unsupported("d_out", format!("shape {shape:?}"), expected));
        }
        // A lane takes eight dimensions at once, so far as there are any.
        let lanes = head_dim.div_ceil(8).next_power_of_two().clamp(1, 32);
        let rows = batch.checked_mul(length).and_then(|tokens| tokens.checked_mul(heads));
        let blocks = rows.map(|rows| rows.div_ceil(THREADS / lanes)).and_then(|blocks| blocks_of(&[blocks]));
        let Some(blocks) = blocks else {
            return Err(Error::unsupported("d_out", format!("shape {shape:?}"), "fewer than 2^34 rows"));
        };
        if blocks == 0 {
            return Ok(None);
        }
        let vector = head_dim.is_multiple_of(8) && out.is_vectorizable() && d_out.is_vectorizable();
        let which = if d_out.dtype == Dtype::F16 { 2 } else { 0 } + usize::from(!vector);
        let params = longrope_attention_delta_params {
            out: pointer(out.address),
            d_out: pointer(d_out.address),
            delta: delta.address as *mut f32,
            out_stride: out.layout.strides(),
            d_out_stride: d_out.layout.strides(),
            delta_stride: row_strides(delta),
            batch: batch as i64,
            length: length as i64,
            heads: heads as i32,
            head_dim: head_dim as i32,
            out_is_f32: i32::from(out.dtype == Dtype::F32),
            lanes: lanes as i32,
        };
        let grid = Grid { blocks, threads: [THREADS as u32, 1, 1], shared_bytes: 0 };
        Ok(Some((KERNELS[which], grid, params)))
    }
}

/// The instances in `cuda/attention_delta.cu`.
static KERNELS: [&str; 4] = [
    "longrope_attention_delta_bf16_vector",
    "longrope_attention_delta_bf16_strided",
    "longrope_attention_delta_f16_vector",
    "longrope_attention_delta_f16_strided",
];

/// What a context loads.
pub(super) fn family() -> Family {
    Family::portable("attention_delta", KERNELS.to_vec(), 0)
}

//! The union of partial results of attention.

use crate::Error;
use crate::device::params::longrope_merge_params;
use crate::device::{Context, DeviceTensor, Dtype, Family, Grid, Stream};
use crate::ops::attention_arguments::{check_address, pointer};

/// Partial results of one attention over disjoint keys, all of one layout: `out` f32 `[batch, length, heads, head_dim]`, `lse`
/// f32 `[batch, length, heads, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// How many there are; none is legal.
    pub count: usize,
    /// The output of part 0.
    pub out: DeviceTensor,
    /// The log-sum-exp of part 0.
    pub lse: DeviceTensor,
    /// From the output of a part to that of the next, in elements.
    pub out_stride: i64,
    /// The same for the log-sum-exp.
    pub lse_stride: i64,
}

impl Parts {
    /// Two parts anywhere in device memory, each an output and a log-sum-exp. The second has the layouts of the first.
    pub fn pair(first: (DeviceTensor, DeviceTensor), second: (u64, u64)) -> Self {
        let step = |from: u64, to: u64| (to as i64).wrapping_sub(from as i64) / 4;
        Self {
            count: 2,
            out: first.0,
            lse: first.1,
            out_stride: step(first.0.address, second.0),
            lse_stride: step(first.1.address, second.1),
        }
    }
}

/// Merges partial results: `lse = ln Σ exp(lse_p)`, `out = Σ exp(lse_p - lse) out_p`.
///
/// A part whose log-sum-exp is minus infinity saw no key in that row, and its output there is not read. Where no part saw one,
/// the result is zeros and minus infinity. Parts are added in their order, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// What is merged.
    pub parts: Parts,
    /// The result, of any type and strides, in the shape of the parts. It may be one of the parts.
    pub out: DeviceTensor,
    /// Its log-sum-exp, f32 `[batch, length, heads, 1]`. It may be that of the same part.
    pub lse: Option<DeviceTensor>,
}

/// Rows a block: one a warp (`kMergeThreads / 32` in the kernel).
const ROWS: usize = 8;

impl Merge {
    /// Whether it can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Merge::run`], but for those of the driver.
    pub fn supported(&self) -> Result<(), Error> {
        self.plan().map(drop)
    }

    /// Launches the merge.
    ///
    /// # Errors
    /// [`Error::Argument`]: shapes or types that do not belong together, a missing or misaligned address, an output that overlaps
    /// itself. [`Error::Unsupported`]: more than 2^20 heads or dimensions, no dimension, 2^34 rows. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses, those of every part included, must be of device memory of the stream's context, valid until the kernel
    /// ended, aligned to their elements, and as large as the shapes say. The outputs must be equal to those of one part, with
    /// the same strides, or overlap no other memory in use.
    pub unsafe fn run(&self, context: &Context, stream: Stream) -> Result<(), Error> {
        let Some((name, grid, params)) = self.plan()? else { return Ok(()) };
        // SAFETY: the name is that of a merge kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(name, grid, &params, stream) }?)
    }

    fn plan(&self) -> Result<Option<(&'static str, Grid, longrope_merge_params)>, Error> {
        let shape = self.out.layout.shape();
        let [batch, length, heads, head_dim] = shape;
        let lse_shape = [batch, length, heads, 1];
        let parts = &self.parts;
        let tensors = [
            ("parts.out", Some(parts.out), shape, parts.count == 0),
            ("parts.lse", Some(parts.lse), lse_shape, parts.count == 0),
            ("out", Some(self.out), shape, false),
            ("lse", self.lse, lse_shape, false),
        ];
        for (name, tensor, expected, may_be_null) in tensors {
            let Some(tensor) = tensor else { continue };
            if tensor.layout.shape() != expected {
                return Err(Error::argument(
                    name,
                    format!("shape {:?}", tensor.layout.shape()),
                    format!("{expected:?}, by the shape of out"),
                ));
            }
            if name != "out" && tensor.dtype != Dtype::F32 {
                return Err(Error::argument(format!("{name}.dtype"), format!("{:?}", tensor.dtype), "F32"));
            }
            check_address(
                name,
                Some(tensor.address),
                tensor.dtype.size() as u64,
                may_be_null || tensor.layout.is_empty(),
            )?;
        }
        self.out.layout.check_distinct("out")?;
        if let Some(lse) = self.lse {
            lse.layout.check_distinct("lse")?;
        }
        if heads > 1 << 20 || !(1..=1 << 20).contains(&head_dim) {
            let expected = "at most 2^20 heads, and 1 to 2^20 dimensions";
            return Err(Error::unsupported("out", format!("shape {shape:?}"), expected));
        }
        let rows = batch.checked_mul(length).and_then(|tokens| tokens.checked_mul(heads));
        let blocks = rows.map(|rows| rows.div_ceil(ROWS)).filter(|blocks| *blocks < 1 << 31);
        let Some(blocks) = blocks else {
            return Err(Error::unsupported("out", format!("shape {shape:?}"), "fewer than 2^34 rows"));
        };
        if blocks == 0 {
            return Ok(None);
        }
        let strides = |tensor: DeviceTensor| {
            let [batch, length, heads, _] = tensor.layout.strides();
            [batch, length, heads]
        };
        let vector = head_dim.is_multiple_of(4)
            && [parts.out, self.out].iter().all(DeviceTensor::is_vectorizable)
            && (parts.count < 2 || parts.out_stride % 4 == 0);
        let name = KERNELS[match self.out.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 2,
            Dtype::Bf16 => 4,
        } + usize::from(!vector)];
        let params = longrope_merge_params {
            parts: pointer(parts.out.address).cast(),
            parts_lse: pointer(parts.lse.address).cast(),
            part_stride: parts.out_stride,
            part_lse_stride: parts.lse_stride,
            part_count: parts.count as i64,
            in_stride: parts.out.layout.strides(),
            in_lse_stride: strides(parts.lse),
            out: pointer(self.out.address).cast_mut(),
            lse: self.lse.map_or(0, |lse| lse.address) as *mut f32,
            out_stride: self.out.layout.strides(),
            lse_stride: self.lse.map_or([0; 3], strides),
            batch: batch as i64,
            length: length as i64,
            heads: heads as i32,
            head_dim: head_dim as i32,
        };
        let grid = Grid { blocks: blocks as u32, threads: [32 * ROWS as u32, 1, 1], shared_bytes: 0 };
        Ok(Some((name, grid, params)))
    }
}

/// By type, four dimensions at once or any strides: the instances in `cuda/merge.cu`.
static KERNELS: [&str; 6] = [
    "longrope_merge_f32_vector",
    "longrope_merge_f32_strided",
    "longrope_merge_f16_vector",
    "longrope_merge_f16_strided",
    "longrope_merge_bf16_vector",
    "longrope_merge_bf16_strided",
];

/// What a context loads.
pub(super) fn family() -> Family {
    Family::portable("merge", KERNELS.to_vec(), 0)
}

//! New tokens into a cache.

use crate::Error;
use crate::descriptor::Pairing;
use crate::device::params::longrope_append_params;
use crate::device::{Context, DeviceTensor, Dtype, Grid, Stream};
use crate::ops::attention_arguments::{check_address, pointer};
use crate::ops::cache::{Cache, NewTokens, check_elements};
use crate::ops::cache_launch::{self, append_kernel};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::cache_validate::Numbers;
use crate::ops::rotary::RotaryTensor;

/// Writes new tokens into a cache: rotates their queries, and writes their keys, rotated or as they are, and their values to where
/// they belong, in one launch.
///
/// The lengths of the cache count the new tokens already: of a sequence of length `L` with `n` new tokens, new token `i` stands at
/// position `L - n + i`. A sequence of length 0 takes no part: nothing of it is written, nor of any row that belongs to no
/// sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Append<'a> {
    /// Where keys and values go, and the length of each sequence.
    pub cache: Cache,
    /// Which tokens are new.
    pub tokens: NewTokens,
    /// The rotation of queries and keys.
    pub rotary: CacheRotary<'a>,
    /// How keys are to lie in the cache.
    pub keys: CachedKeys,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_LENGTH`](crate::ops::BAD_LENGTH),
    /// [`BAD_PAGE`](crate::ops::BAD_PAGE), [`BAD_SEQUENCE`](crate::ops::BAD_SEQUENCE), [`BAD_CHOICE`](crate::ops::BAD_CHOICE)); it
    /// clears none. Nothing is written of a bad sequence, nor of a token whose page is bad; where starts fall, tokens of other
    /// sequences may be left out too.
    pub status: Option<u64>,
}

/// How keys lie in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedKeys {
    /// Rotated by their positions.
    Rotated,
    /// As they come: [`Decode::rotary`](crate::ops::Decode::rotary) rotates them while they are read, so that a sequence can change
    /// its factor set at any time.
    Unrotated,
}

/// The new tokens, `[batch, length, heads, head_dim]` by [`NewTokens`]; parts of one packed buffer, if their strides say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendTensors {
    /// Queries, and where they go when they are rotated; `None` if there are none to rotate.
    pub q: Option<RotaryTensor>,
    /// Keys.
    pub k: DeviceTensor,
    /// Values, of the same shape.
    pub v: DeviceTensor,
}

impl Append<'_> {
    /// Whether it can be launched for these tensors, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`Append::run`], but for those of the driver.
    pub fn supported(&self, tensors: &AppendTensors) -> Result<(), Error> {
        self.plan(tensors).map(drop)
    }

    /// Launches the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`]: shapes or types that do not belong together, a missing or misaligned address, an output or a cache that
    /// overlaps itself, more pairs than half of the head dimension. [`Error::Unsupported`]: f32, a head dimension that is not a
    /// multiple of 8 up to 256, a cache whose rows are not at multiples of 16 bytes, pages of other than 16, 32, ... 256 tokens, 2^20
    /// heads, 2^31 tokens of a page table's row, or 2^31 blocks of new tokens. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their elements,
    /// and as large as the shapes say. What is written must overlap no other memory in use, but for queries that are rotated in
    /// place. No page may be that of two new tokens' sequences.
    pub unsafe fn run(
        &self,
        context: &Context,
        tensors: &AppendTensors,
        stream: Stream,
    ) -> Result<(), Error> {
        let Some((kernel, grid, params)) = self.plan(tensors)? else { return Ok(()) };
        // SAFETY: the name is that of an appending kernel, which takes this block, and waits before it reads; the rest is the
        // caller's promise.
        Ok(unsafe { context.launch_dependent(kernel, grid, &params, stream) }?)
    }

    /// Checks what lies on the device: lengths, starts, the ids of the pages that are written to, numbers of sets. Waits for the
    /// stream; the kernel finds the same by itself, and sets bits of the status word.
    ///
    /// # Errors
    /// As [`Append::run`]; or the first bad entry, by its index, with its value and what would be right.
    ///
    /// # Safety
    /// As [`Append::run`].
    pub unsafe fn validate(
        &self,
        context: &Context,
        tensors: &AppendTensors,
        stream: Stream,
    ) -> Result<(), Error> {
        if self.plan(tensors)?.is_none() {
            return Ok(());
        }
        let numbers = Numbers { cache: &self.cache, rotary: vec![("rotary", self.rotary)] };
        let new = (&self.tokens, &tensors.k);
        // SAFETY: the caller's promise.
        unsafe { numbers.validate(context, Some(new), |length, fresh| length - fresh, stream) }
    }

    /// Kernel, grid and parameters; `None` if there is no new token.
    #[allow(clippy::type_complexity)]
    fn plan(
        &self,
        tensors: &AppendTensors,
    ) -> Result<Option<(&'static str, Grid, longrope_append_params)>, Error> {
        let AppendTensors { q, k, v } = tensors;
        let sequences = self.cache.sequences();
        let idle = k.layout.is_empty() || sequences == 0 || self.tokens.most(k) == 0;
        self.check(tensors, idle)?;
        check_elements("k", k)?;
        self.cache.check_offered()?;
        let params_of_rotary = self.rotary.params()?;
        if let Some(q) = q.filter(|q| q.input.layout.heads() > 1 << 20) {
            return Err(Error::unsupported("q.heads", q.input.layout.heads(), "at most 2^20 heads"));
        }
        if idle {
            return Ok(None);
        }
        let [batch, length, key_heads, head_dim] = k.layout.shape();
        let query_heads = q.map_or(0, |q| q.input.layout.heads());
        let pairs = self.rotary.sets.pairs();
        let moved = q.iter().flat_map(|q| [&q.input, &q.output]).chain([k, v]);
        let vector = pairs.is_multiple_of(8)
            && (head_dim - 2 * pairs).is_multiple_of(8)
            && moved.into_iter().all(DeviceTensor::is_vectorizable);
        let tokens = batch.saturating_mul(length);
        let launch = cache_launch::launch(tokens, query_heads + 2 * key_heads, pairs, vector)?;
        let kernel =
            append_kernel(k.dtype == Dtype::F16, vector, self.rotary.pairing == Pairing::Interleaved);
        let strides = |tensor: Option<DeviceTensor>| tensor.map_or([0; 4], |tensor| tensor.layout.strides());
        let params = longrope_append_params {
            cache: self.cache.params(),
            tokens: self.tokens.params(k),
            rotary: params_of_rotary,
            q: pointer(q.map_or(0, |q| q.input.address)),
            q_out: pointer(q.map_or(0, |q| q.output.address)).cast_mut(),
            k: pointer(k.address),
            v: pointer(v.address),
            q_stride: strides(q.map(|q| q.input)),
            q_out_stride: strides(q.map(|q| q.output)),
            k_stride: k.layout.strides(),
            v_stride: v.layout.strides(),
            status: self.status.unwrap_or(0) as *mut u32,
            query_heads: query_heads as i32,
            head_dim: head_dim as i32,
            keys_unrotated: i32::from(self.keys == CachedKeys::Unrotated),
            ring_bytes: launch.ring_bytes,
        };
        Ok(Some((kernel, launch.grid, params)))
    }

    /// Whether the arguments mean something, be it offered or not.
    fn check(&self, tensors: &AppendTensors, idle: bool) -> Result<(), Error> {
        let AppendTensors { q, k, v } = tensors;
        if k.layout.head_dim() == 0 {
            return Err(Error::argument("k.head_dim", 0, "at least 1"));
        }
        self.tokens.check("k", k, self.cache.sequences(), idle)?;
        self.cache.check("k", k, idle)?;
        let key_heads = self.cache.k.layout.heads();
        if k.layout.heads() != key_heads {
            let expected = format!("{key_heads}, as cache.k");
            return Err(Error::argument("k.heads", k.layout.heads(), expected));
        }
        self.cache.k.layout.check_distinct("cache.k")?;
        self.cache.v.layout.check_distinct("cache.v")?;
        let new = |name: &str, tensor: &DeviceTensor, shape: [usize; 4], like: &str| {
            if tensor.layout.shape() != shape {
                let found = format!("shape {:?}", tensor.layout.shape());
                return Err(Error::argument(name, found, format!("{shape:?}, as {like}")));
            }
            if tensor.dtype != k.dtype {
                let found = format!("{:?}", tensor.dtype);
                return Err(Error::argument(format!("{name}.dtype"), found, format!("{:?}, as k", k.dtype)));
            }
            check_address(name, Some(tensor.address), tensor.dtype.size() as u64, idle)
        };
        let [batch, length, _, head_dim] = k.layout.shape();
        new("k", k, k.layout.shape(), "k")?;
        new("v", v, k.layout.shape(), "k")?;
        if let Some(RotaryTensor { input, output }) = q {
            let shape = [batch, length, input.layout.heads(), head_dim];
            new("q.input", input, shape, "k but for its heads")?;
            new("q.output", output, shape, "its input")?;
            output.layout.check_distinct("q.output")?;
        }
        self.rotary.check("rotary", head_dim, idle)?;
        check_address("status", self.status, 4, idle)
    }
}

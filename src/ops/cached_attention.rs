//! What the forms of attention over a cache share: their tensors and what is asked of them.

use crate::Error;
use crate::device::{Context, DeviceTensor, Dtype, Stream};
use crate::ops::attention_arguments::check_address;
use crate::ops::cache::{Cache, NewTokens, check_elements, check_vectors};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::cache_validate::Numbers;

/// What attention over a cache reads and writes beside it. Queries and output are `[batch, length, query_heads, head_dim]`, by
/// [`NewTokens`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeTensors {
    /// Queries, f16 or bf16.
    pub q: DeviceTensor,
    /// The output, of the same type; or f32, as a partial result that is to be merged with others.
    pub out: DeviceTensor,
    /// The natural logarithm of each row's sum of exponentials, f32 `[batch, length, query_heads, 1]`.
    pub lse: Option<DeviceTensor>,
}

/// Attention of the new tokens of cached sequences.
pub(super) struct CachedAttention<'a> {
    pub(super) cache: Cache,
    pub(super) tokens: NewTokens,
    pub(super) rotary: Option<CacheRotary<'a>>,
    pub(super) scale: Option<f32>,
    pub(super) window: Option<u64>,
    pub(super) status: Option<u64>,
}

impl CachedAttention<'_> {
    /// What logits are multiplied by.
    pub(super) fn scale(&self, head_dim: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt())
    }

    /// The window as kernels have it. One beyond 63 bits reaches everything.
    pub(super) fn window(&self) -> i64 {
        self.window.map_or(0, |window| i64::try_from(window).unwrap_or(i64::MAX))
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self, q: &DeviceTensor) -> bool {
        q.layout.is_empty() || self.cache.sequences() == 0 || self.tokens.most(q) == 0
    }

    /// Whether the arguments mean something, be it offered or not.
    pub(super) fn check(&self, tensors: &DecodeTensors, idle: bool) -> Result<(), Error> {
        let q = &tensors.q;
        if q.layout.head_dim() == 0 {
            return Err(Error::argument("q.head_dim", 0, "at least 1"));
        }
        self.tokens.check("q", q, self.cache.sequences(), idle)?;
        self.cache.check("q", q, idle)?;
        let (heads, key_heads) = (q.layout.heads(), self.cache.k.layout.heads());
        if !heads.is_multiple_of(key_heads) {
            let expected = format!("a divisor of the number of query heads ({heads})");
            return Err(Error::argument("cache.k.heads", key_heads, expected));
        }
        if let Some(rotary) = self.rotary {
            rotary.check("rotary", q.layout.head_dim(), idle)?;
        }
        check_address("q", Some(q.address), q.dtype.size() as u64, idle)?;
        check_results(tensors, idle)?;
        check_address("status", self.status, 4, idle)?;
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::argument("scale", scale, "a finite number"));
        }
        match self.window {
            Some(0) => Err(Error::argument("window", 0, "at least 1, since a query sees its own position")),
            _ => Ok(()),
        }
    }

    /// What there are kernels for.
    pub(super) fn check_offered(&self, tensors: &DecodeTensors) -> Result<(), Error> {
        let DecodeTensors { q, out, .. } = tensors;
        check_elements("q", q)?;
        check_vectors("q", q)?;
        check_vectors("out", out)?;
        self.cache.check_offered()?;
        let Some(rotary) = self.rotary else { return Ok(()) };
        rotary.check_exact("rotary")?;
        let pairs = rotary.sets.pairs();
        if !pairs.is_multiple_of(8) {
            let expected = "a multiple of 8 pairs";
            return Err(Error::unsupported("rotary.sets", format!("{pairs} pairs"), expected));
        }
        Ok(())
    }

    /// Checks what lies on the device.
    ///
    /// # Safety
    /// The addresses must be of device memory of the stream's context, as large as the shapes say.
    pub(super) unsafe fn validate(
        &self,
        context: &Context,
        tensors: &DecodeTensors,
        stream: Stream,
    ) -> Result<(), Error> {
        let rotary = self.rotary.into_iter().map(|rotary| ("rotary", rotary)).collect();
        let numbers = Numbers { cache: &self.cache, rotary };
        let window = self.window();
        let first = |length: i64, fresh: i64| match window {
            0 => 0,
            window => (length - fresh + 1).saturating_sub(window).max(0),
        };
        // SAFETY: the caller's promise.
        unsafe { numbers.validate(context, Some((&self.tokens, &tensors.q)), first, stream) }
    }
}

/// A scale's size as kernels have it: above zero, so that -inf times it is -inf; so small, all logits are 0.
pub(super) fn scale_log2(scale: f32) -> f32 {
    (scale.abs() * std::f32::consts::LOG2_E).max(f32::MIN_POSITIVE)
}

/// Types, shapes, addresses and the distinctness of what is written.
fn check_results(tensors: &DecodeTensors, idle: bool) -> Result<(), Error> {
    let DecodeTensors { q, out, lse } = tensors;
    let shape = q.layout.shape();
    if out.layout.shape() != shape {
        let expected = format!("{shape:?}, as q");
        return Err(Error::argument("out", format!("shape {:?}", out.layout.shape()), expected));
    }
    if out.dtype != q.dtype && out.dtype != Dtype::F32 {
        let expected = format!("{:?}, as q, or F32", q.dtype);
        return Err(Error::argument("out.dtype", format!("{:?}", out.dtype), expected));
    }
    check_address("out", Some(out.address), out.dtype.size() as u64, idle)?;
    out.layout.check_distinct("out")?;
    let Some(lse) = lse else { return Ok(()) };
    let [batch, length, heads, _] = shape;
    let expected = [batch, length, heads, 1];
    if lse.layout.shape() != expected {
        return Err(Error::argument(
            "lse",
            format!("shape {:?}", lse.layout.shape()),
            format!("{expected:?}, a number for each row of q"),
        ));
    }
    if lse.dtype != Dtype::F32 {
        return Err(Error::argument("lse.dtype", format!("{:?}", lse.dtype), "F32"));
    }
    check_address("lse", Some(lse.address), 4, idle)?;
    lse.layout.check_distinct("lse")
}

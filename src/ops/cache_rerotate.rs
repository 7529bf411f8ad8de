//! A change of the factor set of keys in a cache.

use crate::Error;
use crate::descriptor::Pairing;
use crate::device::params::longrope_cache_rerotate_params;
use crate::device::{Context, Dtype, Stream};
use crate::ops::attention_arguments::check_address;
use crate::ops::cache::{Cache, check_elements};
use crate::ops::cache_launch::{rerotate_kernel, walking_launch};
use crate::ops::cache_rotary::CacheRotary;
use crate::ops::cache_validate::Numbers;

/// Rotates the keys of a cache out of one factor set and into another, where they lie, in one pass. Where `from` and `to` have the
/// same sets, a sequence that keeps its own keeps its keys, bit for bit.
///
/// For one attention call this is what rotating the original keys anew gives, up to the rounding of the stored keys. For a whole
/// model it approximates a new prefill: hidden states of upper layers were formed under the old factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerotateCache<'a> {
    /// The keys, and the length of each sequence. Values are not touched.
    pub cache: Cache,
    /// How the keys were rotated.
    pub from: CacheRotary<'a>,
    /// How they are to be, with as many pairs and the same pairing.
    pub to: CacheRotary<'a>,
    /// The address of a `u32` in which the kernel sets bits ([`BAD_LENGTH`](crate::ops::BAD_LENGTH),
    /// [`BAD_PAGE`](crate::ops::BAD_PAGE), [`BAD_CHOICE`](crate::ops::BAD_CHOICE)); it clears none. A bad sequence keeps its keys;
    /// of one with a bad page, the keys on its other pages are rotated.
    pub status: Option<u64>,
}

impl RerotateCache<'_> {
    /// Whether it can be launched, or why not. Asks no GPU.
    ///
    /// # Errors
    /// As [`RerotateCache::run`], but for those of the driver.
    pub fn supported(&self) -> Result<(), Error> {
        self.check().map(drop)
    }

    /// Launches the kernel.
    ///
    /// # Errors
    /// [`Error::Argument`]: keys and values of different shapes or types, a missing or misaligned address, a cache that overlaps
    /// itself, rotations that differ in their pairs or their pairing, more pairs than half of the head dimension.
    /// [`Error::Unsupported`]: angles in parity mode, whose differences are not exact; what [`Append::run`](crate::ops::Append::run)
    /// says of a cache. Or an error of the driver.
    ///
    /// # Safety
    /// All addresses must be of device memory of the stream's context, valid until the kernel ended, aligned to their elements,
    /// and as large as the shapes say. No page may belong to two sequences, since it would be rotated twice.
    pub unsafe fn run(&self, context: &Context, stream: Stream) -> Result<(), Error> {
        if self.check()? {
            return Ok(());
        }
        let Cache { k, .. } = &self.cache;
        let (key_heads, head_dim, pairs) = (k.layout.heads(), k.layout.head_dim(), self.to.sets.pairs());
        let vector = pairs.is_multiple_of(8) && (head_dim - 2 * pairs).is_multiple_of(8);
        let most = self.cache.sequences().saturating_mul(self.cache.capacity());
        let launch = walking_launch(most, key_heads, pairs, vector, context.multiprocessors());
        let params = longrope_cache_rerotate_params {
            cache: self.cache.params(),
            from: self.from.params()?,
            to: self.to.params()?,
            status: self.status.unwrap_or(0) as *mut u32,
            head_dim: head_dim as i32,
            ring_bytes: launch.ring_bytes,
            same_sets: i32::from(self.from.sets == self.to.sets),
            padding: 0,
        };
        let interleaved = self.to.pairing == Pairing::Interleaved;
        let kernel = rerotate_kernel(k.dtype == Dtype::F16, vector, interleaved);
        // SAFETY: the name is that of a re-rotating kernel, which takes this block; the rest is the caller's promise.
        Ok(unsafe { context.launch(kernel, launch.grid, &params, stream) }?)
    }

    /// Checks what lies on the device: lengths, the ids of all pages of all sequences, numbers of sets. Waits for the stream.
    ///
    /// # Errors
    /// As [`RerotateCache::run`]; or the first bad entry, by its index, with its value and what would be right.
    ///
    /// # Safety
    /// As [`RerotateCache::run`].
    pub unsafe fn validate(&self, context: &Context, stream: Stream) -> Result<(), Error> {
        if self.check()? {
            return Ok(());
        }
        let numbers = Numbers { cache: &self.cache, rotary: vec![("from", self.from), ("to", self.to)] };
        // SAFETY: the caller's promise.
        unsafe { numbers.validate(context, None, |_, _| 0, stream) }
    }

    /// Whether there is nothing to do.
    fn check(&self) -> Result<bool, Error> {
        let Cache { k, v, .. } = &self.cache;
        let idle = k.layout.is_empty() || self.cache.sequences() == 0 || self.cache.capacity() == 0;
        if k.layout.head_dim() == 0 {
            return Err(Error::argument("cache.k.head_dim", 0, "at least 1"));
        }
        self.cache.check("cache.k", k, idle)?;
        k.layout.check_distinct("cache.k")?;
        v.layout.check_distinct("cache.v")?;
        for (name, rotary) in [("from", &self.from), ("to", &self.to)] {
            rotary.check(name, k.layout.head_dim(), idle)?;
        }
        if self.from.sets.pairs() != self.to.sets.pairs() {
            return Err(Error::argument(
                "from.sets",
                format!("{} pairs", self.from.sets.pairs()),
                format!("{}, as to.sets", self.to.sets.pairs()),
            ));
        }
        if self.from.pairing != self.to.pairing {
            return Err(Error::argument(
                "from.pairing",
                format!("{:?}", self.from.pairing),
                format!("{:?}, as to.pairing", self.to.pairing),
            ));
        }
        check_address("status", self.status, 4, idle)?;
        check_elements("cache.k", k)?;
        self.cache.check_offered()?;
        self.from.check_exact("from")?;
        self.to.check_exact("to")?;
        Ok(idle)
    }
}

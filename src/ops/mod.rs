//! What is run on a GPU: each operation checks its arguments, answers whether it is supported, and launches.
//!
//! A launch runs on the caller's stream. It is asynchronous, allocates nothing, synchronises nothing, keeps no hidden
//! state, and can be captured in a graph. The same inputs give the same bits. What the host can see is checked before the
//! launch; what lies on the device is checked in the kernel, which skips a bad entry and sets a bit in the caller's status
//! word.

use crate::device::Family;

mod append;
mod attention;
mod attention_arguments;
mod attention_backward;
mod attention_backward_fast;
mod attention_backward_hopper;
mod attention_backward_kernels;
mod attention_backward_workspace;
mod attention_delta;
mod attention_hopper;
mod attention_kernels;
mod cache;
mod cache_launch;
mod cache_rerotate;
mod cache_rotary;
mod cache_validate;
mod cached_attention;
mod decode;
mod decode_clusters;
mod decode_kernels;
mod factors;
mod merge;
mod prefill;
mod rotary;
mod rotary_launch;
mod rotary_slices;
mod rotary_table;
mod split_merge;
mod workspace;

pub use append::{Append, AppendTensors, CachedKeys};
pub use attention::{Attention, AttentionTensors, Carry};
pub use attention_arguments::{BAD_SEQUENCE, Packed, Sequences, Starts};
pub use attention_backward::{AttentionBackward, AttentionBackwardTensors};
pub use attention_delta::AttentionDelta;
pub use cache::{BAD_LENGTH, BAD_PAGE, Cache, DeviceLengths, NewTokens, PackedTokens, PageTable};
pub use cache_rerotate::RerotateCache;
pub use cache_rotary::{CacheChoices, CacheRotary};
pub use cached_attention::DecodeTensors;
pub use decode::{Decode, Split};
pub use merge::{Merge, Parts};
pub use prefill::Prefill;
pub use rotary::{BAD_CHOICE, DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
pub use rotary_slices::{RerotateOnSlices, RotaryOnSlices, SliceChoices, SlicePositions, SliceRotary};
pub use rotary_table::{RotaryByTable, SetTable};
pub use workspace::Workspace;

/// The families of kernels that a context loads.
pub(crate) fn kernel_families() -> Vec<Family> {
    let mut families = attention::families();
    families.extend(attention_backward_kernels::families());
    families.push(attention_delta::family());
    families.push(rotary_launch::family());
    families.push(merge::family());
    families.extend(decode_kernels::families());
    families.push(cache_launch::family());
    families.extend(prefill::families());
    families
}

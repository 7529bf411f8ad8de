//! What is run on a GPU: each operation checks its arguments, answers whether it is supported, and launches.
//!
//! A launch runs on the caller's stream. It is asynchronous, allocates nothing, synchronises nothing, keeps no hidden
//! state, and can be captured in a graph. The same inputs give the same bits. What the host can see is checked before the
//! launch; what lies on the device is checked in the kernel, which skips a bad entry and sets a bit in the caller's status
//! word.

mod factors;
mod rotary;
mod rotary_launch;
mod rotary_slices;
mod rotary_table;

pub use rotary::{BAD_CHOICE, DeviceChoices, DevicePositions, Rerotate, Rotary, RotaryTensor};
pub(crate) use rotary_launch::kernel_names as rotary_kernel_names;
pub use rotary_slices::{RerotateOnSlices, RotaryOnSlices, SliceChoices, SlicePositions, SliceRotary};
pub use rotary_table::{RotaryByTable, SetTable};

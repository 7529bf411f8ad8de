//! Streams and device memory of the crate `cust`, for the launches of [`ops`](crate::ops) (feature `cust`).
//!
//! The operations take raw addresses and streams; this makes them of `cust`'s types. A [`Context`](crate::device::Context) is
//! made as ever: it belongs to no CUDA context, and a launch runs in that of its stream, which is the one that
//! `cust::quick_init` makes, say. `cust` links the driver when a program is built, so that needs CUDA's toolkit, or a stub of
//! `libcuda`, and the program does not start without a driver.
//!
//! ```no_run
//! use cust::memory::DeviceBuffer;
//! use cust::stream::{Stream, StreamFlags};
//! use longrope::descriptor::{Direction, Layout, Pairing};
//! use longrope::device::{Context, Dtype};
//! use longrope::ops::{DeviceChoices, DevicePositions, Rotary, RotaryTensor};
//! use longrope::scaling::{FactorSets, SetChoice};
//!
//! /// Rotates a sequence of 16 tokens, 4 heads of 128, where it lies.
//! fn rotate(sets: &FactorSets, queries: &mut DeviceBuffer<f32>, stream: &Stream) -> Result<(), longrope::Error> {
//!     let context = Context::new(0)?;
//!     let tensor = longrope::cust::tensor_mut(queries, Dtype::F32, 0, Layout::bshd(1, 16, 4, 128))?;
//!     let rotary = Rotary {
//!         sets,
//!         pairing: Pairing::HalfSplit,
//!         direction: Direction::Forward,
//!         positions: DevicePositions::Offset(0),
//!         choices: DeviceChoices::All(SetChoice::Short),
//!         status: None,
//!     };
//!     // SAFETY: the memory is large enough, and nothing else uses it until the stream has come so far.
//!     unsafe { rotary.run(&context, &[RotaryTensor::in_place(tensor)], longrope::cust::stream(stream)) }
//! }
//! ```

use cust::memory::{DeviceCopy, DeviceSlice};

use crate::Error;
use crate::descriptor::Layout;
use crate::device::{DeviceTensor, Dtype, Stream};

/// A stream of `cust`'s, for a launch. It must outlive what was launched on it.
pub fn stream(stream: &cust::stream::Stream) -> Stream {
    Stream::from_raw(stream.as_inner().cast())
}

/// A tensor that is read, whose first element is element `offset` of `memory`. `T` is any type of the size of `dtype`: `u16`
/// for the 16-bit ones, say.
///
/// # Errors
/// `T` has another size, or an element of the layout lies outside of `memory`.
pub fn tensor<T: DeviceCopy>(
    memory: &DeviceSlice<T>,
    dtype: Dtype,
    offset: usize,
    layout: Layout,
) -> Result<DeviceTensor, Error> {
    if size_of::<T>() != dtype.size() {
        let found = format!("{dtype:?} in elements of {} bytes", size_of::<T>());
        return Err(Error::argument("dtype", found, format!("elements of {} bytes", dtype.size())));
    }
    layout.check_bounds("memory", offset, memory.len())?;
    // An empty tensor may have an offset beyond its memory: it is never followed.
    let address = memory.as_device_ptr().as_raw().wrapping_add((offset * dtype.size()) as u64);
    Ok(DeviceTensor { address, dtype, layout })
}

/// A tensor that is written, or read and written.
///
/// # Errors
/// As [`tensor`]; or two indices share an element.
pub fn tensor_mut<T: DeviceCopy>(
    memory: &mut DeviceSlice<T>,
    dtype: Dtype,
    offset: usize,
    layout: Layout,
) -> Result<DeviceTensor, Error> {
    layout.check_distinct("layout")?;
    tensor(memory, dtype, offset, layout)
}

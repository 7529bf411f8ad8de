//! Tensors in cudarc's slices: safe views that launches can be made on.
//!
//! The borrow keeps the memory as it is while a launch is being made. What follows is ordered by the guard that comes with an
//! address: dropped after the launch, it records an event that later uses of the slice wait for.

use std::sync::Arc;

use cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, SyncOnDrop,
};

use crate::Error;
use crate::descriptor::Layout;
use crate::device::driver::{DeviceError, Stream};
use crate::device::{Address, DeviceTensor, Dtype};

mod sealed {
    pub trait Sealed {}
}

/// A type of elements that kernels take: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Element: DeviceRepr + sealed::Sealed {
    /// Its number.
    const DTYPE: Dtype;
}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl sealed::Sealed for half::f16 {}
impl Element for half::f16 {
    const DTYPE: Dtype = Dtype::F16;
}

impl sealed::Sealed for half::bf16 {}
impl Element for half::bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

/// A tensor that is read, in a slice of device memory.
#[derive(Debug)]
pub struct SliceTensor<'a, T> {
    memory: CudaView<'a, T>,
    offset: usize,
    layout: Layout,
}

impl<'a, T: Element> SliceTensor<'a, T> {
    /// The tensor whose first element is element `offset` of `memory`. Take a whole slice by its `as_view()`, a part by its
    /// `slice(..)`.
    ///
    /// # Errors
    /// An element of the layout lies outside of `memory`.
    pub fn new(memory: CudaView<'a, T>, offset: usize, layout: Layout) -> Result<Self, Error> {
        layout.check_bounds("memory", offset, memory.len())?;
        Ok(Self { memory, offset, layout })
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The raw tensor for a launch on `stream`, and what is to be dropped when the launch was made.
    pub(crate) fn on<'s>(&'s self, stream: &'s CudaStream) -> (DeviceTensor, SyncOnDrop<'s>) {
        let (address, used) = self.memory.device_ptr(stream);
        (tensor::<T>(address, self.offset, self.layout), used)
    }

    /// The stream that the memory belongs to.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }
}

/// A tensor that is written, or read and written, in a slice of device memory.
#[derive(Debug)]
pub struct SliceTensorMut<'a, T> {
    memory: CudaViewMut<'a, T>,
    offset: usize,
    layout: Layout,
}

impl<'a, T: Element> SliceTensorMut<'a, T> {
    /// The tensor whose first element is element `offset` of `memory`. Take a whole slice by its `as_view_mut()`, a part by
    /// its `slice_mut(..)`.
    ///
    /// # Errors
    /// An element of the layout lies outside of `memory`, or two indices share one.
    pub fn new(memory: CudaViewMut<'a, T>, offset: usize, layout: Layout) -> Result<Self, Error> {
        layout.check_bounds("memory", offset, memory.len())?;
        layout.check_distinct("layout")?;
        Ok(Self { memory, offset, layout })
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The raw tensor for a launch on `stream` that writes it, and what is to be dropped when the launch was made.
    pub(crate) fn on<'s>(&'s mut self, stream: &'s CudaStream) -> (DeviceTensor, SyncOnDrop<'s>) {
        let (offset, layout) = (self.offset, self.layout);
        let (address, used) = self.memory.device_ptr_mut(stream);
        (tensor::<T>(address, offset, layout), used)
    }

    /// The stream that the memory belongs to.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }
}

fn tensor<T: Element>(address: Address, offset: usize, layout: Layout) -> DeviceTensor {
    // An empty tensor may have an offset beyond its memory: it is never followed.
    let address = address.wrapping_add(offset as u64 * size_of::<T>() as u64);
    DeviceTensor { address, dtype: T::DTYPE, layout }
}

/// Checks that memory belongs to the context of the stream that a launch is to run on.
pub(crate) fn check_context(name: &str, memory: &CudaStream, stream: &CudaStream) -> Result<(), Error> {
    let (found, expected) = (memory.context(), stream.context());
    match found == expected {
        true => Ok(()),
        false => Err(Error::argument(
            name,
            format!("memory of device {}", found.ordinal()),
            format!("memory of device {}, in the context of the stream", expected.ordinal()),
        )),
    }
}

/// Checks that an array in device memory has as many entries as a launch reads.
pub(crate) fn check_entries(name: &str, found: usize, needed: usize) -> Result<(), Error> {
    match found >= needed {
        true => Ok(()),
        false => Err(Error::argument(name, format!("{found} entries"), format!("at least {needed}"))),
    }
}

/// The raw handle of a stream, its context being made the current one.
pub(crate) fn bind(stream: &CudaStream) -> Result<Stream, DeviceError> {
    // Also tells of an error that cudarc met while it made the stream wait.
    stream.context().bind_to_thread().map_err(|error| DeviceError::Driver {
        call: "cudarc, making a context current or a stream wait",
        name: format!("{:?}", error.0),
        code: error.0 as u32,
    })?;
    Ok(Stream::from_raw(stream.cu_stream().cast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_tensor_counts_elements_of_its_type() {
        let layout = Layout::bshd(1, 2, 3, 4);
        let half = tensor::<half::bf16>(4096, 5, layout);
        assert_eq!((half.address, half.dtype), (4106, Dtype::Bf16));
        assert_eq!(tensor::<f32>(4096, 5, layout).address, 4116);
    }

    #[test]
    fn an_array_that_is_too_short_is_named_with_both_numbers() {
        assert!(check_entries("positions", 6, 6).is_ok());
        let message = check_entries("positions", 5, 6).unwrap_err().to_string();
        assert_eq!(message, "positions: 5 entries is not valid; expected at least 6");
    }
}

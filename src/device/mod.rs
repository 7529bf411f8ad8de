//! Where it runs on a GPU: the driver, the embedded images, tensors in device memory.
//!
//! The driver is loaded at run time, so one program runs with and without a GPU: [`Context::new`] answers with an error
//! where there is none. Kernels are launched through the driver's own interface, in whatever context the caller's stream
//! belongs to.
//!
//! # Safe launches
//!
//! A launch on raw addresses is `unsafe`. The safe ones take views of cudarc's slices ([`SliceTensor`], [`SliceTensorMut`]).
//! Such a view borrows its slice, so nothing frees or changes the memory while a launch is made, and two views that are
//! written can't overlap. After that cudarc orders the uses of a slice by events: each use on another stream waits, and so
//! does the release of the memory.
//!
//! This holds unless [`CudaContext::disable_event_tracking`](cudarc::driver::CudaContext::disable_event_tracking) was called.
//! A capture needs it called, before the slices are made: a captured stream may not wait for an event from outside, and the
//! launch returns the driver's error. From then on the order of uses is the caller's, as the safety section of that function
//! says, and the memory must outlive the graph.

mod context;
mod driver;
mod image;
pub(crate) mod params;
mod primary;
pub(crate) mod slice;
mod tensor;
pub(crate) mod tensor_map;

pub use context::Context;
pub(crate) use context::{Family, Grid};
pub(crate) use driver::download;
pub use driver::{DeviceError, Stream};
pub use image::is_embedded;
pub use slice::{Element, SliceTensor, SliceTensorMut};
pub(crate) use tensor::Address;
pub use tensor::{DeviceTensor, Dtype};

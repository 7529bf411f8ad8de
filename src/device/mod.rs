//! Where it runs on a GPU: the driver, the embedded images, tensors in device memory.
//!
//! The driver is loaded at run time, so one program runs with and without a GPU: [`Context::new`] answers with an error
//! where there is none. Kernels are launched through the driver's own interface, in whatever context the caller's stream
//! belongs to.

mod context;
mod driver;
mod image;
pub(crate) mod params;
mod tensor;

pub use context::Context;
pub(crate) use context::{Family, Grid};
pub use driver::{DeviceError, Stream};
pub use image::is_embedded;
pub(crate) use tensor::Address;
pub use tensor::{DeviceTensor, Dtype};

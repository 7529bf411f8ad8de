//! The driver's interface, with an error for everything that can be wrong with it.

use std::ffi::{CStr, c_int};

use cudarc::driver::sys;

/// Version 13.0, by `cuDriverGetVersion`'s numbering: the images are made by CUDA 13.0.
const NEEDED_VERSION: i32 = 13_000;
/// Compute capability 8.0, the oldest that the images hold code for.
const NEEDED_CAPABILITY: (i32, i32) = (8, 0);

/// Why nothing can run on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The library was built without a CUDA compiler.
    #[error(
        "this build has no device code: nvcc was not found when it was built. Run scripts/install-cuda (or set NVCC) and \
         build again"
    )]
    NoDeviceCode,
    /// There is no NVIDIA driver.
    #[error("no NVIDIA driver: libcuda can't be loaded. Install a driver of version 580 or later")]
    NoDriver,
    /// The driver is older than what compiled the images.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, and the device code needs CUDA 13.0: install a driver of version 580 or \
         later",
        found / 1000, found % 1000 / 10
    )]
    OldDriver {
        /// What the driver says, as in 12080 for CUDA 12.8.
        found: i32,
    },
    /// There is no such GPU.
    #[error("device {ordinal}: no such GPU; this machine has {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: i32,
        /// How many there are.
        count: i32,
    },
    /// The GPU is too old.
    #[error("device {ordinal} has compute capability {}.{}, and the kernels need 8.0 (Ampere) or later", found.0, found.1)]
    OldDevice {
        /// The GPU's number.
        ordinal: i32,
        /// Its compute capability.
        found: (i32, i32),
    },
    /// A call of the driver failed.
    #[error("{call}: {name} ({code})")]
    Driver {
        /// Which call.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// Its number.
        code: u32,
    },
}

/// A stream of the caller's (`CUstream`, `cudaStream_t`). Null is the legacy default stream: of the current context, or of the primary
/// one of the kernels' device where the thread has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(sys::CUstream);

// SAFETY: a stream is a handle that the driver lets any thread use.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The legacy default stream.
    pub const LEGACY_DEFAULT: Self = Self(std::ptr::null_mut());

    /// A stream by its raw handle.
    pub fn from_raw(handle: *mut std::ffi::c_void) -> Self {
        Self(handle.cast())
    }

    /// Whether it is a default stream, of whatever context is current: the legacy one, or the thread's.
    pub(super) fn is_default(self) -> bool {
        // CU_STREAM_LEGACY is 1, CU_STREAM_PER_THREAD 2.
        self.0.addr() <= 2
    }

    /// The raw handle.
    pub(super) fn raw(self) -> sys::CUstream {
        self.0
    }
}

/// Turns a driver's answer into a result.
pub(super) fn check(call: &'static str, answer: sys::CUresult) -> Result<(), DeviceError> {
    if answer == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the driver writes a pointer to a string of its own, or leaves it null for an unknown code.
    let named = unsafe { sys::cuGetErrorName(answer, &mut name) };
    let name = match named == sys::CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: the driver's string is static and ends in a zero.
        true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        false => "an unknown error".to_owned(),
    };
    Err(DeviceError::Driver { call, name, code: answer as u32 })
}

/// Loads and starts the driver, and checks its version.
pub(super) fn start() -> Result<(), DeviceError> {
    check_driver(is_installed(), || {
        let mut version: c_int = 0;
        // SAFETY: the driver is there; the call writes one integer, and needs no initialisation.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
        Ok(version)
    })?;
    // SAFETY: may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// Whether there is a driver to load. cudarc panics where there is none, and its own question is gone where another crate
/// of the program has it link the driver.
fn is_installed() -> bool {
    ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].iter().any(|name| {
        // SAFETY: the driver's library does no harm when it is loaded, or loaded again.
        unsafe { libloading::Library::new(*name) }.is_ok()
    })
}

/// What [`start`] makes of a machine.
fn check_driver(
    present: bool,
    version: impl FnOnce() -> Result<i32, DeviceError>,
) -> Result<(), DeviceError> {
    if !present {
        return Err(DeviceError::NoDriver);
    }
    match version()? {
        found if found < NEEDED_VERSION => Err(DeviceError::OldDriver { found }),
        _ => Ok(()),
    }
}

/// A GPU that is there and new enough, and its compute capability.
pub(super) fn device(ordinal: i32) -> Result<(sys::CUdevice, (i32, i32)), DeviceError> {
    let mut count = 0;
    // SAFETY: the driver was started; each call writes one integer.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if !(0..count).contains(&ordinal) {
        return Err(DeviceError::NoDevice { ordinal, count });
    }
    let mut device = 0;
    // SAFETY: as above.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    use sys::CUdevice_attribute_enum as Attribute;
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    check_capability(ordinal, (major, minor))?;
    Ok((device, (major, minor)))
}

fn check_capability(ordinal: i32, found: (i32, i32)) -> Result<(), DeviceError> {
    match found >= NEEDED_CAPABILITY {
        true => Ok(()),
        false => Err(DeviceError::OldDevice { ordinal, found }),
    }
}

/// The multiprocessors of a GPU.
pub(super) fn multiprocessors(device: sys::CUdevice) -> Result<u32, DeviceError> {
    let count = attribute(device, sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(count.unsigned_abs())
}

/// Whether a kernel's code may wait within a launch for the kernel before it: code compiled for GPUs older than Hopper lacks
/// the instruction, on a newer GPU too.
pub(super) fn can_wait(kernel: sys::CUkernel, device: sys::CUdevice) -> Result<bool, DeviceError> {
    let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
    let mut version = 0;
    // SAFETY: the kernel and the device are ones that the driver gave; the call writes one integer.
    let read = unsafe { sys::cuKernelGetAttribute(&mut version, which, kernel, device) };
    check("cuKernelGetAttribute", read)?;
    Ok(version >= 90)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<i32, DeviceError> {
    let mut value = 0;
    // SAFETY: the device is one that the driver gave; the call writes one integer.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value)
}

/// Copies numbers from device memory, and waits for the stream.
///
/// # Safety
/// The address must be of device memory of the stream's context, with as many numbers.
pub(crate) unsafe fn download<N: Number>(to: &mut [N], from: u64, stream: Stream) -> Result<(), DeviceError> {
    if to.is_empty() {
        return Ok(());
    }
    let bytes = size_of_val(to);
    // SAFETY: the destination has so many bytes, the source by the caller's promise; any bits are a number.
    let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, bytes, stream.raw()) };
    check("cuMemcpyDtoHAsync", copied)?;
    // SAFETY: the stream is the caller's.
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.raw()) })
}

/// A number of which any bits are one.
pub(crate) trait Number {}
impl Number for i32 {}
impl Number for i64 {}

/// Whether the calling thread has a current context.
pub(super) fn has_current_context() -> Result<bool, DeviceError> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver was started; the call writes one handle.
    check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut context) })?;
    Ok(!context.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told_which_to_install() {
        let error = check_driver(false, || panic!("nothing to ask")).unwrap_err();
        assert_eq!(error, DeviceError::NoDriver);
        assert!(error.to_string().contains("580"));
    }

    #[test]
    fn a_driver_older_than_the_images_is_named_with_both_versions() {
        let message = check_driver(true, || Ok(12_080)).unwrap_err().to_string();
        assert!(message.contains("CUDA 12.8") && message.contains("needs CUDA 13.0"), "{message}");
        assert!(check_driver(true, || Ok(13_000)).is_ok());
        assert!(check_driver(true, || Ok(14_010)).is_ok());
    }

    #[test]
    fn a_device_too_old_is_named_with_its_capability() {
        let message = check_capability(1, (7, 5)).unwrap_err().to_string();
        assert!(message.starts_with("device 1 has compute capability 7.5"), "{message}");
        for good in [(8, 0), (8, 9), (9, 0), (12, 0)] {
            assert!(check_capability(0, good).is_ok());
        }
    }
}

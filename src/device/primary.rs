//! The primary CUDA context, for work on a default stream by a thread that has no context.
//!
//! CUDA's runtime makes it current to a thread at its first call there, so that programs over the runtime never see this. But a
//! thread may come here before: PyTorch runs backward passes on threads of its own.

use cudarc::driver::sys;

use crate::device::driver::{DeviceError, Stream, check, has_current_context};

/// The primary context of a device, current to this thread for as long as this lives.
pub(crate) struct Primary(sys::CUdevice);

impl Primary {
    /// `None` where it is not needed: on a stream of a context's own, and where a context is current. Nor is it made where nobody
    /// uses it, since it would be gone before the work is done; the driver will say then that there is none.
    pub(super) fn enter(device: sys::CUdevice, stream: Stream) -> Result<Option<Self>, DeviceError> {
        if !stream.is_default() || has_current_context()? {
            return Ok(None);
        }
        let (mut flags, mut is_active) = (0, 0);
        // SAFETY: the device is one that the driver gave; the call writes two integers.
        let asked = unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut is_active) };
        check("cuDevicePrimaryCtxGetState", asked)?;
        if is_active == 0 {
            return Ok(None);
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: as above; the call writes one handle.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        // SAFETY: the context is retained.
        let pushed = check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(context) });
        if pushed.is_err() {
            release(device);
        }
        pushed.map(|()| Some(Self(device)))
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: the context was pushed, and what was pushed after it was popped. An error can't be reported, and does no harm.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
        release(self.0);
    }
}

/// Whoever used it before does so still.
fn release(device: sys::CUdevice) {
    // SAFETY: it was retained. An error can't be reported, and does no harm.
    let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) };
}

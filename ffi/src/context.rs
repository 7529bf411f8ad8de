//! Contexts.

use longrope::device::Context;

use crate::abi::Status;
use crate::arguments;
use crate::status::{Failure, guard};

/// Starts the driver and loads the kernels.
///
/// # Safety
/// `context` is null or valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_context_create(device: i32, context: *mut *mut Context) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { arguments::result("context", context) }?;
        let made = Box::new(Context::new(device)?);
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { context.write(Box::into_raw(made)) };
        Ok(())
    })
}

/// Unloads the kernels.
///
/// # Safety
/// `context` is null, or was made by [`longrope_context_create`], is in use by no other call, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_context_destroy(context: *mut Context) {
    // Nothing here fails, and a panic in the destructor stops in the guard.
    guard(|| {
        if !context.is_null() {
            // SAFETY: made by `Box::into_raw`, and handed back once, by this function's contract.
            drop(unsafe { Box::from_raw(context) });
        }
        Ok(())
    });
}

/// The context that an argument points to.
///
/// # Safety
/// `context` is null, or a context that outlives `'a`.
pub unsafe fn borrow<'a>(context: *const Context) -> Result<&'a Context, Failure> {
    // SAFETY: by this function's contract.
    unsafe { context.as_ref() }
        .ok_or_else(|| Failure::null("context", "a context made by longrope_context_create"))
}

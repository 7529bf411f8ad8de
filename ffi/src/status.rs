//! The boundary: every entry runs inside [`guard`], which turns failures and panics into a status and a message.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use longrope::Error;
use longrope::device::DeviceError;
use longrope::scaling::ConfigError;

use crate::abi::Status;

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    /// A failure with a message of its own.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// An argument that is wrong, in the words of the Rust interface.
    pub fn argument(name: impl Display, found: impl Display, expected: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, Error::argument(name.to_string(), found, expected).to_string())
    }

    /// A pointer that is null and must not be.
    pub fn null(name: impl Display, expected: impl Into<String>) -> Self {
        Self::argument(name, "NULL", expected)
    }

    /// An error of the Rust interface, of which C calls the argument by another name.
    pub fn renamed(error: Error, name: impl FnOnce(&str) -> String) -> Self {
        Self::from(match error {
            Error::Argument { argument, found, expected } => {
                Error::Argument { argument: name(&argument), found, expected }
            }
            Error::Unsupported { argument, found, expected } => {
                Error::Unsupported { argument: name(&argument), found, expected }
            }
            other => other,
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Argument { .. } => Status::InvalidArgument,
            Error::Unsupported { .. } => Status::Unsupported,
            Error::Config(_) => Status::InvalidConfig,
            Error::Device(error) => device_status(error),
            _ => Status::Internal,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Error::from(error).into()
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Error::from(error).into()
    }
}

fn device_status(error: &DeviceError) -> Status {
    match error {
        DeviceError::NoDeviceCode => Status::NoDeviceCode,
        DeviceError::NoDriver => Status::NoDriver,
        DeviceError::OldDriver { .. } => Status::OldDriver,
        DeviceError::NoDevice { .. } => Status::NoDevice,
        DeviceError::OldDevice { .. } => Status::OldDevice,
        DeviceError::Driver { .. } => Status::Driver,
        _ => Status::Internal,
    }
}

thread_local! {
    /// The message of this thread's last failure.
    static LAST: RefCell<CString> = RefCell::new(CString::default());
    /// Whether this thread is inside an entry.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where this thread panicked.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of an entry. Nothing unwinds out of it, and a panic is not printed.
pub fn guard(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    silence_panics();
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(outer);
    let failure = match result {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let said = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let said = said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            // Its destructor could panic in turn.
            std::mem::forget(payload);
            let place = PLACE.try_with(RefCell::take).unwrap_or_default();
            Failure::new(Status::Internal, format!("a fault of the library{place}: {said}"))
        }
    };
    let message = failure.message.replace('\0', "\\0");
    let message = CString::new(message).unwrap_or_default();
    // A thread that is ending may have lost its storage; the status alone has to do then.
    let _ = LAST.try_with(|last| last.replace(message));
    failure.status
}

/// Has panics inside an entry leave their place, and print nothing; others are none of ours.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let other = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                return other(info);
            }
            let place = info.location().map(|place| {
                let file = place.file().rsplit(['/', '\\']).next().unwrap_or_default();
                format!(" at {file}:{}", place.line())
            });
            let _ = PLACE.try_with(|last| last.replace(place.unwrap_or_default()));
        }));
    });
}

/// The message of the last call of this thread that failed.
#[unsafe(no_mangle)]
pub extern "C" fn longrope_last_error_message() -> *const c_char {
    // The string lives in the thread's storage until it is replaced, which only a failure of this thread does.
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// A status in a few words.
#[unsafe(no_mangle)]
pub extern "C" fn longrope_status_string(status: i32) -> *const c_char {
    let text: &CStr = match Status::from_number(status) {
        Some(Status::Ok) => c"ok",
        Some(Status::InvalidArgument) => c"invalid argument",
        Some(Status::InvalidConfig) => c"invalid configuration",
        Some(Status::Unsupported) => c"not supported",
        Some(Status::NoDeviceCode) => c"built without device code",
        Some(Status::NoDriver) => c"no NVIDIA driver",
        Some(Status::OldDriver) => c"the NVIDIA driver is too old",
        Some(Status::NoDevice) => c"no such GPU",
        Some(Status::OldDevice) => c"the GPU is too old",
        Some(Status::Driver) => c"an error of the NVIDIA driver",
        Some(Status::Internal) => c"a fault of the library",
        None => c"an unknown status",
    };
    text.as_ptr()
}

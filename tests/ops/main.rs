//! What the operations on a GPU refuse, and by what message. No GPU is asked.

mod attention;
mod decode;
mod merge;

use longrope::Error;
use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};

/// An address that is aligned for everything, and is never read.
const SOMEWHERE: u64 = 0x1000;

/// A contiguous tensor `[batch, length, heads, head_dim]`.
fn tensor(dtype: Dtype, [batch, length, heads, head_dim]: [usize; 4]) -> DeviceTensor {
    DeviceTensor { address: SOMEWHERE, dtype, layout: Layout::bshd(batch, length, heads, head_dim) }
}

/// That an argument is wrong.
#[track_caller]
fn wrong(result: Result<(), Error>, message: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error:?}");
    assert_eq!(error.to_string(), message);
}

/// That an argument is right, but nothing is offered for it.
#[track_caller]
fn not_offered(result: Result<(), Error>, message: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    assert_eq!(error.to_string(), message);
}

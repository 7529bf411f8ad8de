//! What the operations on a GPU refuse, and by what message. No GPU is asked.

mod append;
mod attention;
mod attention_backward;
mod attention_backward_rotary;
mod attention_options;
mod decode;
mod merge;
mod prefill;
mod rerotate_cache;

use longrope::Error;
use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Cache, DeviceLengths, PageTable};
use longrope::scaling::{FactorSet, FactorSets};

/// An address that is aligned for everything, and is never read.
const SOMEWHERE: u64 = 0x1000;

/// A contiguous tensor `[batch, length, heads, head_dim]`.
fn tensor(dtype: Dtype, [batch, length, heads, head_dim]: [usize; 4]) -> DeviceTensor {
    DeviceTensor { address: SOMEWHERE, dtype, layout: Layout::bshd(batch, length, heads, head_dim) }
}

/// A cache of 3 sequences of up to 4 pages, `[pages, page_size, key_heads, head_dim]`.
fn cache(shape: [usize; 4]) -> Cache {
    let keys = tensor(Dtype::Bf16, shape);
    let pages = PageTable { address: SOMEWHERE, sequences: 3, width: 4, stride: 4 };
    Cache { k: keys, v: keys, pages: Some(pages), lengths: DeviceLengths::I32(SOMEWHERE) }
}

/// Factor sets of so many pairs.
fn sets(pairs: usize) -> FactorSets {
    FactorSets::uniform(FactorSet::exact(&vec![0.5; pairs], 1.0).unwrap())
}

/// The same, whose angles are f32 products.
fn parity_sets(pairs: usize) -> FactorSets {
    FactorSets::uniform(FactorSet::parity(&vec![0.5; pairs], 1.0).unwrap())
}

const NULL: &str = "a null address is not valid; expected the address of an element";

/// What is said of an address that is no multiple of the size of an element.
fn misaligned(address: u64, size: u64) -> String {
    format!("address {address:#x} is not valid; expected a multiple of {size}, the size of an element")
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

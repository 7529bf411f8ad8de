//! The C ABI of longrope. What a caller sees, and the contract of every function, is `include/longrope.h`.
//!
//! - `abi`, `config_abi`: the structs and constants of the header.
//! - `status`: the boundary. No panic and no print crosses it; every failure leaves a message.
//! - `arguments`: reading what a caller points to.
//! - `host`: what a descriptor points to in host memory.
//! - `context`, `config`, `factors`, `tensor`, `rotary`, `attention`, `attention_delta`, `attention_backward`, `merge`, `append`,
//!   `decode`, `prefill`, `rerotate_cache`: the functions, by the header's sections; the larger CPU forms are files of their own.
//! - `cache`: what the last four share.
//! - `sequence`, `threads`: what the CPU forms share.

// First, for its macros.
#[macro_use]
mod abi;
mod append;
mod arguments;
mod attention;
mod attention_backward;
mod attention_backward_cpu;
mod attention_cpu;
mod attention_delta;
mod cache;
mod config;
mod config_abi;
mod context;
mod decode;
mod factors;
mod host;
mod merge;
mod prefill;
mod rerotate_cache;
mod rotary;
mod rotary_cpu;
mod sequence;
mod status;
mod tensor;
mod threads;

/// A part of the package's version.
const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("a version is made of numbers"),
    }
}

/// `1.2.3` is 1002003.
const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) * 1_000_000
    + number(env!("CARGO_PKG_VERSION_MINOR")) * 1_000
    + number(env!("CARGO_PKG_VERSION_PATCH"));

/// The version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn longrope_version() -> u32 {
    VERSION
}

/// Whether the library holds its kernels.
#[unsafe(no_mangle)]
pub extern "C" fn longrope_has_device_code() -> i32 {
    i32::from(longrope::device::is_embedded())
}

//! The parameter blocks of the kernels: the Rust twins of `cuda/include/params.h` and `params_backward.h`.

#![allow(
    missing_docs,
    dead_code,
    non_upper_case_globals,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

pub(crate) mod backward;
mod shared;

pub(crate) use shared::*;

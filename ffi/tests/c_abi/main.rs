//! The C ABI, used as C and C++ use it: compiled programs, and the shared library opened at run time. No GPU is needed.

#[path = "../../src/abi.rs"]
mod abi;
mod api;
mod drivers;
mod errors;
mod examples;
mod exports;
mod header;
mod layout;
mod library;
mod oracle;

//! The C ABI, used as C and C++ use it: compiled programs, and the shared library opened at run time. No GPU is needed.

// First, for its macros.
#[macro_use]
#[path = "../../src/abi.rs"]
mod abi;
mod api;
mod attention_errors;
mod attention_options;
mod attention_oracle;
mod backward_errors;
mod backward_launch;
mod backward_oracle;
mod backward_rotary;
mod boundary;
mod cache_errors;
mod config;
#[path = "../../src/config_abi.rs"]
mod config_abi;
mod delta_errors;
mod drivers;
mod engines;
mod errors;
mod examples;
mod expected;
mod exports;
mod header;
mod launcher_bugs;
mod layout;
mod library;
mod merge_errors;
mod oracle;
#[path = "../../../tests/cpu/random.rs"]
mod random;
mod reason;
mod recording;

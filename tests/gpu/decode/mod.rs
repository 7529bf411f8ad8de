//! The family `decode`: attention of new tokens over caches of keys and values, in pages or contiguous.

mod contract;
mod forward;
mod model;
// The bound is that of the family attention. What launches an attention there has no use here.
#[allow(dead_code, clippy::duplicate_mod)]
#[path = "../attention/oracle.rs"]
mod oracle;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [forward::TESTS, contract::TESTS].concat()
}

//! The family `decode`: attention of new tokens over caches of keys and values, in pages or contiguous.

mod clusters;
mod contract;
mod forward;
pub mod model;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [forward::TESTS, clusters::TESTS, contract::TESTS].concat()
}

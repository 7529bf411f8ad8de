//! The family `attention`: forward, packed sequences, merging of partial results, a million keys and more.

mod contract;
mod forward;
mod long;
mod merge;
mod oracle;
mod packed;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [forward::TESTS, packed::TESTS, merge::TESTS, contract::TESTS, long::TESTS].concat()
}

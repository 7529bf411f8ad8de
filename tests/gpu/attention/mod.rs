//! The family `attention`: forward, packed sequences, merging of partial results, a million keys and more.

mod contract;
pub mod forward;
mod items;
pub mod long;
mod merge;
mod options;
pub mod oracle;
mod packed;
mod partition;
mod reach;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    let files = [
        forward::TESTS,
        packed::TESTS,
        merge::TESTS,
        partition::TESTS,
        contract::TESTS,
        reach::TESTS,
        long::TESTS,
        items::TESTS,
        options::TESTS,
    ];
    files.concat()
}

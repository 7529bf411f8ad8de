//! The family `backward`: gradients of attention, dense and packed, of rotated queries and keys, of parts of the keys, over a million keys and queries.

mod compose;
mod contract;
mod gradients;
mod long;
mod many;
mod oracle;
mod problem;
mod reach;
mod rotation;
mod whole;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [
        gradients::TESTS,
        rotation::TESTS,
        compose::TESTS,
        contract::TESTS,
        reach::TESTS,
        many::TESTS,
        long::TESTS,
        whole::TESTS,
    ]
    .concat()
}

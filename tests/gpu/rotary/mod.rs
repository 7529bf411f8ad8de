//! The family `rotary`: rotation and re-rotation.

mod contract;
mod large;
mod rerotate;
mod rotation;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [rotation::TESTS, rerotate::TESTS, contract::TESTS, large::TESTS].concat()
}

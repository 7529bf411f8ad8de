//! The family `rotary`: rotation and re-rotation.

mod contract;
mod few;
mod large;
mod rerotate;
mod rotation;
mod slices;
mod table;

/// Every test of the family.
pub fn tests() -> Vec<crate::Test> {
    [rotation::TESTS, few::TESTS, rerotate::TESTS, contract::TESTS, slices::TESTS, table::TESTS, large::TESTS]
        .concat()
}

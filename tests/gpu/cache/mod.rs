//! What grows a cache, rotates its keys while they are read, and changes their factor sets: tests of the family `decode`.

mod append;
mod contract;
mod graph;
mod life;
mod model;
mod prefill;
mod rotating;

/// Every test on caches that grow.
pub fn tests() -> Vec<crate::Test> {
    [append::TESTS, rotating::TESTS, life::TESTS, graph::TESTS, contract::TESTS, prefill::TESTS].concat()
}

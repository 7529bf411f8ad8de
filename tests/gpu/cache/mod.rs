//! The family `cache`: what grows a cache, rotates its keys while they are read, changes their factor sets, and reads it by chunks.

mod append;
mod contract;
mod entries;
mod graph;
mod life;
pub mod model;
mod prefill;
mod rotating;

/// Every test on caches that grow.
pub fn tests() -> Vec<crate::Test> {
    [append::TESTS, rotating::TESTS, life::TESTS, graph::TESTS, contract::TESTS, prefill::TESTS].concat()
}

//! Many tiles and many blocks: sums that are folded, items that blocks draw, and tiles of keys that one block takes in turn.

use longrope::descriptor;
use longrope::device::Dtype;
use longrope::ops::Starts;

use crate::backward::oracle::Delta;
use crate::backward::problem::{Packing, Problem};
use crate::buffer::Gpu;
use crate::random::Order;

pub const TESTS: &[crate::Test] = &[
    ("sums_that_are_folded_are_within_their_bound", folded),
    ("more_blocks_than_the_gpu_holds_at_once", many_blocks),
    ("one_long_sequence_among_short_ones", long_among_short),
];

const BOTH: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

fn dense(dtype: Dtype, head_dim: usize, lengths: Vec<(usize, usize)>, heads: (usize, usize)) -> Problem {
    Problem {
        dtype,
        out_dtype: Dtype::F32,
        accumulate: false,
        fast: false,
        delta: Delta::Given,
        lengths,
        packing: None,
        heads,
        head_dim,
        attention: descriptor::Attention::default(),
        device_offsets: None,
        turned: None,
        orders: [Order::Bshd; 5],
        shift: 0,
        largest: 1.0,
        seed: 300 + head_dim as u64,
    }
}

/// More than two times 4,096 columns, by keys, by queries of one head, and by those of three; and with a mask that ends somewhere.
fn folded(gpu: &Gpu) {
    for dtype in BOTH {
        for head_dim in [64, 128, 256] {
            let long = [(70, 9000, 1), (9000, 70, 1), (3100, 70, 3), (4096, 130, 1), (70, 4032, 1)];
            for (queries, keys, group) in long {
                let one = dense(dtype, head_dim, vec![(queries, keys)], (group, 1));
                one.run(gpu).unwrap();
                // The last query sees all keys but 500, some of a tile.
                let query_offset = keys as i64 - queries as i64 - 500;
                let attention = descriptor::Attention { query_offset, ..descriptor::Attention::causal() };
                let accumulate = head_dim == 64;
                let one = Problem { attention, accumulate, ..one };
                one.run(gpu).unwrap();
                Problem { fast: true, ..one }.run(gpu).unwrap();
            }
        }
    }
}

/// Items of both kernels that are more than any GPU of these has multiprocessors, some of them without a tile.
fn many_blocks(gpu: &Gpu) {
    for (dtype, head_dim, window) in [
        (Dtype::Bf16, 64, None),
        (Dtype::F16, 128, None),
        (Dtype::Bf16, 104, Some(90)),
        (Dtype::F16, 256, None),
        (Dtype::Bf16, 256, None),
    ] {
        let one = dense(dtype, head_dim, vec![(300, 280); 3], (20, 20));
        one.run(gpu).unwrap();
        let attention =
            descriptor::Attention { window, query_offset: -100, ..descriptor::Attention::causal() };
        let one = Problem { attention, out_dtype: dtype, ..one };
        one.run(gpu).unwrap();
        Problem { fast: true, ..one }.run(gpu).unwrap();
    }
}

/// Blocks take every so many-th tile of its keys.
fn long_among_short(gpu: &Gpu) {
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 96), (Dtype::Bf16, 200)] {
        let lengths = vec![(3, 40), (60, 9300), (0, 10), (25, 1)];
        let packing = Packing { around: (5, 9), starts: Starts::I32, spare: 0 };
        let one = Problem { packing: Some(packing), ..dense(dtype, head_dim, lengths, (4, 2)) };
        one.run(gpu).unwrap();
        let device_offsets = Some(vec![37, 9240, 10, -24]);
        let one = Problem { attention: descriptor::Attention::causal(), device_offsets, ..one };
        one.run(gpu).unwrap();
        Problem { fast: true, ..one }.run(gpu).unwrap();
    }
}

//! More blocks of queries than multiprocessors, and sums that are put aside and taken up again: what a kernel does whose blocks stay
//! for many of them.

use longrope::descriptor;
use longrope::device::Dtype;

use crate::attention::long::Sequence;
use crate::buffer::{Gpu, format};

pub const TESTS: &[crate::Test] = &[
    ("rows_of_many_blocks_of_queries_are_exact_and_the_same_every_time", many_blocks),
    ("logits_may_grow_by_hundreds_from_some_keys_to_others", growth),
];

/// 6,000 is no multiple of any tile. From each end of a sequence, of tiles, and of heads.
fn many_blocks(gpu: &Gpu) {
    let rows = [
        (0, 0),
        (63, 11),
        (128, 5),
        (191, 7),
        (192, 0),
        (2999, 3),
        (5887, 8),
        (5888, 1),
        (5999, 11),
        (5999, 0),
    ];
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::Bf16, 256), (Dtype::F16, 80)] {
        for causal in [true, false] {
            let mut sequence = Sequence::at_the_end(dtype, 6000, 6000, [12, 3], head_dim);
            sequence.attention.causal = causal;
            let found = sequence.run(gpu);
            sequence.check_random(&found, &rows);
            assert!(sequence.run(gpu) == found, "{dtype:?}, head dimension {head_dim}: other bits");
        }
    }
}

/// Logits that grow towards the first keys, by 130 to base 2 every 4,096 keys, from zero up and from far below zero.
fn growth(gpu: &Gpu) {
    let keys = 20_000;
    for (dtype, head_dim) in [(Dtype::Bf16, 128), (Dtype::F16, 64), (Dtype::F16, 256)] {
        for lowest in [0.0, -880.0] {
            let mut sequence = Sequence::at_the_end(dtype, keys, 130, [1, 1], head_dim);
            sequence.attention = descriptor::Attention::default();
            sequence.q.fill(format(dtype).round(1.0) as u16);
            // A logit is the key's number times the head dimension's root.
            let root = (head_dim as f64).sqrt();
            for (key, row) in sequence.k.chunks_mut(head_dim).enumerate() {
                let logit = lowest + 440.0 * (1.0 - key as f64 / keys as f64);
                row.fill(format(dtype).round(logit / root) as u16);
            }
            sequence.check_random(&sequence.run(gpu), &[(0, 0), (64, 0), (129, 0)]);
        }
    }
}

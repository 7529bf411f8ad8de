//! Decoding against the reference on random problems, and against itself in another batch.

use longrope::device::Dtype;
use longrope::ops::{Split, Starts};
use proptest::prelude::*;
use proptest::sample::select;

use crate::buffer::Gpu;
use crate::check_cases;
use crate::decode::model::{Form, Problem, Sequence};
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[
    ("decode_is_within_its_bound_of_the_reference", within_bound),
    ("a_fixed_split_gives_a_sequence_the_same_bits_in_any_batch", any_batch),
];

/// The most new tokens that a sequence may have.
const MOST: usize = 16;

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => Just(0usize),
        3 => select(vec![1usize, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]),
        3 => 1usize..200,
        2 => 200usize..=900,
    ]
}

fn heads() -> impl Strategy<Value = [usize; 2]> {
    prop_oneof![
        4 => (1usize..4, 1usize..5).prop_map(|(keys, group)| [keys * group, keys]),
        1 => Just([8, 1]),
        1 => Just([9, 3]),
        1 => Just([32, 8]),
    ]
}

/// Multiples of 8, and more often those that have a kernel of their own size.
fn head_dim() -> impl Strategy<Value = usize> {
    prop_oneof![2 => (1usize..=32).prop_map(|n| 8 * n), 4 => select(vec![64, 96, 128, 256])]
}

/// New tokens: 1, a few, or any number.
fn fresh() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(1usize), 1 => 2usize..5, 2 => 1..=MOST]
}

fn sequences() -> impl Strategy<Value = (Form, Vec<Sequence>)> {
    let lengths = || proptest::collection::vec((length(), any::<u64>()), 1..=5);
    let dense = (fresh(), lengths()).prop_map(|(fresh, lengths)| {
        let one = |(length, seed): (usize, u64)| Sequence {
            length: if length == 0 { 0 } else { length.max(fresh) },
            fresh,
            seed,
        };
        (Form::Dense, lengths.into_iter().map(one).collect::<Vec<Sequence>>())
    });
    let counts = proptest::collection::vec(prop_oneof![1 => Just(0usize), 4 => fresh()], 5);
    let starts = (select(vec![Starts::I32, Starts::I64]), [0usize..20, 0usize..20], 0..=MOST);
    let packed = (counts, lengths(), starts).prop_map(|(counts, lengths, (starts, around, most))| {
        let one = |((length, seed), fresh): ((usize, u64), usize)| Sequence {
            length,
            fresh: if length == 0 { fresh } else { fresh.min(length) },
            seed,
        };
        let sequences: Vec<Sequence> = lengths.into_iter().zip(counts).map(one).collect();
        let needed = sequences.iter().map(|one| one.fresh).max().unwrap_or(0);
        (Form::Packed { starts, around, most: most.max(needed).max(1) }, sequences)
    });
    prop_oneof![dense.boxed(), packed.boxed()]
}

fn fixed() -> impl Strategy<Value = Split> {
    (1u32..40).prop_map(Split::Fixed)
}

fn problem() -> impl Strategy<Value = Problem> {
    let dtype = (select(vec![Dtype::Bf16, Dtype::F16]), any::<bool>());
    let page_size = prop_oneof![1 => Just(None), 3 => (1usize..=16).prop_map(|n| Some(16 * n))];
    let cache = (page_size, 0usize..3, select(vec![Order::Bshd, Order::Bhsd]), any::<bool>());
    let dense = || select(vec![Order::Bshd, Order::Bhsd]);
    let scale = prop_oneof![
        3 => Just(None),
        1 => (-0.3f32..0.3).prop_map(Some),
        1 => Just(Some(0.0f32)),
    ];
    let window = prop_oneof![1 => Just(None), 1 => (1u64..=600).prop_map(Some)];
    let split = prop_oneof![Just(Split::Balanced).boxed(), fixed().boxed()];
    let shape = (sequences(), heads(), head_dim());
    let rest = ((dense(), dense(), order()), scale, window, split, any::<u64>());
    (dtype, shape, cache, rest).prop_map(
        |(
            (dtype, wide),
            ((form, sequences), heads, head_dim),
            cache,
            (orders, scale, window, split, place),
        )| {
            let (page_size, room, cache_order, wide_lengths) = cache;
            Problem {
                dtype,
                out_dtype: if wide { Dtype::F32 } else { dtype },
                heads,
                head_dim,
                sequences,
                form,
                page_size,
                room,
                orders: [cache_order, orders.0, orders.1, orders.2],
                wide_lengths,
                scale,
                window,
                split,
                settled: place % 2 == 0,
                place,
            }
        },
    )
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, problem, |problem| {
        let found = problem.run(gpu, &problem.memory(gpu));
        prop_assert_eq!(found.status, 0);
        problem.check(&problem.exact(), &found, &[]).map_err(TestCaseError::fail)
    });
}

/// Each sequence of a batch alone, where its pages lie elsewhere and no other sets the width of the table.
fn any_batch(gpu: &Gpu) {
    let case = || (problem(), fixed()).prop_map(|(problem, split)| Problem { split, ..problem });
    check_cases(gpu, case, |problem| {
        let together = problem.run(gpu, &problem.memory(gpu));
        prop_assert_eq!(together.status, 0);
        for (i, sequence) in problem.sequences.iter().enumerate() {
            let alone =
                Problem { sequences: vec![*sequence], place: problem.place ^ 1 << 40, ..problem.clone() };
            let found = alone.run(gpu, &alone.memory(gpu));
            prop_assert_eq!(found.status, 0);
            prop_assert!(
                alone.part(&found, 0) == problem.part(&together, i),
                "sequence {} has other bits alone than among others",
                i
            );
        }
        Ok(())
    });
}

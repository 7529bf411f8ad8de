//! Decoding one sequence, which Hopper does by a cluster of blocks an item, or as a batch: lengths around the borders
//! of blocks, and launches that ask for keys before they may read them.

use longrope::device::Dtype;
use longrope::ops::{BAD_LENGTH, BAD_PAGE, Decode, Split, Workspace};
use proptest::prelude::*;
use proptest::sample::select;

use crate::buffer::Gpu;
use crate::check_cases;
use crate::decode::model::{Form, Found, Problem, Sequence, bytes, scratch, tensors};
use crate::random::{Order, order};

pub const TESTS: &[crate::Test] = &[
    ("one_sequence_is_within_its_bound_of_the_reference", within_bound),
    ("one_sequence_of_every_length_around_the_borders_of_blocks", borders),
    ("a_bad_entry_of_one_sequence_is_reported_by_whichever_block_has_it", bad_entries),
    ("one_sequence_grows_between_launches_that_overlap", growing),
];

/// Query and key heads, so that clusters are of 8, 4 and 2 blocks, or there is none.
const HEADS: [[usize; 2]; 10] =
    [[32, 8], [8, 1], [6, 2], [9, 3], [4, 4], [10, 5], [12, 12], [32, 32], [40, 40], [72, 72]];

fn problem(heads: [usize; 2], length: usize, fresh: usize) -> Problem {
    Problem {
        dtype: Dtype::Bf16,
        out_dtype: Dtype::Bf16,
        heads,
        head_dim: 128,
        sequences: vec![Sequence { length, fresh, seed: 77 }],
        form: Form::Dense,
        page_size: Some(16),
        room: 1,
        orders: [Order::Bshd; 4],
        wide_lengths: false,
        scale: None,
        window: None,
        split: Split::Balanced,
        place: 7,
        settled: false,
    }
}

fn random_problem() -> impl Strategy<Value = Problem> {
    let dtype = (select(vec![Dtype::Bf16, Dtype::F16]), any::<bool>());
    let shape = (select(HEADS.to_vec()), select(vec![64usize, 80, 96, 128, 192, 256]));
    let length = prop_oneof![1 => 0usize..=20, 3 => 20usize..800, 1 => 800usize..4000];
    let sequence = (length, prop_oneof![2 => Just(1usize), 1 => 2usize..=16], any::<u64>());
    let page_size = prop_oneof![1 => Just(None), 2 => (1usize..=16).prop_map(|n| Some(16 * n))];
    let orders = (select(vec![Order::Bshd, Order::Bhsd]), order(), any::<bool>());
    let window = prop_oneof![2 => Just(None), 1 => (1u64..=4000).prop_map(Some)];
    (dtype, shape, sequence, page_size, orders, window).prop_map(
        |((dtype, wide), (heads, head_dim), (length, fresh, seed), page_size, orders, window)| {
            let (cache_order, lse_order, wide_lengths) = orders;
            Problem {
                dtype,
                out_dtype: if wide { Dtype::F32 } else { dtype },
                head_dim,
                sequences: vec![Sequence {
                    // Of many heads fewer keys, for the sake of the reference.
                    length: if length == 0 { 0 } else { (length * 4 / heads[1].max(4)).max(fresh) },
                    fresh,
                    seed,
                }],
                page_size,
                orders: [cache_order, Order::Bshd, Order::Bhsd, lse_order],
                wide_lengths,
                window,
                place: seed,
                settled: seed % 2 == 0,
                ..problem(heads, 1, 1)
            }
        },
    )
}

fn within_bound(gpu: &Gpu) {
    check_cases(gpu, random_problem, |problem| {
        let memory = problem.memory(gpu);
        let found = problem.run(gpu, &memory);
        prop_assert_eq!(found.status, 0);
        problem.check(&problem.exact(), &found, &[]).map_err(TestCaseError::fail)?;
        prop_assert!(problem.run(gpu, &memory) == found, "the same inputs gave other bits");
        Ok(())
    });
}

/// 64 keys a tile: from fewer tiles than blocks to more, and a key more or less than whole ones.
fn borders(gpu: &Gpu) {
    for heads in [[8, 1], [9, 3], [8, 8], [12, 12]] {
        for tiles in [1usize, 2, 15, 16, 17, 33] {
            for length in [64 * tiles - 1, 64 * tiles, 64 * tiles + 1] {
                let problem =
                    Problem { page_size: (tiles % 2 == 0).then_some(64), ..problem(heads, length, 1) };
                let found = problem.run(gpu, &problem.memory(gpu));
                assert_eq!(found.status, 0, "{heads:?}, length {length}");
                let checked = problem.check(&problem.exact(), &found, &[]);
                checked.unwrap_or_else(|error| panic!("{heads:?}, length {length}: {error}"));
            }
        }
    }
}

fn bad_entries(gpu: &Gpu) {
    for heads in [[4, 1], [9, 3], [8, 8], [32, 32]] {
        let problem = problem(heads, 3000, 2);
        let (mut memory, exact) = (problem.memory(gpu), problem.exact());
        let pages = memory.k.tensor.layout.batch() as i32;
        for page in [0, 1, 63, 100, 186, 187] {
            for id in [pages, -1, i32::MIN] {
                let good = std::mem::replace(&mut memory.table[page], id);
                let found = problem.run(gpu, &memory);
                memory.table[page] = good;
                assert_eq!(found.status, BAD_PAGE, "{heads:?}, id {id} of page {page}");
                problem.check(&exact, &found, &[0]).unwrap();
            }
        }
        let capacity = (memory.width * memory.k.tensor.layout.length()) as i64;
        for length in [1, -1, capacity + 1, i64::from(i32::MAX), i64::from(i32::MIN)] {
            let good = std::mem::replace(&mut memory.lengths[0], length);
            let found = problem.run(gpu, &memory);
            memory.lengths[0] = good;
            assert_eq!(found.status, BAD_LENGTH, "{heads:?}, length {length}");
            problem.check(&exact, &found, &[0]).unwrap();
        }
        let found = problem.run(gpu, &memory);
        assert_eq!(found.status, 0);
        problem.check(&exact, &found, &[]).unwrap();
    }
}

/// Launches one after another without a wait of the host, two after each time that the stream wrote the length, so that each begins
/// while the one before it still runs; the second may be told that what it reads is settled. Their results are those of launches that
/// are waited for.
fn growing(gpu: &Gpu) {
    const STEPS: usize = 64;
    for (heads, settled) in
        [([32, 8], false), ([9, 3], false), ([32, 32], false), ([32, 8], true), ([9, 3], true)]
    {
        let problem = Problem { settled, ..problem(heads, 2100, 1) };
        let mut memory = problem.memory(gpu);
        let lengths: Vec<i64> =
            (0..STEPS).map(|step| [2100, 1, 700, 64][step % 4] + (step as i64 % 3)).collect();
        let lengths: Vec<i64> = lengths.into_iter().map(|length| length.min(2100)).collect();
        let mut numbers = problem.numbers(gpu, &memory);
        let decode = problem.decode(gpu, &memory, &numbers);
        let outputs: Vec<_> = (0..STEPS).map(|_| problem.outputs(gpu)).collect();
        let first = tensors(memory.q.tensor, &outputs[0][0], &outputs[0][1]);
        let scratch = scratch(gpu, &decode, &first);
        let workspace = Workspace { address: gpu.address(&scratch), bytes: scratch.len() };
        let uploads: Vec<_> =
            lengths.iter().map(|length| gpu.upload(&bytes(problem.wide_lengths, &[*length]))).collect();
        for (step, [out, lse]) in outputs.iter().enumerate() {
            gpu.stream.memcpy_dtod(&uploads[step], &mut numbers.lengths).unwrap();
            for settled in [false, settled] {
                let decode = Decode { settled, ..decode };
                let tensors = tensors(memory.q.tensor, out, lse);
                // SAFETY: the buffers are as large as their layouts say, and live until they were read.
                unsafe { decode.run(&gpu.kernels, &tensors, workspace, gpu.raw_stream()) }.unwrap();
            }
        }
        let status = gpu.download(&numbers.status)[0];
        for (step, [out, lse]) in outputs.iter().enumerate() {
            memory.lengths[0] = lengths[step];
            let found = Found { out: out.read(gpu), lse: lse.read(gpu), status };
            let alone = Problem { settled: false, ..problem.clone() }.run(gpu, &memory);
            assert!(found == alone, "{heads:?}, settled {settled}, step {step}");
        }
        assert_eq!(status, 0);
    }
}

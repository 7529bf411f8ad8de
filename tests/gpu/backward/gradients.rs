//! The kernels of the backward pass against the reference, on random problems, dense and packed.

use longrope::descriptor;
use longrope::device::Dtype;
use longrope::ops::Starts;
use proptest::prelude::*;
use proptest::sample::select;

use crate::attention::forward::{attention, dtype, head_dim, heads, lengths, places};
use crate::backward::oracle::Delta;
use crate::backward::problem::{Packing, Problem};
use crate::buffer::Gpu;
use crate::check_cases;

pub const TESTS: &[crate::Test] = &[
    ("gradients_are_within_their_bound_of_the_reference", dense),
    ("gradients_of_many_dimensions_by_sums_of_any_order_are_within_their_bound", many_dimensions),
    ("gradients_from_what_the_forward_kernel_gave_are_within_their_bound", of_forward),
    ("gradients_of_packed_sequences_are_within_their_bound_of_the_reference", packed),
    ("a_bad_packed_sequence_is_reported_and_its_gradients_left_alone", bad_sequences),
    ("a_packed_sequence_longer_than_was_said_is_bad", too_long),
];

/// All but the lengths, the mask and the packing.
fn form() -> impl Strategy<Value = Problem> {
    let delta = prop_oneof![Just(None), Just(Some(false)), Just(Some(true)),];
    let largest = select(vec![1.0, 2f64.powi(-10), 16.0]);
    let written = select(vec![(false, false), (true, false), (true, true)]);
    (dtype(), (written, any::<bool>()), delta, heads(), head_dim(), places(), largest, any::<u64>()).prop_map(
        |(dtype, ((wide, accumulate), fast), delta, heads, head_dim, (orders, shift), largest, seed)| {
            Problem {
                dtype,
                out_dtype: if wide { Dtype::F32 } else { dtype },
                accumulate,
                fast,
                delta: match delta {
                    None => Delta::Given,
                    Some(wide) => Delta::OfOutput(if wide { Dtype::F32 } else { dtype }),
                },
                lengths: Vec::new(),
                packing: None,
                heads,
                head_dim,
                attention: descriptor::Attention::default(),
                device_offsets: None,
                turned: None,
                orders,
                shift,
                largest,
                seed,
            }
        },
    )
}

pub fn dense_problem() -> impl Strategy<Value = Problem> {
    let offsets =
        prop_oneof![2 => Just(None), 1 => proptest::collection::vec(-300i64..300, 3).prop_map(Some)];
    (form(), 1usize..4, lengths(), attention(), offsets).prop_map(
        |(form, batch, lengths, attention, device_offsets)| Problem {
            lengths: vec![lengths; batch],
            attention,
            device_offsets: device_offsets.map(|offsets| offsets[..batch].to_vec()),
            ..form
        },
    )
}

pub fn packed_problem() -> impl Strategy<Value = Problem> {
    let length =
        || prop_oneof![1 => Just(0usize), 2 => 1usize..30, 2 => 30usize..200, 1 => select(vec![64, 128])];
    let lengths = proptest::collection::vec((length(), length()), 1..6);
    let packing = (
        (0usize..70, 0usize..70),
        select(vec![Starts::I32, Starts::I64]),
        select(vec![0usize, 1, 200, 1 << 40]),
    )
        .prop_map(|(around, starts, spare)| Packing { around, starts, spare });
    // Beside what aligns the last query with the last key.
    let beside = prop_oneof![1 => Just(None), 3 => (-20i64..20).prop_map(Some)];
    let window = prop_oneof![2 => Just(None), 1 => (1u64..150).prop_map(Some)];
    (form(), lengths, packing, any::<bool>(), window, beside).prop_map(
        |(form, lengths, packing, causal, window, beside)| {
            let aligned = |&(queries, keys): &(usize, usize)| keys as i64 - queries as i64;
            Problem {
                attention: descriptor::Attention { causal, window, ..descriptor::Attention::default() },
                device_offsets: beside.map(|beside| lengths.iter().map(|of| aligned(of) + beside).collect()),
                lengths,
                packing: Some(packing),
                ..form
            }
        },
    )
}

fn dense(gpu: &Gpu) {
    check_cases(gpu, dense_problem, |problem| problem.run(gpu));
}

/// What the kernel takes whose consumers have roles.
fn many_dimensions(gpu: &Gpu) {
    let problem = || {
        (prop_oneof![dense_problem(), packed_problem()], select(vec![136, 192, 256])).prop_map(
            |(problem, head_dim)| {
                let out_dtype = if problem.out_dtype == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
                let delta = match problem.delta {
                    Delta::OfOutput(Dtype::F16) => Delta::OfOutput(Dtype::Bf16),
                    delta => delta,
                };
                Problem { dtype: Dtype::Bf16, out_dtype, fast: true, delta, head_dim, ..problem }
            },
        )
    };
    check_cases(gpu, problem, |problem| problem.run(gpu));
}

fn of_forward(gpu: &Gpu) {
    let problem = || {
        (dense_problem(), any::<bool>()).prop_map(|(problem, wide)| {
            let delta = Delta::OfKernel(if wide { Dtype::F32 } else { problem.dtype });
            Problem { delta, ..problem }
        })
    };
    check_cases(gpu, problem, |problem| problem.run(gpu));
}

fn packed(gpu: &Gpu) {
    check_cases(gpu, packed_problem, |problem| problem.run(gpu));
}

/// What is made wrong of good arrays: the first start or the last, of the queries or of the keys.
#[derive(Debug, Clone, Copy)]
struct Fault {
    keys: bool,
    first: bool,
    /// What the start becomes; for the last, added to the end of the tensor, or to the start before.
    value: i64,
    past_tensor: bool,
}

fn fault() -> impl Strategy<Value = Fault> {
    let far = select(vec![1i64, 1 << 30, (1 << 31) - 400]);
    (any::<bool>(), any::<bool>(), far, any::<bool>()).prop_map(|(keys, first, value, past_tensor)| Fault {
        keys,
        first,
        value,
        past_tensor,
    })
}

fn bad_sequences(gpu: &Gpu) {
    let run = |(problem, fault): (Problem, Fault)| {
        let mut memory = problem.memory(gpu);
        let last = problem.lengths.len();
        let (keys, queries) =
            (memory.k.tensor.layout.length() as i64, memory.q.tensor.layout.length() as i64);
        let starts = if fault.keys { &mut memory.key_starts } else { &mut memory.query_starts };
        let bad = match (fault.first, fault.past_tensor) {
            (true, true) => (starts[0] = (1 << 31) - 1, 0).1,
            (true, false) => (starts[0] = -fault.value, 0).1,
            (false, true) => {
                (starts[last] = if fault.keys { keys } else { queries } + fault.value, last - 1).1
            }
            (false, false) => (starts[last] = starts[last - 1] - fault.value, last - 1).1,
        };
        problem.check(&memory, &problem.launch(gpu, &memory), &[bad])
    };
    // A launch for no query and no key looks at nothing.
    let some = |problem: &Problem| problem.lengths.iter().any(|of| of.0 > 0 && of.1 > 0);
    check_cases(gpu, || (packed_problem().prop_filter("nothing to do", some), fault()), run);
}

fn too_long(gpu: &Gpu) {
    let run = |(mut problem, said, more): (Problem, usize, usize)| {
        problem.lengths.iter_mut().for_each(|of| of.0 = of.0.min(said));
        let which = more % problem.lengths.len();
        problem.lengths[which].0 = said + more;
        let mut memory = problem.memory(gpu);
        memory.max_query_length = said;
        problem.check(&memory, &problem.launch(gpu, &memory), &[which])
    };
    check_cases(gpu, || (packed_problem(), 1usize..150, 1usize..100), run);
}

//! Attention backward.

use longrope::Error;
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, AttentionDelta, Packed, Sequences, Starts};

use crate::{NULL, SOMEWHERE, misaligned, not_offered, tensor, wrong};

const QUERIES: [usize; 4] = [2, 5, 4, 16];
const KEYS: [usize; 4] = [2, 7, 2, 16];

/// A backward pass that is right: 4 query heads of 5 tokens over 2 key heads of 7.
pub fn right() -> (AttentionBackward<'static>, AttentionBackwardTensors) {
    let (queries, keys) = (tensor(Dtype::Bf16, QUERIES), tensor(Dtype::Bf16, KEYS));
    let tensors = AttentionBackwardTensors {
        q: queries,
        k: keys,
        v: keys,
        out: Some(queries),
        lse: tensor(Dtype::F32, [2, 5, 4, 1]),
        delta: None,
        d_out: queries,
        dq: queries,
        dk: keys,
        dv: keys,
    };
    (AttentionBackward::new(descriptor::Attention::causal()), tensors)
}

pub const PACKED: Packed = Packed {
    count: 3,
    query_starts: SOMEWHERE,
    key_starts: SOMEWHERE,
    starts: Starts::I32,
    max_query_length: 5,
};

type Field = fn(&mut AttentionBackwardTensors) -> &mut DeviceTensor;

/// Every tensor: its name, whether it has the shape of the queries, of the keys, or a number for each row.
const FIELDS: [(&str, Field, Kind); 9] = [
    ("q", |t| &mut t.q, Kind::Queries),
    ("k", |t| &mut t.k, Kind::Keys),
    ("v", |t| &mut t.v, Kind::Keys),
    ("out", |t| t.out.as_mut().unwrap(), Kind::Queries),
    ("lse", |t| &mut t.lse, Kind::Rows),
    ("d_out", |t| &mut t.d_out, Kind::Queries),
    ("dq", |t| &mut t.dq, Kind::Queries),
    ("dk", |t| &mut t.dk, Kind::Keys),
    ("dv", |t| &mut t.dv, Kind::Keys),
];

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Queries,
    Keys,
    Rows,
}

/// A tensor with another size of one dimension.
fn shaped(tensor: DeviceTensor, dim: usize, size: usize) -> DeviceTensor {
    let mut shape = tensor.layout.shape();
    shape[dim] = size;
    let [batch, length, heads, head_dim] = shape;
    DeviceTensor { layout: Layout::bshd(batch, length, heads, head_dim), ..tensor }
}

/// Gives all tensors of some kinds another size of a dimension.
pub fn resize(tensors: &mut AttentionBackwardTensors, kinds: &[Kind], dim: usize, size: usize) {
    for (_, field, _) in FIELDS.iter().filter(|(_, _, kind)| kinds.contains(kind)) {
        let tensor = field(tensors);
        *tensor = shaped(*tensor, dim, size);
    }
}

/// The same with packed sequences.
pub fn packed(packed: Packed) -> (AttentionBackward<'static>, AttentionBackwardTensors) {
    let (attention, mut tensors) = right();
    resize(&mut tensors, &[Kind::Queries, Kind::Keys, Kind::Rows], 0, 1);
    (AttentionBackward { sequences: Sequences::Packed(packed), ..attention }, tensors)
}

/// What `supported` says after a change, having checked that `workspace_size` and `validate` agree with it.
pub fn changed<'a>(
    (mut attention, mut tensors): (AttentionBackward<'a>, AttentionBackwardTensors),
    change: impl FnOnce(&mut AttentionBackward<'a>, &mut AttentionBackwardTensors),
) -> Result<(), Error> {
    assert_eq!(attention.supported(&tensors), Ok(()));
    change(&mut attention, &mut tensors);
    let supported = attention.supported(&tensors);
    assert_eq!(attention.workspace_size(&tensors).map(drop), supported);
    let meaningful = match &supported {
        Err(error @ Error::Argument { .. }) => Err(error.clone()),
        _ => Ok(()),
    };
    assert_eq!(attention.validate(&tensors), meaningful, "validate refuses what is wrong, and nothing else");
    supported
}

#[test]
fn shapes_that_do_not_belong_together_are_named() {
    for (name, field, kind) in FIELDS {
        let (shape, whose) = match (name, kind) {
            ("q" | "k" | "v", _) => continue,
            ("dv", _) => (KEYS, "v"),
            (_, Kind::Queries) => (QUERIES, "q"),
            (_, Kind::Keys) => (KEYS, "k"),
            (_, Kind::Rows) => continue,
        };
        for dim in 0..4 {
            let mut other = shape;
            other[dim] = 9;
            wrong(
                changed(right(), |_, t| *field(t) = shaped(*field(t), dim, 9)),
                &format!("{name}: shape {other:?} is not valid; expected {shape:?}, as {whose}"),
            );
        }
    }
    for dim in 0..4 {
        let mut shape = [2, 5, 4, 1];
        shape[dim] = 9;
        let rows = tensor(Dtype::F32, shape);
        let expected =
            format!("shape {shape:?} is not valid; expected [2, 5, 4, 1], a number for each row of q");
        wrong(changed(right(), |_, t| t.lse = rows), &format!("lse: {expected}"));
        wrong(changed(right(), |_, t| t.delta = Some(rows)), &format!("delta: {expected}"));
    }
    wrong(changed(right(), |_, t| t.v = shaped(t.v, 1, 9)), "v.length: 9 is not valid; expected 7, as k");
    wrong(
        changed(right(), |_, t| resize(t, &[Kind::Keys], 2, 3)),
        "k.heads: 3 is not valid; expected a divisor of the number of query heads (4)",
    );
}

#[test]
fn types_that_do_not_belong_together_are_named() {
    for (name, field, whose, or) in [
        ("k", FIELDS[1].1, "q", ""),
        ("v", FIELDS[2].1, "q", ""),
        ("out", FIELDS[3].1, "q", ", or F32"),
        ("d_out", FIELDS[5].1, "q", ""),
        ("dq", FIELDS[6].1, "q", ", or F32"),
        ("dk", FIELDS[7].1, "k", ", or F32"),
        ("dv", FIELDS[8].1, "v", ", or F32"),
    ] {
        wrong(
            changed(right(), |_, t| field(t).dtype = Dtype::F16),
            &format!("{name}.dtype: F16 is not valid; expected Bf16, as {whose}{or}"),
        );
        let result = changed(right(), |_, t| field(t).dtype = Dtype::F32);
        match or {
            "" => wrong(result, &format!("{name}.dtype: F32 is not valid; expected Bf16, as {whose}")),
            _ => assert_eq!(result, Ok(())),
        }
    }
    let rows = tensor(Dtype::Bf16, [2, 5, 4, 1]);
    wrong(changed(right(), |_, t| t.lse = rows), "lse.dtype: Bf16 is not valid; expected F32");
    wrong(changed(right(), |_, t| t.delta = Some(rows)), "delta.dtype: Bf16 is not valid; expected F32");
}

#[test]
fn gradients_that_are_added_to_are_f32() {
    for (name, field) in [("dq", FIELDS[6].1), ("dk", FIELDS[7].1), ("dv", FIELDS[8].1)] {
        let accumulate = |a: &mut AttentionBackward, t: &mut AttentionBackwardTensors| {
            a.accumulate = true;
            for (_, field, _) in &FIELDS[6..] {
                field(t).dtype = Dtype::F32;
            }
        };
        assert_eq!(changed(right(), accumulate), Ok(()));
        wrong(
            changed(right(), |a, t| (accumulate(a, t), field(t).dtype = Dtype::Bf16).1),
            &format!(
                "{name}.dtype: Bf16 is not valid; expected F32, since gradients are added to what is there"
            ),
        );
    }
}

#[test]
fn without_delta_the_output_is_needed() {
    wrong(
        changed(right(), |_, t| t.out = None),
        "out: none is not valid; expected the output of the forward pass, since there is no delta",
    );
    let delta = Some(tensor(Dtype::F32, [2, 5, 4, 1]));
    assert_eq!(changed(right(), |_, t| (t.out, t.delta) = (None, delta)), Ok(()));
    // With delta it is not looked at.
    let nothing = Some(DeviceTensor { address: 1, ..tensor(Dtype::F16, [1, 1, 1, 1]) });
    assert_eq!(changed(right(), |_, t| (t.out, t.delta) = (nothing, delta)), Ok(()));
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    for (name, field, kind) in FIELDS {
        let size = if kind == Kind::Rows { 4 } else { 2 };
        wrong(changed(right(), |_, t| field(t).address = 0), &format!("{name}: {NULL}"));
        let odd = SOMEWHERE + size / 2;
        wrong(changed(right(), |_, t| field(t).address = odd), &format!("{name}: {}", misaligned(odd, size)));
    }
    let delta = |address| Some(DeviceTensor { address, ..tensor(Dtype::F32, [2, 5, 4, 1]) });
    wrong(changed(right(), |_, t| t.delta = delta(0)), &format!("delta: {NULL}"));
    wrong(changed(right(), |_, t| t.delta = delta(0x1002)), &format!("delta: {}", misaligned(0x1002, 4)));
    wrong(changed(right(), |a, _| a.query_offsets = Some(0)), &format!("query_offsets: {NULL}"));
    wrong(changed(right(), |a, _| a.status = Some(0x1002)), &format!("status: {}", misaligned(0x1002, 4)));
}

#[test]
fn outputs_that_overlap_themselves_are_named() {
    for (name, field, shape, strides) in [
        ("dq", FIELDS[6].1, QUERIES, [0, 64, 16, 1]),
        ("dk", FIELDS[7].1, KEYS, [0, 32, 16, 1]),
        ("dv", FIELDS[8].1, KEYS, [224, 0, 16, 1]),
    ] {
        wrong(
            changed(right(), |_, t| field(t).layout = Layout::strided(shape, strides)),
            &format!(
                "{name}: shape {shape:?} with strides {strides:?}, where elements overlap is not valid; expected an output \
                 whose elements are distinct"
            ),
        );
    }
    // What is read may.
    for (_, field, _) in &FIELDS[..6] {
        let share = |t: &mut AttentionBackwardTensors| {
            let tensor = field(t);
            tensor.layout = Layout::strided(tensor.layout.shape(), [0, 0, 0, 1]);
        };
        assert_eq!(changed(right(), |_, t| share(t)), Ok(()));
    }
}

#[test]
fn descriptors_and_sequences_are_checked_as_in_the_forward_pass() {
    wrong(
        changed(right(), |a, _| a.attention.scale = Some(f32::NAN)),
        "scale: NaN is not valid; expected a finite number",
    );
    wrong(
        changed(right(), |a, _| a.attention.query_offset = i64::MAX),
        &format!("query_offset: {} is not valid; expected positions from -2^62 to 2^62", i64::MAX),
    );
    wrong(
        changed(right(), |a, _| a.sequences = Sequences::Packed(PACKED)),
        "q.batch: 2 is not valid; expected 1, since the sequences are packed",
    );
    let with = |change: fn(&mut Packed)| {
        let mut changed = PACKED;
        change(&mut changed);
        Sequences::Packed(changed)
    };
    wrong(
        changed(packed(PACKED), |a, _| a.sequences = with(|packed| packed.key_starts = 0)),
        &format!("sequences.key_starts: {NULL}"),
    );
    not_offered(
        changed(packed(PACKED), |a, _| a.sequences = with(|packed| packed.count = 1 << 31)),
        "sequences.count: 2147483648 is not supported; expected fewer than 2^31 sequences",
    );
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all_f32 =
        |t: &mut AttentionBackwardTensors| FIELDS.iter().for_each(|(_, f, _)| f(t).dtype = Dtype::F32);
    not_offered(changed(right(), |_, t| all_f32(t)), "q.dtype: F32 is not supported; expected F16 or Bf16");
    for head_dim in [8, 12, 256, 257, 264] {
        let result = changed(right(), |_, t| resize(t, &[Kind::Queries, Kind::Keys], 3, head_dim));
        match head_dim {
            8 | 256 => assert_eq!(result, Ok(())),
            _ => not_offered(
                result,
                &format!("q.head_dim: {head_dim} is not supported; expected a multiple of 8 up to 256"),
            ),
        }
    }
    let queries = changed(right(), |_, t| resize(t, &[Kind::Queries, Kind::Rows], 1, 1 << 40));
    assert!(matches!(queries, Err(Error::Unsupported { .. })), "{queries:?}");
    // Keys that share a place are many at no cost, but for the blocks.
    let keys = changed(right(), |_, t| resize(t, &[Kind::Keys], 1, 1 << 40)).unwrap_err().to_string();
    assert!(keys.starts_with("tensors: 2 sequences of up to 1099511627776 keys and 2 key heads"), "{keys}");
}

#[test]
fn without_queries_or_keys_their_addresses_are_not_needed() {
    let none = |kinds: &'static [Kind]| {
        changed(right(), |_, t| {
            resize(t, kinds, 1, 0);
            for (_, field, _) in FIELDS.iter().filter(|(_, _, kind)| kinds.contains(kind)) {
                field(t).address = 0;
            }
        })
    };
    assert_eq!(none(&[Kind::Queries, Kind::Rows]), Ok(()));
    assert_eq!(none(&[Kind::Keys]), Ok(()));
}

/// Gives all tensors of 16 bits the type f16.
fn make_f16(tensors: &mut AttentionBackwardTensors) {
    for (_, field, _) in FIELDS.iter().filter(|(_, _, kind)| *kind != Kind::Rows) {
        field(tensors).dtype = Dtype::F16;
    }
}

/// Bytes of a counter, and what the parts of a workspace are aligned to.
const COUNTER: usize = 128;

#[test]
fn a_workspace_holds_delta_where_it_is_not_brought_and_what_hopper_s_kernels_need() {
    // The two kernels for f16: a counter; and sums of two gradients of 128 rows for each block.
    let sums = |dim: usize| 144 * 2 * 128 * dim * 4;
    let (attention, mut tensors) = right();
    make_f16(&mut tensors);
    assert_eq!(attention.workspace_size(&tensors), Ok(4 * 2 * 5 * 4 + COUNTER));
    resize(&mut tensors, &[Kind::Queries, Kind::Rows], 1, 1 << 20);
    assert_eq!(attention.workspace_size(&tensors), Ok(4 * 2 * (1 << 20) * 4 + COUNTER + sums(64)));
    tensors.delta = Some(tensors.lse);
    assert_eq!(attention.workspace_size(&tensors), Ok(COUNTER + sums(64)));
    resize(&mut tensors, &[Kind::Queries, Kind::Keys], 3, 128);
    assert_eq!(attention.workspace_size(&tensors), Ok(COUNTER + sums(128)));
    // These Hopper's kernels don't take: the portable ones need nothing.
    resize(&mut tensors, &[Kind::Queries, Kind::Keys], 3, 256);
    assert_eq!(attention.workspace_size(&tensors), Ok(0));
    // No sequence is nothing to launch.
    let (attention, tensors) = packed(Packed { count: 0, ..PACKED });
    assert_eq!(attention.workspace_size(&tensors), Ok(0));
    // Without queries the gradients of keys are still written.
    let (attention, mut tensors) = right();
    make_f16(&mut tensors);
    resize(&mut tensors, &[Kind::Queries, Kind::Rows], 1, 0);
    assert_eq!(attention.workspace_size(&tensors), Ok(COUNTER));
}

#[test]
fn a_workspace_for_the_one_kernel_of_bf16_has_room_for_f32_gradients_and_for_their_order() {
    // Of so many key heads, each with two query heads and one tile of 128 keys: dQ, dK and dV in f32; and where sums have an
    // order a counter of 4 bytes for each tile of 64 queries, another for each of keys, and 160 bytes for each block.
    let needs = |heads: usize, query_tiles: usize, dim: usize, in_turn: bool| {
        let gradients = [heads * 2 * query_tiles * 64 * dim * 4, heads * 2 * 128 * dim * 4];
        let order = [heads * 2 * query_tiles * 4, heads * 4, heads * 2 * 160]
            .map(|bytes| bytes.next_multiple_of(COUNTER));
        2 * COUNTER + gradients.iter().sum::<usize>() + if in_turn { order.iter().sum() } else { 0 }
    };
    let (attention, mut tensors) = right();
    let delta = 4 * 2 * 5 * 4;
    assert_eq!(attention.workspace_size(&tensors), Ok(delta + needs(4, 1, 64, true)));
    tensors.delta = Some(tensors.lse);
    assert_eq!(attention.workspace_size(&tensors), Ok(needs(4, 1, 64, true)));
    let fast = AttentionBackward { fast: true, ..attention };
    assert_eq!(fast.workspace_size(&tensors), Ok(needs(4, 1, 64, false)));
    for (head_dim, padded) in [(64, 64), (72, 96), (96, 96), (104, 128), (128, 128)] {
        resize(&mut tensors, &[Kind::Queries, Kind::Keys], 3, head_dim);
        assert_eq!(attention.workspace_size(&tensors), Ok(needs(4, 1, padded, true)), "{head_dim}");
    }
    // Above, only where sums may have any order.
    resize(&mut tensors, &[Kind::Queries, Kind::Keys], 3, 200);
    // A block has half as many keys there.
    assert_eq!(fast.workspace_size(&tensors), Ok(needs(4, 1, 256, false) - 4 * 2 * 64 * 256 * 4));
    assert_eq!(attention.workspace_size(&tensors), Ok(0));
    resize(&mut tensors, &[Kind::Queries, Kind::Keys], 3, 128);
    // Of 1,048,576 queries one key head at a time, and sums of 128 rows for each block.
    resize(&mut tensors, &[Kind::Queries, Kind::Rows], 1, 1 << 20);
    tensors.delta = Some(tensors.lse);
    let sums = 144 * 2 * 128 * 128 * 4;
    assert_eq!(attention.workspace_size(&tensors), Ok(needs(1, 1 << 14, 128, true) + sums));
    // Without queries the gradients of keys are still written.
    let (attention, mut tensors) = right();
    resize(&mut tensors, &[Kind::Queries, Kind::Rows], 1, 0);
    assert_eq!(attention.workspace_size(&tensors), Ok(needs(4, 0, 64, true)));
}

/// A delta that is right, and what is said of it after a change.
fn delta_with(change: impl FnOnce(&mut AttentionDelta)) -> Result<(), Error> {
    let rows = tensor(Dtype::F32, [2, 5, 4, 1]);
    let of = tensor(Dtype::F16, QUERIES);
    let mut delta = AttentionDelta { out: of, d_out: of, delta: rows };
    assert_eq!(delta.supported(), Ok(()));
    change(&mut delta);
    delta.supported()
}

#[test]
fn what_delta_is_made_of_is_checked() {
    assert_eq!(delta_with(|d| d.out.dtype = Dtype::F32), Ok(()));
    wrong(
        delta_with(|d| d.out.dtype = Dtype::Bf16),
        "out.dtype: Bf16 is not valid; expected F16, as d_out, or F32",
    );
    wrong(
        delta_with(|d| d.out = shaped(d.out, 1, 6)),
        "out: shape [2, 6, 4, 16] is not valid; expected [2, 5, 4, 16], as d_out",
    );
    wrong(
        delta_with(|d| d.delta = tensor(Dtype::F32, [2, 5, 4, 2])),
        "delta: shape [2, 5, 4, 2] is not valid; expected [2, 5, 4, 1], a number for each row of q",
    );
    wrong(delta_with(|d| d.out.address = 0), &format!("out: {NULL}"));
    wrong(delta_with(|d| d.d_out.address = 0x1001), &format!("d_out: {}", misaligned(0x1001, 2)));
    let overlapping = delta_with(|d| d.delta.layout = Layout::strided([2, 5, 4, 1], [20, 4, 0, 1]));
    assert!(overlapping.unwrap_err().to_string().starts_with("delta: shape [2, 5, 4, 1] with strides"));
    not_offered(
        delta_with(|d| (d.d_out.dtype, d.out.dtype) = (Dtype::F32, Dtype::F32)),
        "d_out.dtype: F32 is not supported; expected F16 or Bf16",
    );
}

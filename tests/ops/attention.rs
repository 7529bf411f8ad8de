//! Attention.

use longrope::Error;
use longrope::descriptor::{self, Layout};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, Packed, Sequences, Starts};

use crate::{SOMEWHERE, not_offered, tensor, wrong};

pub const SHAPE: [usize; 4] = [2, 5, 4, 16];

/// Attention that is right: 4 query heads of 5 tokens over 2 key heads of 7.
pub fn right() -> (Attention<'static>, AttentionTensors) {
    let keys = tensor(Dtype::Bf16, [2, 7, 2, 16]);
    let tensors = AttentionTensors {
        q: tensor(Dtype::Bf16, SHAPE),
        k: keys,
        v: keys,
        out: tensor(Dtype::Bf16, SHAPE),
        lse: Some(tensor(Dtype::F32, [2, 5, 4, 1])),
    };
    (Attention::new(descriptor::Attention::causal()), tensors)
}

/// The same with packed sequences.
pub fn packed(packed: Packed) -> (Attention<'static>, AttentionTensors) {
    let (attention, mut tensors) = right();
    let AttentionTensors { q, k, v, out, lse } = &mut tensors;
    for tensor in [q, k, v, out].into_iter().chain(lse) {
        *tensor = shaped(*tensor, 0, 1);
    }
    (Attention { sequences: Sequences::Packed(packed), ..attention }, tensors)
}

pub const PACKED: Packed = Packed {
    count: 3,
    query_starts: SOMEWHERE,
    key_starts: SOMEWHERE,
    starts: Starts::I32,
    max_query_length: 5,
};

/// A tensor with another size of one dimension.
pub fn shaped(tensor: DeviceTensor, dim: usize, size: usize) -> DeviceTensor {
    let mut shape = tensor.layout.shape();
    shape[dim] = size;
    let [batch, length, heads, head_dim] = shape;
    DeviceTensor { layout: Layout::bshd(batch, length, heads, head_dim), ..tensor }
}

/// What `supported` says after a change, having checked that `workspace_size` and `validate` agree with it.
fn changed(
    (mut attention, mut tensors): (Attention, AttentionTensors),
    change: impl FnOnce(&mut Attention, &mut AttentionTensors),
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
    let at = |dim: usize, size: usize| move |tensor: &mut DeviceTensor| *tensor = shaped(*tensor, dim, size);
    for (dim, name) in ["batch", "length", "heads", "head_dim"].into_iter().enumerate() {
        let of_k = [2, 7, 2, 16][dim];
        wrong(
            changed(right(), |_, t| at(dim, 9)(&mut t.v)),
            &format!("v.{name}: 9 is not valid; expected {of_k}, as k"),
        );
        let of_q = SHAPE[dim];
        wrong(
            changed(right(), |_, t| at(dim, 9)(&mut t.out)),
            &format!("out.{name}: 9 is not valid; expected {of_q}, as q"),
        );
        let mut shape = [2, 5, 4, 1];
        shape[dim] = 9;
        wrong(
            changed(right(), |_, t| t.lse = Some(tensor(Dtype::F32, shape))),
            &format!("lse: shape {shape:?} is not valid; expected [2, 5, 4, 1], a number for each row of q"),
        );
    }
    wrong(
        changed(right(), |_, t| (at(0, 3)(&mut t.k), at(0, 3)(&mut t.v)).0),
        "k.batch: 3 is not valid; expected 2, as q",
    );
    wrong(
        changed(right(), |_, t| (at(3, 8)(&mut t.k), at(3, 8)(&mut t.v)).0),
        "k.head_dim: 8 is not valid; expected 16, as q",
    );
    for heads in [0, 3, 8] {
        wrong(
            changed(right(), |_, t| (at(2, heads)(&mut t.k), at(2, heads)(&mut t.v)).0),
            &format!("k.heads: {heads} is not valid; expected a divisor of the number of query heads (4)"),
        );
    }
    wrong(changed(right(), |_, t| at(3, 0)(&mut t.q)), "q.head_dim: 0 is not valid; expected at least 1");
}

#[test]
fn types_that_do_not_belong_together_are_named() {
    wrong(changed(right(), |_, t| t.k.dtype = Dtype::F16), "k.dtype: F16 is not valid; expected Bf16, as q");
    wrong(changed(right(), |_, t| t.v.dtype = Dtype::F32), "v.dtype: F32 is not valid; expected Bf16, as q");
    wrong(
        changed(right(), |_, t| t.out.dtype = Dtype::F16),
        "out.dtype: F16 is not valid; expected Bf16, as q, or F32",
    );
    let lse = DeviceTensor { dtype: Dtype::Bf16, ..tensor(Dtype::F32, [2, 5, 4, 1]) };
    wrong(changed(right(), |_, t| t.lse = Some(lse)), "lse.dtype: Bf16 is not valid; expected F32");
    // A partial result is f32.
    assert_eq!(changed(right(), |_, t| t.out.dtype = Dtype::F32), Ok(()));
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    type Field = fn(&mut AttentionTensors) -> &mut DeviceTensor;
    let fields: [(&str, Field, u64); 5] = [
        ("q", |t| &mut t.q, 2),
        ("k", |t| &mut t.k, 2),
        ("v", |t| &mut t.v, 2),
        ("out", |t| &mut t.out, 2),
        ("lse", |t| t.lse.as_mut().unwrap(), 4),
    ];
    for (name, field, size) in fields {
        wrong(
            changed(right(), |_, t| field(t).address = 0),
            &format!("{name}: a null address is not valid; expected the address of an element"),
        );
        let odd = SOMEWHERE + size / 2;
        wrong(
            changed(right(), |_, t| field(t).address = odd),
            &format!(
                "{name}: address {odd:#x} is not valid; expected a multiple of {size}, the size of an element"
            ),
        );
    }
    for (name, size) in [("query_offsets", 8), ("status", 4)] {
        let set = |address| {
            move |a: &mut Attention| match size {
                8 => a.query_offsets = Some(address),
                _ => a.status = Some(address),
            }
        };
        wrong(
            changed(right(), |a, _| set(0)(a)),
            &format!("{name}: a null address is not valid; expected the address of an element"),
        );
        let odd = SOMEWHERE + size / 2;
        wrong(
            changed(right(), |a, _| set(odd)(a)),
            &format!(
                "{name}: address {odd:#x} is not valid; expected a multiple of {size}, the size of an element"
            ),
        );
        assert_eq!(changed(right(), |a, _| set(SOMEWHERE)(a)), Ok(()));
    }
}

#[test]
fn outputs_that_overlap_themselves_are_named() {
    let strided = |shape, strides, dtype| DeviceTensor {
        layout: Layout::strided(shape, strides),
        ..tensor(dtype, shape)
    };
    wrong(
        changed(right(), |_, t| t.out = strided(SHAPE, [0, 64, 16, 1], Dtype::Bf16)),
        "out: shape [2, 5, 4, 16] with strides [0, 64, 16, 1], where elements overlap is not valid; expected an output \
         whose elements are distinct",
    );
    wrong(
        changed(right(), |_, t| t.lse = Some(strided([2, 5, 4, 1], [20, 3, 1, 1], Dtype::F32))),
        "lse: shape [2, 5, 4, 1] with strides [20, 3, 1, 1], where elements overlap is not valid; expected an output \
         whose elements are distinct",
    );
    // Inputs may: one sequence of keys for all queries.
    assert_eq!(changed(right(), |_, t| t.k = strided([2, 7, 2, 16], [0, 0, 0, 1], Dtype::Bf16)), Ok(()));
}

#[test]
fn descriptors_out_of_range_are_named() {
    wrong(
        changed(right(), |a, _| a.attention.scale = Some(f32::NAN)),
        "scale: NaN is not valid; expected a finite number",
    );
    wrong(
        changed(right(), |a, _| a.attention.scale = Some(f32::NEG_INFINITY)),
        "scale: -inf is not valid; expected a finite number",
    );
    wrong(
        changed(right(), |a, _| a.attention.window = Some(0)),
        "window: 0 is not valid; expected at least 1, since a query sees its own position",
    );
    let far = 1 << 62;
    for offset in [far - 4, i64::MAX, -far - 1, i64::MIN] {
        wrong(
            changed(right(), |a, _| a.attention.query_offset = offset),
            &format!("query_offset: {offset} is not valid; expected positions from -2^62 to 2^62"),
        );
    }
    for offset in [far - 6, i64::MAX, -far - 1, i64::MIN] {
        wrong(
            changed(right(), |a, _| a.attention.key_offset = offset),
            &format!("key_offset: {offset} is not valid; expected positions from -2^62 to 2^62"),
        );
    }
    for (offset, key_offset) in [(far - 5, far - 7), (-far, -far)] {
        let set = |a: &mut Attention| {
            (a.attention.query_offset, a.attention.key_offset) = (offset, key_offset);
        };
        assert_eq!(changed(right(), |a, _| set(a)), Ok(()));
    }
    assert_eq!(changed(right(), |a, _| a.attention.window = Some(u64::MAX)), Ok(()));
    assert_eq!(changed(right(), |a, _| a.attention.scale = Some(0.0)), Ok(()));
    assert_eq!(changed(right(), |a, _| a.attention.scale = Some(-0.5)), Ok(()));
}

#[test]
fn packed_sequences_have_a_batch_of_one_and_aligned_starts() {
    wrong(
        changed(right(), |a, _| a.sequences = Sequences::Packed(PACKED)),
        "q.batch: 2 is not valid; expected 1, since the sequences are packed",
    );
    for starts in [Starts::I32, Starts::I64] {
        let size = if starts == Starts::I64 { 8 } else { 4 };
        for (name, queries) in [("query_starts", true), ("key_starts", false)] {
            let with = |address| {
                let base = Packed { starts, ..PACKED };
                Sequences::Packed(match queries {
                    true => Packed { query_starts: address, ..base },
                    false => Packed { key_starts: address, ..base },
                })
            };
            wrong(
                changed(packed(PACKED), |a, _| a.sequences = with(0)),
                &format!("sequences.{name}: a null address is not valid; expected the address of an element"),
            );
            let odd = SOMEWHERE + size / 2;
            wrong(
                changed(packed(PACKED), |a, _| a.sequences = with(odd)),
                &format!(
                    "sequences.{name}: address {odd:#x} is not valid; expected a multiple of {size}, the size of an element"
                ),
            );
        }
    }
    // No sequence has no starts.
    let none = Packed { count: 0, query_starts: 0, key_starts: 0, max_query_length: 0, ..PACKED };
    assert_eq!(changed(packed(PACKED), |a, _| a.sequences = Sequences::Packed(none)), Ok(()));
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all = |dtype: Dtype| {
        move |_: &mut Attention, t: &mut AttentionTensors| {
            for tensor in [&mut t.q, &mut t.k, &mut t.v, &mut t.out] {
                tensor.dtype = dtype;
            }
        }
    };
    not_offered(changed(right(), all(Dtype::F32)), "q.dtype: F32 is not supported; expected F16 or Bf16");
    assert_eq!(changed(right(), all(Dtype::F16)), Ok(()));
    for (head_dim, is_offered) in [(8, true), (12, false), (256, true), (257, false), (264, false)] {
        let result = changed(right(), |_, t| {
            for tensor in [&mut t.q, &mut t.k, &mut t.v, &mut t.out] {
                *tensor = shaped(*tensor, 3, head_dim);
            }
        });
        match is_offered {
            true => assert_eq!(result, Ok(())),
            false => not_offered(
                result,
                &format!("q.head_dim: {head_dim} is not supported; expected a multiple of 8 up to 256"),
            ),
        }
    }
    let grow = |dim: usize, size: usize, t: &mut AttentionTensors| {
        for tensor in [&mut t.q, &mut t.out].into_iter().chain(t.lse.as_mut()) {
            *tensor = shaped(*tensor, dim, size);
        }
    };
    not_offered(
        changed(right(), |_, t| grow(2, (1 << 20) + 2, t)),
        "q.heads: 1048578 is not supported; expected at most 2^20 heads",
    );
    // How many queries a block has is the kernel's business: the message tells. Then one block too many, and one fewer.
    let long = |length| changed(right(), |_, t| grow(1, length, t));
    let message = long(1 << 40).unwrap_err().to_string();
    let (_, rows) = message.split_once("fewer than 2^31 blocks of ").unwrap();
    let rows: usize = rows.strip_suffix(" queries of a head").unwrap().parse().unwrap();
    assert_eq!(long(rows * ((1 << 28) - 1)), Ok(()));
    let length = rows * ((1 << 28) - 1) + 1;
    not_offered(
        long(length),
        &format!(
            "tensors: 2 sequences of up to {length} queries and 4 heads is not supported; expected fewer than 2^31 blocks of \
             {rows} queries of a head"
        ),
    );
    let many = Packed { count: 1 << 31, ..PACKED };
    not_offered(
        changed(packed(PACKED), |a, _| a.sequences = Sequences::Packed(many)),
        "sequences.count: 2147483648 is not supported; expected fewer than 2^31 sequences",
    );
}

#[test]
fn without_queries_no_address_is_needed() {
    for (dim, size) in [(0, 0), (1, 0)] {
        let result = changed(right(), |_, t| {
            for tensor in [&mut t.q, &mut t.out].into_iter().chain(t.lse.as_mut()) {
                *tensor = DeviceTensor { address: 0, ..shaped(*tensor, dim, size) };
            }
            for tensor in [&mut t.k, &mut t.v] {
                let batch = if dim == 0 { 0 } else { 2 };
                *tensor = DeviceTensor { address: 0, ..shaped(*tensor, 0, batch) };
            }
        });
        assert_eq!(result, Ok(()));
    }
    // Nor that of keys where there are none.
    let result = changed(right(), |_, t| {
        for tensor in [&mut t.k, &mut t.v] {
            *tensor = DeviceTensor { address: 0, ..shaped(*tensor, 1, 0) };
        }
    });
    assert_eq!(result, Ok(()));
}

//! Decoding over a cache.

use longrope::Error;
use longrope::descriptor::{Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Cache, CacheChoices, CacheRotary, Decode, DecodeTensors, DeviceLengths, NewTokens, PackedTokens,
    PageTable, Split, Starts,
};

use crate::{NULL, SOMEWHERE, misaligned, not_offered, parity_sets, sets, tensor, wrong};

type Arguments = (Decode<'static>, DecodeTensors);

/// Decoding that is right: 2 new tokens of 3 sequences, 4 query heads over 2 key heads, pages of 32 tokens.
fn right() -> Arguments {
    let keys = tensor(Dtype::Bf16, [9, 32, 2, 16]);
    let pages = PageTable { address: SOMEWHERE, sequences: 3, width: 4, stride: 4 };
    let cache = Cache { k: keys, v: keys, pages: Some(pages), lengths: DeviceLengths::I32(SOMEWHERE) };
    let tensors = DecodeTensors {
        q: tensor(Dtype::Bf16, [3, 2, 4, 16]),
        out: tensor(Dtype::Bf16, [3, 2, 4, 16]),
        lse: Some(tensor(Dtype::F32, [3, 2, 4, 1])),
    };
    (Decode::new(cache), tensors)
}

/// Sets the shape of queries and what is written.
fn set_queries(tensors: &mut DecodeTensors, [batch, length, heads, head_dim]: [usize; 4]) {
    tensors.q.layout = Layout::bshd(batch, length, heads, head_dim);
    tensors.out.layout = tensors.q.layout;
    tensors.lse = Some(tensor(Dtype::F32, [batch, length, heads, 1]));
}

fn set_keys(decode: &mut Decode, [pages, page_size, heads, head_dim]: [usize; 4]) {
    let layout = Layout::bshd(pages, page_size, heads, head_dim);
    (decode.cache.k.layout, decode.cache.v.layout) = (layout, layout);
}

fn packed(starts: u64, kind: Starts, most: usize) -> NewTokens {
    NewTokens::Packed(PackedTokens { starts, kind, most })
}

/// What `supported` says after a change, having checked that `workspace_size` agrees with it.
fn changed(change: impl FnOnce(&mut Decode, &mut DecodeTensors)) -> Result<(), Error> {
    let (mut decode, mut tensors) = right();
    assert_eq!(decode.supported(&tensors), Ok(()));
    change(&mut decode, &mut tensors);
    let supported = decode.supported(&tensors);
    assert_eq!(decode.workspace_size(&tensors).map(drop), supported);
    supported
}

#[test]
fn shapes_that_do_not_belong_together_are_named() {
    wrong(
        changed(|_, t| set_queries(t, [4, 2, 4, 16])),
        "q.batch: 4 is not valid; expected 3, the sequences of the cache",
    );
    wrong(
        changed(|d, _| d.cache.pages = None),
        "q.batch: 3 is not valid; expected 9, the sequences of the cache",
    );
    wrong(
        changed(|d, _| d.tokens = packed(SOMEWHERE, Starts::I32, 2)),
        "q.batch: 3 is not valid; expected 1, since the new tokens are packed",
    );
    wrong(
        changed(|d, _| set_keys(d, [9, 32, 2, 24])),
        "cache.k.head_dim: 24 is not valid; expected 16, as q",
    );
    wrong(
        changed(|d, _| d.cache.v.layout = Layout::bshd(9, 32, 1, 16)),
        "cache.v: shape [9, 32, 1, 16] is not valid; expected [9, 32, 2, 16], as k",
    );
    for heads in [0, 3, 8] {
        wrong(
            changed(|d, _| set_keys(d, [9, 32, heads, 16])),
            &format!(
                "cache.k.heads: {heads} is not valid; expected a divisor of the number of query heads (4)"
            ),
        );
    }
    wrong(
        changed(|_, t| t.out.layout = Layout::bshd(3, 1, 4, 16)),
        "out: shape [3, 1, 4, 16] is not valid; expected [3, 2, 4, 16], as q",
    );
    wrong(
        changed(|_, t| t.lse = Some(tensor(Dtype::F32, [3, 2, 4, 2]))),
        "lse: shape [3, 2, 4, 2] is not valid; expected [3, 2, 4, 1], a number for each row of q",
    );
    wrong(changed(|_, t| set_queries(t, [3, 2, 4, 0])), "q.head_dim: 0 is not valid; expected at least 1");
}

#[test]
fn types_that_do_not_belong_together_are_named() {
    wrong(
        changed(|d, _| d.cache.k.dtype = Dtype::F16),
        "cache.k.dtype: F16 is not valid; expected Bf16, as q",
    );
    wrong(
        changed(|d, _| d.cache.v.dtype = Dtype::F32),
        "cache.v.dtype: F32 is not valid; expected Bf16, as q",
    );
    wrong(
        changed(|_, t| t.out.dtype = Dtype::F16),
        "out.dtype: F16 is not valid; expected Bf16, as q, or F32",
    );
    wrong(
        changed(|_, t| t.lse.as_mut().unwrap().dtype = Dtype::F16),
        "lse.dtype: F16 is not valid; expected F32",
    );
    assert_eq!(changed(|_, t| t.out.dtype = Dtype::F32), Ok(()));
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    type Set = fn(&mut Decode, &mut DecodeTensors, u64);
    let addresses: [(&str, u64, Set); 10] = [
        ("q", 2, |_, t, a| t.q.address = a),
        ("out", 2, |_, t, a| t.out.address = a),
        ("lse", 4, |_, t, a| t.lse.as_mut().unwrap().address = a),
        ("cache.k", 2, |d, _, a| d.cache.k.address = a),
        ("cache.v", 2, |d, _, a| d.cache.v.address = a),
        ("cache.pages", 4, |d, _, a| d.cache.pages.as_mut().unwrap().address = a),
        ("cache.lengths", 4, |d, _, a| d.cache.lengths = DeviceLengths::I32(a)),
        ("cache.lengths", 8, |d, _, a| d.cache.lengths = DeviceLengths::I64(a)),
        ("status", 4, |d, _, a| d.status = Some(a)),
        ("tokens.starts", 8, |d, t, a| {
            set_queries(t, [1, 6, 4, 16]);
            d.tokens = packed(a, Starts::I64, 2);
        }),
    ];
    for (name, size, set) in addresses {
        wrong(
            changed(|d, t| set(d, t, 0)),
            &format!("{name}: a null address is not valid; expected the address of an element"),
        );
        let odd = SOMEWHERE + size / 2;
        wrong(
            changed(|d, t| set(d, t, odd)),
            &format!(
                "{name}: address {odd:#x} is not valid; expected a multiple of {size}, the size of an element"
            ),
        );
        assert_eq!(changed(|d, t| set(d, t, 2 * SOMEWHERE)), Ok(()), "{name}");
    }
}

#[test]
fn settings_out_of_range_are_named() {
    wrong(changed(|d, _| d.scale = Some(f32::NAN)), "scale: NaN is not valid; expected a finite number");
    wrong(
        changed(|d, _| d.window = Some(0)),
        "window: 0 is not valid; expected at least 1, since a query sees its own position",
    );
    for splits in [0, 1025] {
        wrong(
            changed(|d, _| d.split = Split::Fixed(splits)),
            &format!("split: {splits} is not valid; expected 1 to 1024 parts"),
        );
    }
    assert_eq!(changed(|d, _| d.split = Split::Fixed(1024)), Ok(()));
    wrong(
        changed(|_, t| t.out.layout = Layout::strided([3, 2, 4, 16], [64, 64, 16, 1])),
        "out: shape [3, 2, 4, 16] with strides [64, 64, 16, 1], where elements overlap is not valid; expected an output \
         whose elements are distinct",
    );
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all = |dtype| {
        changed(move |d, t| {
            (d.cache.k.dtype, d.cache.v.dtype, t.q.dtype, t.out.dtype) = (dtype, dtype, dtype, dtype);
        })
    };
    not_offered(all(Dtype::F32), "q.dtype: F32 is not supported; expected F16 or Bf16");
    assert_eq!(all(Dtype::F16), Ok(()));
    let head_dim = |dim| {
        changed(|d, t| {
            set_keys(d, [9, 32, 2, dim]);
            set_queries(t, [3, 2, 4, dim]);
        })
    };
    for dim in [4, 20, 264] {
        not_offered(
            head_dim(dim),
            &format!("q.head_dim: {dim} is not supported; expected a multiple of 8 up to 256"),
        );
    }
    for dim in [8, 64, 72, 256] {
        assert_eq!(head_dim(dim), Ok(()), "{dim}");
    }
    let page = |size| changed(|d, _| set_keys(d, [9, size, 2, 16]));
    for size in [0, 8, 24, 272] {
        not_offered(
            page(size),
            &format!(
                "cache.k.length: {size} is not supported; expected pages of a multiple of 16 tokens up to 256"
            ),
        );
    }
    assert_eq!((page(16), page(256)), (Ok(()), Ok(())));
    let width = |width| changed(|d, _| d.cache.pages.as_mut().unwrap().width = width);
    assert_eq!(width(1 << 26), Ok(()));
    for too_wide in [(1 << 26) + 1, usize::MAX] {
        not_offered(
            width(too_wide),
            &format!(
                "cache.pages.width: {too_wide} is not supported; expected at most 2^31 tokens of a sequence, in pages of 32"
            ),
        );
    }
    assert_eq!(changed(|_, t| set_queries(t, [3, 16, 4, 16])), Ok(()));
    not_offered(
        changed(|_, t| set_queries(t, [3, 17, 4, 16])),
        "q.length: 17 is not supported; expected at most 16 new tokens of a sequence; Prefill takes more",
    );
    let most = |total, most| {
        changed(|d, t| {
            set_queries(t, [1, total, 4, 16]);
            d.tokens = packed(SOMEWHERE, Starts::I32, most);
        })
    };
    not_offered(
        most(40, 17),
        "tokens.most: 17 is not supported; expected at most 16 new tokens of a sequence; Prefill takes more",
    );
    assert_eq!(most(40, 16), Ok(()));
    // What is said counts, not what the tensor has: the kernel must not depend on the batch.
    not_offered(
        most(16, 40),
        "tokens.most: 40 is not supported; expected at most 16 new tokens of a sequence; Prefill takes more",
    );
}

#[test]
fn rows_that_can_not_be_moved_by_16_bytes_are_not_offered() {
    type Set = fn(&mut Decode, &mut DecodeTensors, DeviceTensor);
    let fields: [(&str, Set, DeviceTensor); 4] = [
        ("q", |_, t, x| t.q = x, right().1.q),
        ("out", |_, t, x| t.out = x, right().1.out),
        ("cache.k", |d, _, x| d.cache.k = x, right().0.cache.k),
        ("cache.v", |d, _, x| d.cache.v = x, right().0.cache.v),
    ];
    for (name, set, tensor) in fields {
        let [batch, length, heads, _] = tensor.layout.strides();
        let strides =
            |strides| DeviceTensor { layout: Layout::strided(tensor.layout.shape(), strides), ..tensor };
        for other in [
            DeviceTensor { address: SOMEWHERE + 8, ..tensor },
            strides([2 * batch, 2 * length, 2 * heads, 2]),
            strides([batch + 4, length, heads, 1]),
        ] {
            not_offered(
                changed(|d, t| set(d, t, other)),
                &format!(
                    "{name}: address {:#x} with strides {:?} is not supported; expected a head dimension of stride 1 and \
                     rows at multiples of 16 bytes",
                    other.address,
                    other.layout.strides()
                ),
            );
        }
        assert_eq!(changed(|d, t| set(d, t, strides([batch + 8, length, heads, 1]))), Ok(()), "{name}");
    }
}

#[test]
fn rotations_of_keys_are_of_8_pairs_and_exact() {
    let by = |pairs: usize, parity: bool, choices: CacheChoices| {
        let sets = if parity { parity_sets(pairs) } else { sets(pairs) };
        let (decode, tensors) = right();
        Decode { rotary: Some(CacheRotary { sets: &sets, pairing: Pairing::HalfSplit, choices }), ..decode }
            .supported(&tensors)
    };
    for pairs in [0, 9, 16] {
        wrong(
            by(pairs, false, CacheChoices::ByLength),
            &format!("rotary.sets: {pairs} pairs is not valid; expected 1 to 8, half of the head dimension"),
        );
    }
    for pairs in [1, 4, 7] {
        not_offered(
            by(pairs, false, CacheChoices::ByLength),
            &format!("rotary.sets: {pairs} pairs is not supported; expected a multiple of 8 pairs"),
        );
    }
    assert_eq!(by(8, false, CacheChoices::ByLength), Ok(()));
    not_offered(
        by(8, true, CacheChoices::ByLength),
        "rotary.sets: angles in parity mode is not supported; expected exact angles",
    );
    wrong(by(8, false, CacheChoices::ByIndex(0)), &format!("rotary.choices: {NULL}"));
    wrong(
        by(8, false, CacheChoices::ByIndex(SOMEWHERE + 2)),
        &format!("rotary.choices: {}", misaligned(SOMEWHERE + 2, 4)),
    );
}

#[test]
fn page_tables_are_not_reversed() {
    let stride = |stride| changed(move |d, _| d.cache.pages.as_mut().unwrap().stride = stride);
    wrong(stride(-1), "cache.pages.stride: -1 is not valid; expected at least 0");
    assert_eq!(stride(0), Ok(()));
}

#[test]
fn grids_beyond_31_bits_are_not_offered() {
    let many = |sequences, splits| {
        changed(|d, t| {
            d.cache.pages.as_mut().unwrap().sequences = sequences;
            d.split = Split::Fixed(splits);
            set_queries(t, [sequences, 2, 4, 16]);
        })
    };
    // 2 key heads, and 4 rows to merge for each.
    assert_eq!(many((1 << 28) - 1, 2), Ok(()));
    for (sequences, splits) in [(1 << 28, 2), (1 << 20, 1024)] {
        not_offered(
            many(sequences, splits),
            &format!(
                "tensors: {sequences} sequences of 2 key heads and 4 rows each in {splits} parts is not supported; expected \
                 fewer than 2^31 blocks of 8 rows, and rows to merge"
            ),
        );
    }
    not_offered(many(1 << 31, 1), "cache: 2147483648 sequences is not supported; expected fewer than 2^31");
}

#[test]
fn nothing_to_do_needs_no_address_and_no_workspace() {
    for shape in [[0, 2, 4, 16], [3, 0, 4, 16], [3, 2, 0, 16]] {
        let (mut decode, mut tensors) = right();
        decode.cache.pages.as_mut().unwrap().sequences = shape[0];
        set_queries(&mut tensors, shape);
        let DecodeTensors { q, out, lse } = &mut tensors;
        for tensor in [q, out, lse.as_mut().unwrap(), &mut decode.cache.k, &mut decode.cache.v] {
            tensor.address = 0;
        }
        decode.cache.pages.as_mut().unwrap().address = 0;
        decode.cache.lengths = DeviceLengths::I64(0);
        assert_eq!(decode.workspace_size(&tensors), Ok(0), "{shape:?}");
    }
}

#[test]
fn a_workspace_is_as_large_as_its_slots() {
    let (mut decode, mut tensors) = right();
    // 4 rows of 16 dimensions and a log-sum-exp, for two slots of 512 blocks, whatever the batch.
    assert_eq!(decode.workspace_size(&tensors), Ok(2 * 512 * 4 * 17 * 4));
    decode.split = Split::Fixed(5);
    assert_eq!(decode.workspace_size(&tensors), Ok(3 * 2 * 5 * 4 * 17 * 4));
    // 40 rows of a key head: two items of up to 32.
    set_queries(&mut tensors, [3, 10, 8, 16]);
    assert_eq!(decode.workspace_size(&tensors), Ok(3 * 2 * 2 * 5 * 32 * 17 * 4));
}

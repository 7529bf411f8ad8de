//! Attention of many new tokens over a cache.

use longrope::Error;
use longrope::descriptor::{Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    CacheChoices, CacheRotary, DecodeTensors, DeviceLengths, NewTokens, PackedTokens, Prefill, Starts,
};

use crate::{NULL, SOMEWHERE, cache, misaligned, not_offered, parity_sets, sets, tensor, wrong};

/// A prefill that is right: 200 new tokens of 3 sequences, 4 query heads over 2 key heads, pages of 32 tokens.
fn right() -> (Prefill<'static>, DecodeTensors) {
    let mut tensors = DecodeTensors {
        q: tensor(Dtype::Bf16, [3, 200, 4, 16]),
        out: tensor(Dtype::Bf16, [3, 200, 4, 16]),
        lse: None,
    };
    set_queries(&mut tensors, [3, 200, 4, 16]);
    (Prefill::new(cache([9, 32, 2, 16])), tensors)
}

/// Sets the shape of queries and what is written.
fn set_queries(tensors: &mut DecodeTensors, [batch, length, heads, head_dim]: [usize; 4]) {
    tensors.q.layout = Layout::bshd(batch, length, heads, head_dim);
    tensors.out.layout = tensors.q.layout;
    tensors.lse = Some(tensor(Dtype::F32, [batch, length, heads, 1]));
}

fn set_keys(prefill: &mut Prefill, [pages, page_size, heads, head_dim]: [usize; 4]) {
    let layout = Layout::bshd(pages, page_size, heads, head_dim);
    (prefill.cache.k.layout, prefill.cache.v.layout) = (layout, layout);
}

fn packed(starts: u64, kind: Starts, most: usize) -> NewTokens {
    NewTokens::Packed(PackedTokens { starts, kind, most })
}

/// The workspace after a change, having checked that `supported` agrees with it.
fn workspace(change: impl FnOnce(&mut Prefill, &mut DecodeTensors)) -> Result<usize, Error> {
    let (mut prefill, mut tensors) = right();
    assert_eq!(prefill.supported(&tensors), Ok(()));
    change(&mut prefill, &mut tensors);
    let bytes = prefill.workspace_size(&tensors);
    assert_eq!(prefill.supported(&tensors), bytes.clone().map(drop));
    bytes
}

fn changed(change: impl FnOnce(&mut Prefill, &mut DecodeTensors)) -> Result<(), Error> {
    workspace(change).map(drop)
}

#[test]
fn shapes_and_types_that_do_not_belong_together_are_named() {
    type Change = fn(&mut Prefill, &mut DecodeTensors);
    let changes: [(Change, &str); 12] = [
        (
            |_, t| set_queries(t, [4, 2, 4, 16]),
            "q.batch: 4 is not valid; expected 3, the sequences of the cache",
        ),
        (|p, _| p.cache.pages = None, "q.batch: 3 is not valid; expected 9, the sequences of the cache"),
        (
            |p, _| p.tokens = packed(SOMEWHERE, Starts::I32, 2),
            "q.batch: 3 is not valid; expected 1, since the new tokens are packed",
        ),
        (|p, _| set_keys(p, [9, 32, 2, 24]), "cache.k.head_dim: 24 is not valid; expected 16, as q"),
        (
            |p, _| set_keys(p, [9, 32, 3, 16]),
            "cache.k.heads: 3 is not valid; expected a divisor of the number of query heads (4)",
        ),
        (
            |p, _| set_keys(p, [9, 32, 0, 16]),
            "cache.k.heads: 0 is not valid; expected a divisor of the number of query heads (4)",
        ),
        (
            |_, t| t.out.layout = Layout::bshd(3, 1, 4, 16),
            "out: shape [3, 1, 4, 16] is not valid; expected [3, 200, 4, 16], as q",
        ),
        (
            |_, t| t.lse = Some(tensor(Dtype::F32, [3, 200, 4, 2])),
            "lse: shape [3, 200, 4, 2] is not valid; expected [3, 200, 4, 1], a number for each row of q",
        ),
        (|p, _| p.cache.v.dtype = Dtype::F16, "cache.v.dtype: F16 is not valid; expected Bf16, as q"),
        (|_, t| t.out.dtype = Dtype::F16, "out.dtype: F16 is not valid; expected Bf16, as q, or F32"),
        (|p, _| p.scale = Some(f32::INFINITY), "scale: inf is not valid; expected a finite number"),
        (
            |p, _| p.window = Some(0),
            "window: 0 is not valid; expected at least 1, since a query sees its own position",
        ),
    ];
    for (change, message) in changes {
        wrong(changed(change), message);
    }
    assert_eq!(changed(|_, t| t.out.dtype = Dtype::F32), Ok(()));
    assert_eq!(changed(|_, t| t.lse = None), Ok(()));
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    type Set = fn(&mut Prefill, &mut DecodeTensors, u64);
    let addresses: [(&str, u64, Set); 9] = [
        ("q", 2, |_, t, a| t.q.address = a),
        ("out", 2, |_, t, a| t.out.address = a),
        ("lse", 4, |_, t, a| t.lse.as_mut().unwrap().address = a),
        ("cache.k", 2, |p, _, a| p.cache.k.address = a),
        ("cache.v", 2, |p, _, a| p.cache.v.address = a),
        ("cache.pages", 4, |p, _, a| p.cache.pages.as_mut().unwrap().address = a),
        ("cache.lengths", 8, |p, _, a| p.cache.lengths = DeviceLengths::I64(a)),
        ("status", 4, |p, _, a| p.status = Some(a)),
        ("tokens.starts", 4, |p, t, a| {
            set_queries(t, [1, 600, 4, 16]);
            p.tokens = packed(a, Starts::I32, 200);
        }),
    ];
    for (name, size, set) in addresses {
        wrong(changed(|p, t| set(p, t, 0)), &format!("{name}: {NULL}"));
        let odd = SOMEWHERE + size / 2;
        wrong(changed(|p, t| set(p, t, odd)), &format!("{name}: {}", misaligned(odd, size)));
        assert_eq!(changed(|p, t| set(p, t, 2 * SOMEWHERE)), Ok(()), "{name}");
    }
}

#[test]
fn results_that_overlap_themselves_are_named() {
    let message = "with strides [0, 64, 16, 1], where elements overlap is not valid; expected an output whose elements are \
                   distinct";
    wrong(
        changed(|_, t| t.out.layout = Layout::strided([3, 200, 4, 16], [0, 64, 16, 1])),
        &format!("out: shape [3, 200, 4, 16] {message}"),
    );
    wrong(
        changed(|_, t| {
            t.lse.as_mut().unwrap().layout = Layout::strided([3, 200, 4, 1], [0, 64, 16, 1]);
        }),
        &format!("lse: shape [3, 200, 4, 1] {message}"),
    );
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all = |dtype| {
        changed(move |p, t| {
            (p.cache.k.dtype, p.cache.v.dtype, t.q.dtype, t.out.dtype) = (dtype, dtype, dtype, dtype);
        })
    };
    not_offered(all(Dtype::F32), "q.dtype: F32 is not supported; expected F16 or Bf16");
    assert_eq!(all(Dtype::F16), Ok(()));
    let head_dim = |dim| {
        changed(move |p, t| {
            set_keys(p, [9, 32, 2, dim]);
            set_queries(t, [3, 200, 4, dim]);
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
    let page = |size| changed(move |p, _| set_keys(p, [9, size, 2, 16]));
    for size in [8, 24, 272] {
        not_offered(
            page(size),
            &format!(
                "cache.k.length: {size} is not supported; expected pages of a multiple of 16 tokens up to 256"
            ),
        );
    }
    assert_eq!((page(16), page(256)), (Ok(()), Ok(())));
    let stride = |stride| changed(move |p, _| p.cache.pages.as_mut().unwrap().stride = stride);
    wrong(stride(-1), "cache.pages.stride: -1 is not valid; expected at least 0");
    assert_eq!(stride(0), Ok(()));
    let width = (1 << 26) + 1;
    not_offered(
        changed(|p, _| p.cache.pages.as_mut().unwrap().width = width),
        &format!(
            "cache.pages.width: {width} is not supported; expected at most 2^31 tokens of a sequence, in pages of 32"
        ),
    );
    type Set = fn(&mut Prefill, &mut DecodeTensors, DeviceTensor);
    let (prefill, tensors) = right();
    let fields: [(&str, DeviceTensor, Set); 4] = [
        ("q", tensors.q, |_, t, x| t.q = x),
        ("out", tensors.out, |_, t, x| t.out = x),
        ("cache.k", prefill.cache.k, |p, _, x| p.cache.k = x),
        ("cache.v", prefill.cache.v, |p, _, x| p.cache.v = x),
    ];
    for (name, tensor, set) in fields {
        let other = DeviceTensor { address: SOMEWHERE + 8, ..tensor };
        not_offered(
            changed(|p, t| set(p, t, other)),
            &format!(
                "{name}: address 0x1008 with strides {:?} is not supported; expected a head dimension of stride 1 and rows at \
                 multiples of 16 bytes",
                tensor.layout.strides()
            ),
        );
    }
}

#[test]
fn rotations_of_keys_are_of_8_pairs_and_exact() {
    let by = |pairs: usize, parity: bool, choices: CacheChoices| {
        let sets = if parity { parity_sets(pairs) } else { sets(pairs) };
        let (prefill, tensors) = right();
        let rotary = Some(CacheRotary { sets: &sets, pairing: Pairing::Interleaved, choices });
        let mut prefill = Prefill { rotary, ..prefill };
        set_keys(&mut prefill, [9, 32, 2, 48]);
        let mut tensors = tensors;
        set_queries(&mut tensors, [3, 200, 4, 48]);
        prefill.supported(&tensors)
    };
    for pairs in [0, 25, 32] {
        wrong(
            by(pairs, false, CacheChoices::ByLength),
            &format!("rotary.sets: {pairs} pairs is not valid; expected 1 to 24, half of the head dimension"),
        );
    }
    for pairs in [1, 4, 12, 23] {
        not_offered(
            by(pairs, false, CacheChoices::ByLength),
            &format!("rotary.sets: {pairs} pairs is not supported; expected a multiple of 8 pairs"),
        );
    }
    for pairs in [8, 16, 24] {
        assert_eq!(by(pairs, false, CacheChoices::ByLength), Ok(()), "{pairs}");
    }
    not_offered(
        by(24, true, CacheChoices::ByLength),
        "rotary.sets: angles in parity mode is not supported; expected exact angles",
    );
    wrong(by(8, false, CacheChoices::ByIndex(0)), &format!("rotary.choices: {NULL}"));
    wrong(
        by(8, false, CacheChoices::ByIndex(SOMEWHERE + 2)),
        &format!("rotary.choices: {}", misaligned(SOMEWHERE + 2, 4)),
    );
    assert_eq!(by(8, false, CacheChoices::ByIndex(SOMEWHERE)), Ok(()));
}

#[test]
fn nothing_to_do_needs_no_address_and_no_workspace() {
    let without = |shape: [usize; 4], tokens: NewTokens| {
        workspace(move |p, t| {
            p.cache.pages.as_mut().unwrap().sequences = if tokens == NewTokens::Dense { shape[0] } else { 3 };
            p.cache.pages.as_mut().unwrap().width = 1 << 20;
            p.tokens = tokens;
            set_queries(t, shape);
            for tensor in [&mut t.q, &mut t.out, t.lse.as_mut().unwrap(), &mut p.cache.k, &mut p.cache.v] {
                tensor.address = 0;
            }
            p.cache.pages.as_mut().unwrap().address = 0;
            p.cache.lengths = DeviceLengths::I64(0);
        })
    };
    for shape in [[0, 2, 4, 16], [3, 0, 4, 16], [3, 2, 0, 16]] {
        assert_eq!(without(shape, NewTokens::Dense), Ok(0), "{shape:?}");
    }
    assert_eq!(without([1, 7, 4, 16], packed(0, Starts::I64, 0)), Ok(0));
    wrong(without([3, 2, 4, 16], NewTokens::Dense).map(drop), &format!("cache.k: {NULL}"));
}

#[test]
fn a_workspace_holds_the_parts_of_few_queries_on_many_keys() {
    // Logits of a scale below zero are not for Hopper's kernel, which needs more.
    let workspace = |change: &dyn Fn(&mut Prefill, &mut DecodeTensors)| {
        workspace(|p, t| {
            p.scale = Some(-0.25);
            change(p, t);
        })
    };
    // So many pages of 32 tokens of each sequence, and new tokens.
    let of = |width: usize, length: usize| {
        workspace(&move |p, t| {
            p.cache.pages.as_mut().unwrap().width = width;
            set_queries(t, [3, length, 4, 16]);
        })
    };
    // Of each of 3 · 4 rows a token, 16 dimensions and a log-sum-exp.
    let parts = |count: usize, length: usize| Ok(count * 12 * length * 17 * 4);
    // 512 keys are one part; one token more makes two.
    assert_eq!((of(16, 1), of(17, 1)), (Ok(0), parts(2, 1)));
    assert_eq!(of(64, 2), parts(4, 2));
    // 12 blocks: 21 parts make up to 256, however many keys there are. 24 blocks: 10 parts.
    assert_eq!((of(1 << 12, 128), of(1 << 26, 128)), (parts(21, 128), parts(21, 128)));
    assert_eq!(of(1 << 12, 129), parts(10, 129));
    // 120 blocks: 2 parts; 132 blocks: one.
    assert_eq!((of(1 << 12, 1280), of(1 << 12, 1281)), (parts(2, 1280), Ok(0)));
    // One block: at most 32 parts.
    let one = workspace(&|p, t| {
        let pages = p.cache.pages.as_mut().unwrap();
        (pages.sequences, pages.width) = (1, 1 << 20);
        set_keys(p, [9, 32, 1, 256]);
        set_queries(t, [1, 20, 1, 256]);
    });
    assert_eq!(one, Ok(32 * 20 * 257 * 4));
    // Packed, by the most new tokens that were said; parts are of the whole tensor.
    let packed = |most| {
        workspace(&move |p, t| {
            p.cache.pages.as_mut().unwrap().width = 1 << 12;
            p.tokens = packed(SOMEWHERE, Starts::I32, most);
            set_queries(t, [1, 300, 4, 16]);
        })
    };
    let rows = |count: usize| Ok(count * 4 * 300 * 17 * 4);
    assert_eq!((packed(128), packed(129)), (rows(21), rows(10)));
    // No sequence has more than the tensor: 36 blocks.
    assert_eq!(packed(usize::MAX), rows(7));
}

#[test]
fn a_workspace_holds_what_either_kernel_needs() {
    // 12 blocks of 4,096 pages of 32 tokens: the portable kernel wants 21 parts, Hopper's 11, a counter, and sums.
    let found = workspace(|p, t| {
        p.cache.pages.as_mut().unwrap().width = 1 << 12;
        set_queries(t, [3, 128, 4, 16]);
    });
    let rows = 3 * 128 * 4usize;
    assert_eq!(found, Ok(128 + 144 * 192 * 64 * 4 + (11 * rows * 17 * 4).next_multiple_of(128)));
}

#[test]
fn grids_beyond_31_bits_are_not_offered_and_nothing_overflows() {
    // Contiguous, all sequences in the same place.
    let of = |sequences: usize, keys: usize, length: usize| {
        changed(move |p, t| {
            p.cache.pages = None;
            let layout = Layout::strided([sequences, keys, 2, 16], [0, 0, 16, 1]);
            (p.cache.k.layout, p.cache.v.layout) = (layout, layout);
            set_queries(t, [sequences, length, 4, 16]);
        })
    };
    let refused = |sequences: usize, length: usize| {
        format!(
            "tensors: {sequences} sequences of up to {length} queries and 4 heads is not supported; expected fewer than 2^31 \
             blocks of 128 queries of a head"
        )
    };
    assert_eq!(of((1 << 29) - 1, 1 << 34, 1), Ok(()));
    // More rows than can be merged are no matter where the keys are not divided.
    assert_eq!(of(1 << 28, 1 << 34, 2), Ok(()));
    for (sequences, length) in [(1 << 29, 1), (1 << 30, 1 << 24), (1, 1 << 50), (1 << 30, 1 << 27)] {
        not_offered(of(sequences, 1 << 34, length), &refused(sequences, length));
    }
    not_offered(of((1 << 31) - 1, usize::MAX, 1 << 50), &refused((1 << 31) - 1, 1 << 50));
    not_offered(
        of(1 << 31, 1 << 34, 1),
        "cache: 2147483648 sequences is not supported; expected fewer than 2^31",
    );
    // A table of one row for all.
    not_offered(
        changed(|p, t| {
            let pages = p.cache.pages.as_mut().unwrap();
            (pages.sequences, pages.stride, pages.width) = (1 << 30, 0, 1 << 26);
            set_queries(t, [1 << 30, 200, 4, 16]);
        }),
        &refused(1 << 30, 200),
    );
}

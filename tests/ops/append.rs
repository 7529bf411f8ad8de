//! New tokens into a cache.

use longrope::Error;
use longrope::descriptor::{Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{
    Append, AppendTensors, CacheChoices, CacheRotary, CachedKeys, DeviceLengths, NewTokens, PackedTokens,
    RotaryTensor, Starts,
};
use longrope::scaling::SetChoice;

use crate::{NULL, SOMEWHERE, cache, misaligned, not_offered, parity_sets, sets, tensor, wrong};

/// What `supported` says of an append after a change: 2 new tokens of 3 sequences, 4 query heads over 2 key heads, pages of 32 tokens,
/// all 8 pairs.
fn changed(change: impl FnOnce(&mut Append, &mut AppendTensors)) -> Result<(), Error> {
    let sets = sets(8);
    let choices = CacheChoices::All(SetChoice::Short);
    let mut append = Append {
        cache: cache([9, 32, 2, 16]),
        tokens: NewTokens::Dense,
        rotary: CacheRotary { sets: &sets, pairing: Pairing::HalfSplit, choices },
        keys: CachedKeys::Rotated,
        status: None,
    };
    let keys = tensor(Dtype::Bf16, [3, 2, 2, 16]);
    let q = RotaryTensor::in_place(tensor(Dtype::Bf16, [3, 2, 4, 16]));
    let mut tensors = AppendTensors { q: Some(q), k: keys, v: keys };
    assert_eq!(append.supported(&tensors), Ok(()));
    change(&mut append, &mut tensors);
    append.supported(&tensors)
}

/// The same with so many pairs.
fn with_pairs(pairs: usize, parity: bool) -> Result<(), Error> {
    let sets = if parity { parity_sets(pairs) } else { sets(pairs) };
    let (cache, keys) = (cache([9, 32, 2, 16]), tensor(Dtype::Bf16, [3, 2, 2, 16]));
    let rotary = CacheRotary { sets: &sets, pairing: Pairing::Interleaved, choices: CacheChoices::ByLength };
    let append = Append { cache, tokens: NewTokens::Dense, rotary, keys: CachedKeys::Rotated, status: None };
    append.supported(&AppendTensors { q: None, k: keys, v: keys })
}

fn set_keys(append: &mut Append, shape: [usize; 4]) {
    let [pages, page_size, heads, head_dim] = shape;
    let layout = Layout::bshd(pages, page_size, heads, head_dim);
    (append.cache.k.layout, append.cache.v.layout) = (layout, layout);
}

/// Sets the shapes of the new tokens, `[batch, length, query_heads, head_dim]`, of half as many key heads.
fn set_new(tensors: &mut AppendTensors, [batch, length, heads, head_dim]: [usize; 4]) {
    tensors.q = Some(RotaryTensor::in_place(tensor(Dtype::Bf16, [batch, length, heads, head_dim])));
    tensors.k.layout = Layout::bshd(batch, length, heads / 2, head_dim);
    tensors.v.layout = tensors.k.layout;
}

fn packed(starts: u64, kind: Starts, most: usize) -> NewTokens {
    NewTokens::Packed(PackedTokens { starts, kind, most })
}

#[test]
fn shapes_that_do_not_belong_together_are_named() {
    wrong(
        changed(|_, t| set_new(t, [4, 2, 4, 16])),
        "k.batch: 4 is not valid; expected 3, the sequences of the cache",
    );
    wrong(
        changed(|a, _| a.cache.pages = None),
        "k.batch: 3 is not valid; expected 9, the sequences of the cache",
    );
    wrong(
        changed(|a, _| a.tokens = packed(SOMEWHERE, Starts::I32, 2)),
        "k.batch: 3 is not valid; expected 1, since the new tokens are packed",
    );
    wrong(
        changed(|a, _| set_keys(a, [9, 32, 2, 24])),
        "cache.k.head_dim: 24 is not valid; expected 16, as k",
    );
    wrong(
        changed(|a, _| a.cache.v.layout = Layout::bshd(9, 32, 1, 16)),
        "cache.v: shape [9, 32, 1, 16] is not valid; expected [9, 32, 2, 16], as k",
    );
    for heads in [1, 4] {
        wrong(
            changed(|a, _| set_keys(a, [9, 32, heads, 16])),
            &format!("k.heads: 2 is not valid; expected {heads}, as cache.k"),
        );
    }
    wrong(
        changed(|_, t| t.v.layout = Layout::bshd(3, 1, 2, 16)),
        "v: shape [3, 1, 2, 16] is not valid; expected [3, 2, 2, 16], as k",
    );
    wrong(
        changed(|_, t| t.q = Some(RotaryTensor::in_place(tensor(Dtype::Bf16, [3, 1, 4, 16])))),
        "q.input: shape [3, 1, 4, 16] is not valid; expected [3, 2, 4, 16], as k but for its heads",
    );
    wrong(
        changed(|_, t| t.q.as_mut().unwrap().output.layout = Layout::bshd(3, 2, 5, 16)),
        "q.output: shape [3, 2, 5, 16] is not valid; expected [3, 2, 4, 16], as its input",
    );
    wrong(changed(|_, t| set_new(t, [3, 2, 4, 0])), "k.head_dim: 0 is not valid; expected at least 1");
    // Queries may have any number of heads, or not be there.
    let heads = |heads| RotaryTensor::in_place(tensor(Dtype::Bf16, [3, 2, heads, 16]));
    assert_eq!(changed(|_, t| t.q = Some(heads(5))), Ok(()));
    assert_eq!(changed(|_, t| t.q = None), Ok(()));
}

#[test]
fn types_that_do_not_belong_together_are_named() {
    wrong(
        changed(|a, _| a.cache.k.dtype = Dtype::F16),
        "cache.k.dtype: F16 is not valid; expected Bf16, as k",
    );
    wrong(
        changed(|a, _| a.cache.v.dtype = Dtype::F32),
        "cache.v.dtype: F32 is not valid; expected Bf16, as k",
    );
    wrong(changed(|_, t| t.v.dtype = Dtype::F16), "v.dtype: F16 is not valid; expected Bf16, as k");
    wrong(
        changed(|_, t| t.q.as_mut().unwrap().input.dtype = Dtype::F32),
        "q.input.dtype: F32 is not valid; expected Bf16, as k",
    );
    wrong(
        changed(|_, t| t.q.as_mut().unwrap().output.dtype = Dtype::F16),
        "q.output.dtype: F16 is not valid; expected Bf16, as k",
    );
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    type Set = fn(&mut Append, &mut AppendTensors, u64);
    let addresses: [(&str, u64, Set); 12] = [
        ("q.input", 2, |_, t, x| t.q.as_mut().unwrap().input.address = x),
        ("q.output", 2, |_, t, x| t.q.as_mut().unwrap().output.address = x),
        ("k", 2, |_, t, x| t.k.address = x),
        ("v", 2, |_, t, x| t.v.address = x),
        ("cache.k", 2, |a, _, x| a.cache.k.address = x),
        ("cache.v", 2, |a, _, x| a.cache.v.address = x),
        ("cache.pages", 4, |a, _, x| a.cache.pages.as_mut().unwrap().address = x),
        ("cache.lengths", 4, |a, _, x| a.cache.lengths = DeviceLengths::I32(x)),
        ("cache.lengths", 8, |a, _, x| a.cache.lengths = DeviceLengths::I64(x)),
        ("rotary.choices", 4, |a, _, x| a.rotary.choices = CacheChoices::ByIndex(x)),
        ("status", 4, |a, _, x| a.status = Some(x)),
        ("tokens.starts", 8, |a, t, x| {
            set_new(t, [1, 6, 4, 16]);
            a.tokens = packed(x, Starts::I64, 2);
        }),
    ];
    for (name, size, set) in addresses {
        wrong(changed(|a, t| set(a, t, 0)), &format!("{name}: {NULL}"));
        let odd = SOMEWHERE + size / 2;
        wrong(changed(|a, t| set(a, t, odd)), &format!("{name}: {}", misaligned(odd, size)));
        assert_eq!(changed(|a, t| set(a, t, 2 * SOMEWHERE)), Ok(()), "{name}");
    }
}

#[test]
fn what_is_written_does_not_overlap_itself() {
    type Set = fn(&mut Append, &mut AppendTensors, [i64; 4]);
    let fields: [(&str, [usize; 4], Set); 3] = [
        ("q.output", [3, 2, 4, 16], |_, t, x| {
            t.q.as_mut().unwrap().output.layout = Layout::strided([3, 2, 4, 16], x);
        }),
        ("cache.k", [9, 32, 2, 16], |a, _, x| a.cache.k.layout = Layout::strided([9, 32, 2, 16], x)),
        ("cache.v", [9, 32, 2, 16], |a, _, x| a.cache.v.layout = Layout::strided([9, 32, 2, 16], x)),
    ];
    for (name, shape, set) in fields {
        wrong(
            changed(|a, t| set(a, t, [0, 64, 16, 1])),
            &format!(
                "{name}: shape {shape:?} with strides [0, 64, 16, 1], where elements overlap is not valid; expected an output \
                 whose elements are distinct"
            ),
        );
    }
    // What is only read may.
    assert_eq!(changed(|_, t| t.k.layout = Layout::strided([3, 2, 2, 16], [0, 0, 0, 1])), Ok(()));
}

#[test]
fn pairs_are_at_most_half_of_the_head_dimension() {
    for pairs in [0, 9, 128] {
        wrong(
            with_pairs(pairs, false),
            &format!("rotary.sets: {pairs} pairs is not valid; expected 1 to 8, half of the head dimension"),
        );
    }
    for pairs in [1, 7, 8] {
        assert_eq!((with_pairs(pairs, false), with_pairs(pairs, true)), (Ok(()), Ok(())), "{pairs}");
    }
}

#[test]
fn tables_are_neither_reversed_nor_beyond_48_bits() {
    let stride = |stride| changed(move |a, _| a.cache.pages.as_mut().unwrap().stride = stride);
    for below in [-1, i64::MIN] {
        wrong(stride(below), &format!("cache.pages.stride: {below} is not valid; expected at least 0"));
    }
    let most = (1 << 48) / 3;
    assert_eq!((stride(0), stride(most)), (Ok(()), Ok(())));
    for beyond in [most + 1, i64::MAX] {
        not_offered(
            stride(beyond),
            &format!(
                "cache.pages.stride: {beyond} is not supported; expected a table of at most 2^48 ids, of 3 sequences"
            ),
        );
    }
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all = |dtype| {
        changed(move |a, t| {
            let q = t.q.as_mut().unwrap();
            for tensor in [&mut a.cache.k, &mut a.cache.v, &mut t.k, &mut t.v, &mut q.input, &mut q.output] {
                tensor.dtype = dtype;
            }
        })
    };
    not_offered(all(Dtype::F32), "k.dtype: F32 is not supported; expected F16 or Bf16");
    assert_eq!(all(Dtype::F16), Ok(()));
    let head_dim = |dim| {
        changed(move |a, t| {
            set_keys(a, [9, 32, 2, dim]);
            set_new(t, [3, 2, 4, dim]);
        })
    };
    for dim in [20, 36, 264] {
        not_offered(
            head_dim(dim),
            &format!("k.head_dim: {dim} is not supported; expected a multiple of 8 up to 256"),
        );
    }
    assert_eq!((head_dim(16), head_dim(72), head_dim(256)), (Ok(()), Ok(()), Ok(())));
    let page = |size| changed(move |a, _| set_keys(a, [9, size, 2, 16]));
    for size in [8, 24, 272] {
        not_offered(
            page(size),
            &format!(
                "cache.k.length: {size} is not supported; expected pages of a multiple of 16 tokens up to 256"
            ),
        );
    }
    assert_eq!((page(16), page(256)), (Ok(()), Ok(())));
    // Rows of a cache are moved by 16 bytes; those of new tokens need not be.
    type Set = fn(&mut Append, &mut AppendTensors, DeviceTensor);
    let shifted = DeviceTensor { address: SOMEWHERE + 8, ..cache([9, 32, 2, 16]).k };
    let caches: [(&str, Set); 2] =
        [("cache.k", |a, _, x| a.cache.k = x), ("cache.v", |a, _, x| a.cache.v = x)];
    for (name, set) in caches {
        not_offered(
            changed(|a, t| set(a, t, shifted)),
            &format!(
                "{name}: address 0x1008 with strides [1024, 32, 16, 1] is not supported; expected a head dimension of stride 1 \
                 and rows at multiples of 16 bytes"
            ),
        );
    }
    assert_eq!(changed(|_, t| t.k.layout = Layout::strided([3, 2, 2, 16], [2, 6, 16, 33])), Ok(()));
}

#[test]
fn numbers_beyond_31_bits_are_not_offered() {
    let tokens = |total| {
        changed(move |a, t| {
            set_new(t, [1, total, 4, 16]);
            a.tokens = packed(SOMEWHERE, Starts::I64, 2);
        })
    };
    assert_eq!(tokens(1 << 30), Ok(()));
    let beyond = 1 << 50;
    not_offered(
        tokens(beyond),
        &format!("tensors: {beyond} tokens is not supported; expected fewer than 2^31 tokens"),
    );
    not_offered(
        changed(|a, t| {
            a.cache.pages.as_mut().unwrap().sequences = 1 << 31;
            set_new(t, [1 << 31, 2, 4, 16]);
        }),
        "cache: 2147483648 sequences is not supported; expected fewer than 2^31",
    );
    let heads = (1 << 20) + 1;
    not_offered(
        changed(|_, t| t.q = Some(RotaryTensor::in_place(tensor(Dtype::Bf16, [3, 2, heads, 16])))),
        &format!("q.heads: {heads} is not supported; expected at most 2^20 heads"),
    );
}

#[test]
fn nothing_to_do_needs_no_address() {
    let none = |sequences: usize, length: usize, tokens: Option<NewTokens>| {
        changed(move |a, t| {
            a.cache.pages.as_mut().unwrap().sequences = sequences;
            set_new(t, [if tokens.is_some() { 1 } else { sequences }, length, 4, 16]);
            a.tokens = tokens.unwrap_or(NewTokens::Dense);
            let q = t.q.as_mut().unwrap();
            for tensor in [&mut a.cache.k, &mut a.cache.v, &mut t.k, &mut t.v, &mut q.input, &mut q.output] {
                tensor.address = 0;
            }
            a.cache.pages.as_mut().unwrap().address = 0;
            a.cache.lengths = DeviceLengths::I64(0);
        })
    };
    assert_eq!(none(0, 2, None), Ok(()));
    assert_eq!(none(3, 0, None), Ok(()));
    assert_eq!(none(3, 5, Some(packed(0, Starts::I32, 0))), Ok(()));
    wrong(none(3, 5, Some(packed(SOMEWHERE, Starts::I32, 1))), &format!("cache.k: {NULL}"));
}

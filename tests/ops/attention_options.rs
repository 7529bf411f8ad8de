//! What attention needs beside its tensors, and what its options ask for.

use longrope::descriptor::{Layout, Pairing};
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, CacheChoices, CacheRotary, Carry, Packed};
use longrope::scaling::FactorSets;

use crate::attention::{PACKED, SHAPE, packed, right, shaped};
use crate::{SOMEWHERE, not_offered, parity_sets, sets, tensor, wrong};

/// The workspace after a change.
fn workspace(change: impl FnOnce(&mut Attention, &mut AttentionTensors)) -> usize {
    let (mut attention, mut tensors) = right();
    change(&mut attention, &mut tensors);
    attention.workspace_size(&tensors).unwrap()
}

/// Gives all tensors a head dimension, and keys and values a length.
fn resize(tensors: &mut AttentionTensors, keys: usize, head_dim: usize) {
    let AttentionTensors { q, k, v, out, .. } = tensors;
    for tensor in [q, k, v, out] {
        *tensor = shaped(*tensor, 3, head_dim);
    }
    for tensor in [&mut tensors.k, &mut tensors.v] {
        *tensor = shaped(*tensor, 1, keys);
    }
}

/// Gives queries so many sequences, of which each is 4 blocks, and keys and values too.
fn repeat(tensors: &mut AttentionTensors, batch: usize) {
    let AttentionTensors { q, k, v, out, lse } = tensors;
    for tensor in [q, k, v, out].into_iter().chain(lse) {
        *tensor = shaped(*tensor, 0, batch);
    }
}

/// A counter; and beyond 4,096 keys an f32 for each row and padded dimension of 144 blocks.
#[test]
fn a_workspace_holds_a_counter_and_the_sums_of_many_keys() {
    // As many blocks as multiprocessors: the keys stay whole.
    let of = |keys, head_dim| workspace(|_, t| (resize(t, keys, head_dim), repeat(t, 33)).1);
    for head_dim in [8, 64, 72, 128, 136, 256] {
        for keys in [0, 1, 7, 4095, 4096] {
            assert_eq!(of(keys, head_dim), 128, "{keys} keys, head dimension {head_dim}");
        }
    }
    for (head_dim, rows, padded) in
        [(8, 192, 64), (64, 192, 64), (72, 128, 128), (128, 128, 128), (136, 128, 256), (256, 128, 256)]
    {
        for keys in [4097, 1 << 19, 1 << 29] {
            let what = format!("{keys} keys, head dimension {head_dim}");
            assert_eq!(of(keys, head_dim), 128 + 144 * rows * padded * 4, "{what}");
        }
    }
    // Of packed sequences it is the tensors' keys that count, whatever the sequences are.
    let (attention, mut tensors) = packed(PACKED);
    resize(&mut tensors, 4097, 128);
    let parts = 2 * 20 * (128 + 1) * 4usize;
    assert_eq!(
        attention.workspace_size(&tensors),
        Ok(128 + 144 * 128 * 128 * 4 + parts.next_multiple_of(128))
    );
    // Without queries there is nothing to launch.
    let (attention, tensors) = packed(Packed { count: 0, ..PACKED });
    assert_eq!(attention.workspace_size(&tensors), Ok(0));
}

#[test]
fn a_workspace_holds_the_parts_of_keys_that_few_queries_divide() {
    // 8 blocks of 40 rows: 17 times as many are a bit more than two rounds, 33 times two, and what has 512 keys is not divided.
    for (keys, parts) in [(1023, 1), (1024, 2), (4096, 8), (1 << 20, 33)] {
        let sums = if keys > 4096 { 144 * 128 * 128 * 4 } else { 0 };
        let part = if parts > 1 { parts * 40 * (128 + 1) * 4usize } else { 0 };
        let expected = 128 + sums + part.next_multiple_of(128);
        assert_eq!(workspace(|_, t| resize(t, keys, 128)), expected, "{keys} keys");
    }
    // Of three packed sequences, 12 blocks: as if each had a third of the keys. There are 5 rows of 4 heads of them all.
    let (attention, mut tensors) = packed(PACKED);
    resize(&mut tensors, 3 * 1024, 128);
    assert_eq!(
        attention.workspace_size(&tensors),
        Ok(128 + (2 * 20 * (128 + 1) * 4usize).next_multiple_of(128))
    );
}

fn rotary(sets: &FactorSets) -> CacheRotary<'_> {
    CacheRotary { sets, pairing: Pairing::HalfSplit, choices: CacheChoices::ByLength }
}

#[test]
fn queries_to_rotate_need_no_more_memory_but_hopper_s_kernel() {
    let sets = sets(8);
    let (attention, tensors) = right();
    let attention = Attention { query_rotary: Some(rotary(&sets)), ..attention };
    assert_eq!(attention.workspace_size(&tensors), Ok(128));
    let off = AttentionTensors { k: DeviceTensor { address: SOMEWHERE + 2, ..tensors.k }, ..tensors };
    not_offered(
        attention.supported(&off),
        "query_rotary: a rotation is not supported; expected none, since Hopper's kernel is not there or does not take these \
         tensors",
    );
    let limited = Attention { max_multiprocessors: Some(7), query_rotary: None, ..attention };
    assert_eq!(limited.supported(&tensors), Ok(()));
    not_offered(
        limited.supported(&off),
        "max_multiprocessors: 7 is not supported; expected none, since Hopper's kernel is not there or does not take these \
         tensors",
    );
}

#[test]
fn options_that_mean_nothing_are_named() {
    let (attention, tensors) = right();
    let said = |attention: Attention| attention.supported(&tensors);
    wrong(
        said(Attention { max_multiprocessors: Some(0), ..attention }),
        "max_multiprocessors: 0 is not valid; expected at least 1",
    );
    let many = sets(9);
    wrong(
        said(Attention { query_rotary: Some(rotary(&many)), ..attention }),
        "query_rotary.sets: 9 pairs is not valid; expected 1 to 8, half of the head dimension",
    );
    let odd = sets(7);
    not_offered(
        said(Attention { query_rotary: Some(rotary(&odd)), ..attention }),
        "query_rotary.sets: 7 pairs is not supported; expected an even number of pairs",
    );
    let parity = parity_sets(8);
    not_offered(
        said(Attention { query_rotary: Some(rotary(&parity)), ..attention }),
        "query_rotary.sets: angles in parity mode is not supported; expected exact angles",
    );
    let good = Carry { out: tensor(Dtype::F32, SHAPE), lse: tensor(Dtype::F32, [2, 5, 4, 1]) };
    let carried = |change: fn(&mut Carry)| {
        let mut carry = good;
        change(&mut carry);
        said(Attention { carry: Some(carry), ..attention })
    };
    assert_eq!(carried(|_| ()), Ok(()));
    wrong(carried(|c| c.out.dtype = Dtype::Bf16), "carry.out.dtype: Bf16 is not valid; expected F32");
    wrong(
        carried(|c| c.out = tensor(Dtype::F32, [2, 5, 4, 8])),
        "carry.out: shape [2, 5, 4, 8] is not valid; expected [2, 5, 4, 16], as q",
    );
    wrong(
        carried(|c| c.out.address = 0),
        "carry.out: a null address is not valid; expected the address of an element",
    );
    wrong(
        carried(|c| c.lse = tensor(Dtype::F32, [2, 5, 2, 1])),
        "carry.lse: shape [2, 5, 2, 1] is not valid; expected [2, 5, 4, 1], a number for each row of q",
    );
}

#[test]
fn what_hopper_s_kernel_does_not_take_needs_no_workspace() {
    let many = |t: &mut AttentionTensors| resize(t, 5000, 128);
    let strided = |tensor: DeviceTensor, strides| DeviceTensor {
        layout: Layout::strided(tensor.layout.shape(), strides),
        ..tensor
    };
    // Elements apart, a row's bytes no multiple of 16, an address that is none, and a stride of 2^40 bytes.
    for strides in [[2_560_000, 512, 256, 2], [1_300_000, 260, 130, 1], [1 << 39, 256, 128, 1]] {
        assert_eq!(workspace(|_, t| (many(t), t.k = strided(t.k, strides)).1), 0, "{strides:?}");
    }
    assert_eq!(workspace(|_, t| (many(t), t.v.address += 2).1), 0);
    assert_eq!(workspace(|_, t| (many(t), t.out.address += 8).1), 0);
    // Backwards.
    assert_eq!(workspace(|_, t| (many(t), t.k = strided(t.k, [1_280_000, -256, 128, 1])).1), 0);
    assert_eq!(workspace(|a, t| (many(t), a.attention.scale = Some(-0.125)).1), 0);
    assert_ne!(workspace(|a, t| (many(t), a.attention.scale = Some(0.0)).1), 0);
    assert_ne!(workspace(|_, t| resize(t, 1 << 30, 128)), 0);
    assert_eq!(workspace(|_, t| resize(t, (1 << 30) + 1, 128)), 0);
}

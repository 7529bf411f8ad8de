//! What each operation has of its own.

use std::ptr::{null, null_mut};

use super::{ALL, APPEND, ATTEND, Arguments, DECODE, PREFILL, SOMEWHERE, changed, refused, taken};
use crate::abi::{DecodeTensors, Status::Unsupported};
use crate::api::NONE;

#[test]
fn what_is_wrong_with_an_append_is_named() {
    refused(
        &[APPEND],
        |all| all.append.cached_keys = 2,
        "desc.cached_keys: 2 is not valid; expected LONGROPE_CACHED_KEYS_ROTATED (0) or LONGROPE_CACHED_KEYS_UNROTATED (1)",
    );
    let odd = SOMEWHERE.wrapping_byte_add(2).cast();
    refused(
        &[APPEND],
        |all| all.append.status = odd,
        "desc.status: address 0x1002 is not valid; expected a multiple of 4",
    );
    refused(
        &[APPEND],
        |all| all.fresh.k.shape[2] = 3,
        "tensors.k.shape[2]: 3 is not valid; expected 2, as cache.k",
    );
    refused(
        &[APPEND],
        |all| all.fresh.v.shape[1] = 1,
        "tensors.v: shape [3, 1, 2, 16] is not valid; expected [3, 2, 2, 16]",
    );
    refused(&[APPEND], |all| all.fresh.v.dtype = 2, "tensors.v.dtype: F16 is not valid; expected Bf16, as k");
    refused(
        &[APPEND],
        |all| all.fresh.q.input.shape[1] = 1,
        "tensors.q.input: shape [3, 1, 4, 16] is not valid",
    );
    refused(&[APPEND], |all| all.fresh.q.input.dtype = 7, "tensors.q.input.dtype: 7 is not valid");
    refused(
        &[APPEND],
        |all| all.fresh.q.output.dtype = 3,
        "tensors.q.output: shape [0, 0, 0, 0] is not valid",
    );
    // An output alone was meant.
    let output_alone =
        |all: &mut Arguments| (all.fresh.q.output, all.fresh.q.input) = (all.fresh.q.input, NONE);
    refused(&[APPEND], output_alone, "tensors.q.input.dtype: 0 is not valid");
    taken(&[APPEND], |all| all.fresh.q.input = NONE);
    let many = |all: &mut Arguments| all.fresh.q.input.shape[2] = (1 << 20) + 1;
    let start = "tensors.q.input.shape[2]: 1048577 is not supported; expected at most 2^20 heads";
    changed(&[APPEND], many, Unsupported, start);
}

#[test]
fn what_is_wrong_with_attention_over_a_cache_is_named() {
    let odd = SOMEWHERE.wrapping_byte_add(2).cast();
    refused(
        &ATTEND,
        |all| (all.decode.status, all.prefill.status) = (odd, odd),
        "desc.status: address 0x1002 is not valid; expected a multiple of 4",
    );
    refused(
        &ATTEND,
        |all| (all.decode.window, all.prefill.window) = (-1, -1),
        "desc.window: -1 is not valid; expected 0 or more",
    );
    refused(
        &ATTEND,
        |all| (all.decode.scale, all.prefill.scale) = (f32::NAN, f32::NAN),
        "desc.scale: NaN is not valid; expected a finite number",
    );
    let start = "desc.splits: -1 is not valid; expected 0 (blocks of equal work) or 1 to 1024 parts";
    refused(&[DECODE], |all| all.decode.splits = -1, start);
    refused(
        &[DECODE],
        |all| all.decode.splits = 1025,
        "desc.splits: 1025 is not valid; expected 1 to 1024 parts",
    );
    taken(&[DECODE], |all| all.decode.splits = 1024);
    refused(
        &[DECODE],
        |all| all.decode.flags = 2,
        "desc.flags: 2 is not valid; expected 0 or LONGROPE_DECODE_SETTLED (1)",
    );
    taken(&[DECODE], |all| all.decode.flags = 1);
    refused(
        &ATTEND,
        |all| all.tensors.out.shape[2] = 2,
        "tensors.out: shape [3, 2, 2, 16] is not valid; expected",
    );
    refused(
        &ATTEND,
        |all| all.tensors.out.dtype = 2,
        "tensors.out.dtype: F16 is not valid; expected Bf16, as q, or F32",
    );
    taken(&ATTEND, |all| all.tensors.out.dtype = 1);
    refused(&ATTEND, |all| all.tensors.lse.dtype = 3, "tensors.lse.dtype: Bf16 is not valid; expected F32");
    taken(&ATTEND, |all| all.tensors.lse = NONE);
    let heads = |all: &mut Arguments| all.tensors.q.shape[2] = 3;
    refused(
        &ATTEND,
        heads,
        "cache.k.shape[2]: 2 is not valid; expected a divisor of the number of query heads (3)",
    );
    let wide = |all: &mut Arguments| {
        let (DecodeTensors { q, out, .. }, cache) = (&mut all.tensors, &mut all.cache);
        [q, out, &mut cache.k, &mut cache.v].into_iter().for_each(|tensor| tensor.shape[3] = 264);
    };
    let start = "tensors.q.shape[3]: 264 is not supported; expected a multiple of 8 up to 256";
    changed(&ATTEND, wide, Unsupported, start);
    let longer = |all: &mut Arguments, length| {
        let DecodeTensors { q, out, lse } = &mut all.tensors;
        [q, out, lse].into_iter().for_each(|tensor| tensor.shape[1] = length);
    };
    let start = "tensors.q.shape[1]: 17 is not supported; expected at most 16 new tokens";
    changed(&[DECODE], |all| longer(all, 17), Unsupported, start);
    taken(&[PREFILL], |all| longer(all, 17));
    let start = "tensors: 3 sequences of up to 1099511627776 queries and 4 heads is not supported; expected fewer than 2^31 blocks of 128 queries of a head";
    changed(&[PREFILL], |all| longer(all, 1 << 40), Unsupported, start);
}

#[test]
fn without_tokens_or_sequences_no_address_is_needed() {
    taken(&ALL, |all| {
        all.cache.sequences = 0;
        (all.cache.page_table, all.cache.lengths) = (null(), null());
        let Arguments { fresh, tensors, .. } = all;
        let (q, DecodeTensors { q: queries, out, lse }) = (&mut fresh.q.input, tensors);
        for tensor in [q, &mut fresh.k, &mut fresh.v, queries, out, lse] {
            (tensor.data, tensor.shape[0]) = (null_mut(), 0);
        }
    });
}

//! The cache, the rotation and the new tokens, which the operations share.

use std::ptr::null;

use super::{
    ALL, APPEND, ATTEND, Arguments, DECODE, NEW, PREFILL, REROTATE, SOMEWHERE, changed, packed, refused,
    taken, tensor,
};
use crate::abi::{Dtype, Frequencies, KvCache, NewTokens, Status::Unsupported};
use crate::api::{Sets, frequencies};

#[test]
fn a_cache_out_of_range_is_named_by_its_field() {
    refused(
        &ALL,
        |all| all.cache.page_kind = 2,
        "cache.page_kind: 2 is not valid; expected LONGROPE_PAGES_NONE (0) or LONGROPE_PAGES_TABLE (1)",
    );
    refused(
        &ALL,
        |all| all.cache.flags = 4,
        "cache.flags: 4 is not valid; expected 0, since no flag is defined",
    );
    refused(
        &ALL,
        |all| all.cache.length_bits = 16,
        "cache.length_bits: 16 is not valid; expected 32 (or 0) or 64",
    );
    taken(&ALL, |all| all.cache.length_bits = 32);
    for (bits, size) in [(0, 4), (64, 8)] {
        let odd = SOMEWHERE.wrapping_byte_add(size / 2);
        let start = format!("cache.lengths: address {odd:?} is not valid; expected a multiple of {size}");
        refused(&ALL, |all| (all.cache.length_bits, all.cache.lengths) = (bits, odd), &start);
    }
    refused(
        &ALL,
        |all| all.cache.page_table = SOMEWHERE.wrapping_byte_add(2).cast(),
        "cache.page_table: address 0x1002 is not valid; expected a multiple of 4",
    );
    refused(&ALL, |all| all.cache.sequences = -3, "cache.sequences: -3 is not valid; expected 0 or more");
    refused(&ALL, |all| all.cache.table_width = -1, "cache.table_width: -1 is not valid; expected 0 or more");
    refused(
        &ALL,
        |all| all.cache.table_stride = -1,
        "cache.table_stride: -1 is not valid; expected at least 0",
    );
    type Change = fn(&mut KvCache);
    let unused: [(&str, Change); 4] = [
        ("page_table", |cache| cache.page_table = SOMEWHERE.cast()),
        ("sequences", |cache| cache.sequences = 3),
        ("table_width", |cache| cache.table_width = 4),
        ("table_stride", |cache| cache.table_stride = 4),
    ];
    let contiguous = |all: &mut Arguments| {
        let rows = tensor([3, 40, 2, 16], Dtype::Bf16);
        all.cache = KvCache {
            page_kind: 0,
            k: rows,
            v: rows,
            page_table: null(),
            sequences: 0,
            table_width: 0,
            ..all.cache
        };
    };
    taken(&ALL, contiguous);
    for (name, change) in unused {
        let start = format!(
            "cache.{name}: a value is not valid; expected zero, since LONGROPE_PAGES_NONE does not read it"
        );
        refused(
            &ALL,
            |all| {
                contiguous(all);
                change(&mut all.cache);
            },
            &start,
        );
    }
    refused(
        &ALL,
        |all| all.cache.k.dtype = 0,
        "cache.k.dtype: 0 is not valid; expected LONGROPE_DTYPE_F32 (1) or",
    );
    refused(&ALL, |all| all.cache.v.shape[2] = -2, "cache.v.shape[2]: -2 is not valid; expected 0 or more");
    refused(
        &ALL,
        |all| all.cache.v.shape[2] = 1,
        "cache.v: shape [7, 32, 1, 16] is not valid; expected [7, 32, 2, 16]",
    );
    refused(&NEW, |all| all.cache.k.shape[3] = 8, "cache.k.shape[3]: 8 is not valid; expected 16, as");
    refused(
        &[APPEND, REROTATE],
        |all| all.cache.k.stride = [1024, 16, 16, 1],
        "cache.k: shape [7, 32, 2, 16] with strides [1024, 16, 16, 1], where elements overlap is not valid",
    );
    let page = |all: &mut Arguments, size| (all.cache.k.shape[1], all.cache.v.shape[1]) = (size, size);
    for size in [24, 272] {
        let start =
            format!("cache.k.shape[1]: {size} is not supported; expected pages of a multiple of 16 tokens");
        changed(&ALL, |all| page(all, size), Unsupported, &start);
    }
    let start = "cache.table_width: 134217728 is not supported; expected at most 2^31 tokens of a sequence";
    changed(&ALL, |all| all.cache.table_width = 1 << 27, Unsupported, start);
    let start = "cache.table_stride: 140737488355328 is not supported; expected a table of at most 2^48 ids";
    changed(&ALL, |all| all.cache.table_stride = 1 << 47, Unsupported, start);
    changed(
        &ALL,
        |all| all.cache.k.stride = [2048, 32, 1024, 2],
        Unsupported,
        "cache.k: address 0x1000 with strides [2048, 32, 1024, 2] is not supported; expected a head dimension of stride 1",
    );
}

#[test]
fn rotations_have_the_fields_of_their_kind_and_no_others() {
    let start = "desc.rotary.pairing: 2 is not valid; expected LONGROPE_PAIRING_HALF_SPLIT (0) or";
    refused(&ALL, |all| all.rotary.pairing = 2, start);
    refused(&ALL, |all| all.rotary.flags = 1, "desc.rotary.flags: 1 is not valid; expected 0");
    refused(
        &ALL,
        |all| all.rotary.choice_kind = 5,
        "desc.rotary.choice_kind: 5 is not valid; expected LONGROPE_CHOICES_",
    );
    refused(
        &ALL,
        |all| all.rotary.choice_length = -1,
        "desc.rotary.choice_length: -1 is not valid; expected 0 or more",
    );
    taken(&ALL, |all| all.rotary.choice_length = 5000);
    for kind in 1..=4 {
        refused(
            &ALL,
            |all| (all.rotary.choice_kind, all.rotary.choice_length) = (kind, 7),
            "desc.rotary.choice_length: a value is not valid; expected zero, since this choice_kind does not read it",
        );
    }
    for kind in 0..=3 {
        refused(
            &ALL,
            |all| (all.rotary.choice_kind, all.rotary.choices) = (kind, SOMEWHERE),
            "desc.rotary.choices: a value is not valid; expected zero, since this choice_kind does not read it",
        );
        taken(&ALL, |all| all.rotary.choice_kind = kind);
    }
    refused(&ALL, |all| all.rotary.choice_kind = 4, "desc.rotary.choices: a null address is not valid");
    taken(&ALL, |all| (all.rotary.choice_kind, all.rotary.choices) = (4, SOMEWHERE));
    let odd = SOMEWHERE.wrapping_byte_add(2);
    let start = "desc.rotary.choices: address 0x1002 is not valid; expected a multiple of 4";
    refused(&ALL, |all| (all.rotary.choice_kind, all.rotary.choices) = (4, odd), start);

    let start = "desc.from.pairing: Interleaved is not valid; expected HalfSplit, as to.pairing";
    refused(&[REROTATE], |all| all.from.pairing = 1, start);
    refused(&[REROTATE], |all| all.rerotate.flags = 2, "desc.flags: 2 is not valid; expected 0");
    // Of other numbers of pairs, and in parity mode.
    let of = |pairs: usize, angles| {
        let given = frequencies(&[0.5f64; 12][..pairs]);
        Sets::from_frequencies(&Frequencies { angles, ..given }).ok().unwrap()
    };
    let (nine, six, parity) = (of(9, 0), of(6, 0), of(8, 1));
    let start = "desc.rotary.sets: 9 pairs is not valid; expected 1 to 8, half of the head dimension";
    refused(&ALL, |all| all.rotary.sets = nine.0, start);
    refused(
        &[REROTATE],
        |all| all.from.sets = six.0,
        "desc.from.sets: 6 pairs is not valid; expected 8, as to.sets",
    );
    let start = "desc.rotary.sets: 6 pairs is not supported; expected a multiple of 8 pairs";
    changed(&ATTEND, |all| all.rotary.sets = six.0, Unsupported, start);
    taken(&[APPEND], |all| all.rotary.sets = six.0);
    let start = "desc.rotary.sets: angles in parity mode is not supported; expected exact angles";
    changed(&[DECODE, PREFILL, REROTATE], |all| all.rotary.sets = parity.0, Unsupported, start);
    taken(&[APPEND], |all| all.rotary.sets = parity.0);
}

#[test]
fn new_tokens_have_the_fields_of_their_kind_and_no_others() {
    type Change = fn(&mut NewTokens);
    let wrong = |of_packed: bool, change: Change, start: &str| {
        let change = |all: &mut Arguments| {
            if of_packed {
                packed(all);
            }
            change(&mut all.append.tokens);
            change(&mut all.decode.tokens);
            change(&mut all.prefill.tokens);
        };
        refused(&NEW, change, start);
    };
    let unused: [(&str, Change); 3] = [
        ("index_bits", |tokens| tokens.index_bits = 32),
        ("starts", |tokens| tokens.starts = SOMEWHERE),
        ("most", |tokens| tokens.most = 1),
    ];
    for (name, change) in unused {
        let start = format!(
            "desc.tokens.{name}: a value is not valid; expected zero, since LONGROPE_SEQUENCES_DENSE does not read it"
        );
        wrong(false, change, &start);
    }
    let kinds = "desc.tokens.sequence_kind: -1 is not valid; expected LONGROPE_SEQUENCES_DENSE (0) or";
    wrong(false, |tokens| tokens.sequence_kind = -1, kinds);
    taken(&NEW, packed);
    let bits = "desc.tokens.index_bits: 8 is not valid; expected 32 (or 0) or 64";
    wrong(true, |tokens| tokens.index_bits = 8, bits);
    wrong(true, |tokens| tokens.most = -1, "desc.tokens.most: -1 is not valid; expected 0 or more");
    wrong(true, |tokens| tokens.starts = null(), "desc.tokens.starts: a null address is not valid");
    let aligned = "desc.tokens.starts: address 0x1004 is not valid; expected a multiple of 8";
    wrong(true, |tokens| (tokens.index_bits, tokens.starts) = (64, SOMEWHERE.wrapping_byte_add(4)), aligned);
    // 5 rows are fewer than there may be: 0 is as many as there are.
    let most = |all: &mut Arguments, most| {
        packed(all);
        let Arguments { append, decode, prefill, .. } = all;
        (append.tokens.most, decode.tokens.most, prefill.tokens.most) = (most, most, most);
    };
    taken(&NEW, |all| most(all, 0));
    let start = "desc.tokens.most: 17 is not supported; expected at most 16 new tokens of a sequence";
    changed(&[DECODE], |all| most(all, 17), Unsupported, start);
    taken(&[APPEND, PREFILL], |all| most(all, 17));
    refused(
        &[APPEND],
        |all| all.cache.sequences = 4,
        "tensors.k.shape[0]: 3 is not valid; expected 4, the sequences of",
    );
    refused(
        &ATTEND,
        |all| all.cache.sequences = 4,
        "tensors.q.shape[0]: 3 is not valid; expected 4, the sequences of",
    );
}

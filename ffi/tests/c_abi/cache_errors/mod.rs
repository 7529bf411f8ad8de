//! Every way to be wrong about an operation on a cache: its status, and a message that names the argument as C does.

mod fields;
mod operations;

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use crate::abi::{
    AppendDesc, AppendTensors, CacheRotaryDesc, DecodeDesc, DecodeTensors, Dtype, KvCache, NewTokens,
    PrefillDesc, RerotateCacheDesc, Status, Tensor, TensorIo,
};
use crate::api::{self, IN_PLACE, Sets, api, frequencies, message, status};

use Status::InvalidArgument as Invalid;

/// An address that is aligned for everything, and is never read.
const SOMEWHERE: *mut c_void = std::ptr::without_provenance_mut(0x1000);

fn tensor(shape: [i64; 4], dtype: Dtype) -> Tensor {
    Tensor { dtype: dtype as i32, ..api::tensor(SOMEWHERE.cast(), shape) }
}

/// Arguments of every operation on one cache.
struct Arguments {
    cache: KvCache,
    append: AppendDesc,
    fresh: AppendTensors,
    decode: DecodeDesc,
    prefill: PrefillDesc,
    /// Of both.
    tensors: DecodeTensors,
    rerotate: RerotateCacheDesc,
    /// That of all of them, which the descriptors point to; of the re-rotation, `to`.
    rotary: Box<CacheRotaryDesc>,
    from: Box<CacheRotaryDesc>,
    _sets: [Sets; 2],
}

/// What is right: 2 new tokens of each of 3 sequences, 4 query heads over 2 key heads, pages.
fn right() -> Arguments {
    let sets =
        [0.5, 0.25].map(|frequency| Sets::from_frequencies(&frequencies(&[frequency; 8])).ok().unwrap());
    let [rotary, from] = [&sets[0], &sets[1]].map(|sets| {
        Box::new(CacheRotaryDesc {
            struct_size: size_of::<CacheRotaryDesc>() as u32,
            pairing: 0,
            choice_kind: 0,
            flags: 0,
            sets: sets.0,
            choice_length: 0,
            choices: null(),
        })
    });
    let tokens = NewTokens { sequence_kind: 0, index_bits: 0, starts: null(), most: 0 };
    let (queries, keys) = (tensor([3, 2, 4, 16], Dtype::Bf16), tensor([3, 2, 2, 16], Dtype::Bf16));
    let pages = tensor([7, 32, 2, 16], Dtype::Bf16);
    Arguments {
        cache: KvCache {
            struct_size: size_of::<KvCache>() as u32,
            page_kind: 1,
            length_bits: 0,
            flags: 0,
            k: pages,
            v: pages,
            lengths: SOMEWHERE,
            page_table: SOMEWHERE.cast(),
            sequences: 3,
            table_width: 4,
            table_stride: 0,
        },
        append: AppendDesc {
            struct_size: size_of::<AppendDesc>() as u32,
            cached_keys: 0,
            tokens,
            rotary: &raw const *rotary,
            status: null_mut(),
        },
        fresh: AppendTensors { q: TensorIo { input: queries, output: IN_PLACE }, k: keys, v: keys },
        decode: DecodeDesc {
            struct_size: size_of::<DecodeDesc>() as u32,
            splits: 0,
            scale: 0.0,
            flags: 0,
            window: 0,
            tokens,
            rotary: &raw const *rotary,
            status: null_mut(),
        },
        prefill: PrefillDesc {
            struct_size: size_of::<PrefillDesc>() as u32,
            scale: 0.0,
            window: 0,
            tokens,
            rotary: &raw const *rotary,
            status: null_mut(),
        },
        tensors: DecodeTensors { q: queries, out: queries, lse: tensor([3, 2, 4, 1], Dtype::F32) },
        rerotate: RerotateCacheDesc {
            struct_size: size_of::<RerotateCacheDesc>() as u32,
            flags: 0,
            to: &raw const *rotary,
            from: &raw const *from,
            status: null_mut(),
        },
        rotary,
        from,
        _sets: sets,
    }
}

fn answer(found: i32) -> (Status, String) {
    (status(found), if found == 0 { String::new() } else { message() })
}

type Ask = fn(&Arguments) -> (Status, String);

/// What `_supported` says, and that `_workspace_size` says the same.
fn both(supported: i32, size: impl FnOnce(*mut usize) -> i32) -> (Status, String) {
    let supported = answer(supported);
    let mut bytes = usize::MAX;
    assert_eq!(answer(size(&mut bytes)), supported);
    assert_eq!(bytes == usize::MAX, supported.0 != Status::Ok);
    supported
}

const APPEND: Ask = |Arguments { append, cache, fresh, .. }| {
    // SAFETY: the tests give pointers that are null or right.
    both(unsafe { (api().append_supported)(append, cache, fresh) }, |bytes| unsafe {
        (api().append_workspace_size)(append, cache, fresh, bytes)
    })
};
const DECODE: Ask = |Arguments { decode, cache, tensors, .. }| {
    // SAFETY: as above.
    both(unsafe { (api().decode_supported)(decode, cache, tensors) }, |bytes| unsafe {
        (api().decode_workspace_size)(decode, cache, tensors, bytes)
    })
};
const PREFILL: Ask = |Arguments { prefill, cache, tensors, .. }| {
    // SAFETY: as above.
    both(unsafe { (api().prefill_supported)(prefill, cache, tensors) }, |bytes| unsafe {
        (api().prefill_workspace_size)(prefill, cache, tensors, bytes)
    })
};
const REROTATE: Ask = |Arguments { rerotate, cache, .. }| {
    // SAFETY: as above.
    both(unsafe { (api().rerotate_cache_supported)(rerotate, cache) }, |bytes| unsafe {
        (api().rerotate_cache_workspace_size)(rerotate, cache, bytes)
    })
};
const ALL: [Ask; 4] = [APPEND, DECODE, PREFILL, REROTATE];
/// Those of new tokens.
const NEW: [Ask; 3] = [APPEND, DECODE, PREFILL];
/// Those that attend.
const ATTEND: [Ask; 2] = [DECODE, PREFILL];

/// Arguments that are right but for one change.
#[track_caller]
fn changed(ops: &[Ask], change: impl Fn(&mut Arguments), expected: Status, start: &str) {
    for op in ops {
        let mut arguments = right();
        assert_eq!(op(&arguments), (Status::Ok, String::new()));
        change(&mut arguments);
        let (found, message) = op(&arguments);
        assert_eq!(found, expected, "{message}");
        // What the others call `rotary`.
        let message = message.replace("desc.to.", "desc.rotary.").replace("desc.to:", "desc.rotary:");
        assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
    }
}

#[track_caller]
fn refused(ops: &[Ask], change: impl Fn(&mut Arguments), start: &str) {
    changed(ops, change, Invalid, start);
}

#[track_caller]
fn taken(ops: &[Ask], change: impl Fn(&mut Arguments)) {
    changed(ops, change, Status::Ok, "");
}

/// New tokens one sequence after the other.
fn packed(arguments: &mut Arguments) {
    let tokens = NewTokens { sequence_kind: 1, index_bits: 0, starts: SOMEWHERE, most: 2 };
    let Arguments { append, decode, prefill, fresh, tensors, .. } = arguments;
    (append.tokens, decode.tokens, prefill.tokens) = (tokens, tokens, tokens);
    let all =
        [&mut fresh.q.input, &mut fresh.k, &mut fresh.v, &mut tensors.q, &mut tensors.out, &mut tensors.lse];
    all.into_iter().for_each(|tensor| (tensor.shape[0], tensor.shape[1]) = (1, 5));
}

#[test]
fn null_pointers_are_named() {
    let Arguments { append, decode, prefill, rerotate, cache, fresh, tensors, .. } = &right();
    let null_of =
        |name: &str| (Invalid, format!("{name}: NULL is not valid; expected a pointer to the struct"));
    // SAFETY: pointers are null or right; nothing runs without a context.
    unsafe {
        let api = api();
        assert_eq!(answer((api.append_supported)(null(), cache, fresh)), null_of("desc"));
        assert_eq!(answer((api.append_supported)(append, null(), fresh)), null_of("cache"));
        assert_eq!(answer((api.append_supported)(append, cache, null())), null_of("tensors"));
        assert_eq!(answer((api.decode_supported)(null(), cache, tensors)), null_of("desc"));
        assert_eq!(answer((api.decode_supported)(decode, null(), tensors)), null_of("cache"));
        assert_eq!(answer((api.decode_supported)(decode, cache, null())), null_of("tensors"));
        assert_eq!(answer((api.prefill_supported)(null(), cache, tensors)), null_of("desc"));
        assert_eq!(answer((api.prefill_supported)(prefill, null(), tensors)), null_of("cache"));
        assert_eq!(answer((api.prefill_supported)(prefill, cache, null())), null_of("tensors"));
        assert_eq!(answer((api.rerotate_cache_supported)(null(), cache)), null_of("desc"));
        assert_eq!(answer((api.rerotate_cache_supported)(rerotate, null())), null_of("cache"));
        for found in [
            (api.append_workspace_size)(append, cache, fresh, null_mut()),
            (api.decode_workspace_size)(decode, cache, tensors, null_mut()),
            (api.prefill_workspace_size)(prefill, cache, tensors, null_mut()),
            (api.rerotate_cache_workspace_size)(rerotate, cache, null_mut()),
        ] {
            let expected = "bytes: NULL is not valid; expected where to put the size".to_owned();
            assert_eq!((status(found), message()), (Invalid, expected));
        }
        let stream = null_mut();
        for call in [
            &|| (api.append_run)(null(), append, cache, fresh, stream) as i32,
            &|| (api.append_validate)(null(), append, cache, fresh, stream),
            &|| (api.decode_run)(null(), decode, cache, tensors, null_mut(), 0, stream),
            &|| (api.decode_validate)(null(), decode, cache, tensors, stream),
            &|| (api.prefill_run)(null(), prefill, cache, tensors, null_mut(), 0, stream),
            &|| (api.prefill_validate)(null(), prefill, cache, tensors, stream),
            &|| (api.rerotate_cache_run)(null(), rerotate, cache, stream),
            &|| (api.rerotate_cache_validate)(null(), rerotate, cache, stream),
        ] as [&dyn Fn() -> i32; 8]
        {
            let (found, message) = answer(call());
            assert_eq!(found, Invalid);
            assert!(
                message.starts_with("context: NULL is not valid; expected a context made by"),
                "{message}"
            );
        }
    }
    let rotary = "desc.rotary: NULL is not valid; expected a pointer to the struct";
    refused(&[APPEND], |all| all.append.rotary = null(), rotary);
    refused(&[REROTATE], |all| all.rerotate.to = null(), rotary);
    refused(
        &[REROTATE],
        |all| all.rerotate.from = null(),
        "desc.from: NULL is not valid; expected a pointer",
    );
    // Keys that are rotated already.
    taken(&ATTEND, |all| (all.decode.rotary, all.prefill.rotary) = (null(), null()));
    refused(
        &ALL,
        |all| all.rotary.sets = null(),
        "desc.rotary.sets: NULL is not valid; expected factor sets made by",
    );
    refused(
        &[REROTATE],
        |all| all.from.sets = null(),
        "desc.from.sets: NULL is not valid; expected factor sets",
    );
    refused(&ALL, |all| all.cache.k.data = null_mut(), "cache.k: a null address is not valid");
    refused(&ALL, |all| all.cache.v.data = null_mut(), "cache.v: a null address is not valid");
    refused(&ALL, |all| all.cache.lengths = null(), "cache.lengths: a null address is not valid");
    refused(&ALL, |all| all.cache.page_table = null(), "cache.page_table: a null address is not valid");
    refused(
        &[APPEND],
        |all| all.fresh.q.input.data = null_mut(),
        "tensors.q.input: a null address is not valid",
    );
    refused(&[APPEND], |all| all.fresh.k.data = null_mut(), "tensors.k: a null address is not valid");
    refused(&[APPEND], |all| all.fresh.v.data = null_mut(), "tensors.v: a null address is not valid");
    refused(&ATTEND, |all| all.tensors.q.data = null_mut(), "tensors.q: a null address is not valid");
    refused(&ATTEND, |all| all.tensors.out.data = null_mut(), "tensors.out: a null address is not valid");
    refused(&ATTEND, |all| all.tensors.lse.data = null_mut(), "tensors.lse: a null address is not valid");
}

#[test]
fn the_size_of_each_struct_is_checked() {
    let too_small = |size: u32, ops: &[Ask], change: fn(&mut Arguments) -> &mut u32, name: &str| {
        let start = format!(
            "{name}.struct_size: {} is not valid; expected the sizeof of the struct, at least {size}",
            size - 1
        );
        refused(ops, |all| *change(all) = size - 1, &start);
        // A longer one, of a later version, is read as far as it is known: the rest of it is not looked at.
        taken(ops, |all| *change(all) = size + 64);
    };
    too_small(216, &ALL, |all| &mut all.cache.struct_size, "cache");
    too_small(48, &[APPEND], |all| &mut all.append.struct_size, "desc");
    too_small(64, &[DECODE], |all| &mut all.decode.struct_size, "desc");
    too_small(56, &[PREFILL], |all| &mut all.prefill.struct_size, "desc");
    too_small(32, &[REROTATE], |all| &mut all.rerotate.struct_size, "desc");
    too_small(40, &ALL, |all| &mut all.rotary.struct_size, "desc.rotary");
    too_small(40, &[REROTATE], |all| &mut all.from.struct_size, "desc.from");
}

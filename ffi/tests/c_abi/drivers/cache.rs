//! The operations on a cache, on a made-up driver.

use super::{Driver, GOOD, driver, launch};
use crate::api::api;

/// The beginning is the same on every GPU: only prefill over keys as they lie has a kernel of Hopper's.
const ALL_BUT_PREFILL: &str = "\
sets: 0
others: 0
driver: cuLibraryLoadData an image
driver: cuKernelGetFunction
create: 0
driver: cuLaunchKernel longrope_append_b on stream 0x77
driver:   kernel longrope_append_bf16_vector_half_split
driver:   cache k 0x20000 v 0x28000, 2 pages of 64, 2 heads
driver:   k 8192 128 64 1
driver:   v 8192 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 64, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver:   rotary: choices 2 (nil) pairs 16 interleaved 0 parity 0
driver:   rotary steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.25 1.25 original 4096 first 0
driver:   q 0x10000 to 0x40000, k 0x10300 v 0x10400
driver:   q 1920 640 64 1
driver:   q to 1152 384 64 1
driver:   k 1920 640 64 1
driver:   v 1920 640 64 1
driver:   6 query heads, head_dim 64, unrotated 0 status 0x4000
append: 0
driver: cuLaunchKernel longrope_append_b on stream (nil)
driver:   kernel longrope_append_bf16_vector_interleaved
driver:   cache k 0x30000 v 0x38000, 12 pages of 16, 2 heads
driver:   k 2048 64 1024 1
driver:   v 2048 128 64 1
driver:   table 0x3000 by 5, 2 sequences of up to 80, lengths 0x2000 wide 1
driver:   tokens: at most 2 of 3, starts 0x5000 wide 1
driver:   rotary: choices 3 0x6000 pairs 16 interleaved 1 parity 0
driver:   rotary steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.25 1.25 original 4096 first 0
driver:   q (nil) to (nil), k 0x10300 v 0x10400
driver:   q 0 0 0 0
driver:   q to 0 0 0 0
driver:   k 1920 640 64 1
driver:   v 1920 640 64 1
driver:   0 query heads, head_dim 64, unrotated 1 status (nil)
append packed: 0
size: 0
2396160 bytes
driver: cuLaunchKernel longrope_decode_d on stream 0x77
driver:   kernel longrope_decode_d64_bf16_r32, 8 blocks
driver:   cache k 0x20000 v 0x28000, 2 pages of 64, 2 heads
driver:   k 8192 128 64 1
driver:   v 8192 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 64, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver:   q 0x10000 out 0x50000 f32 1
driver:   q 1920 640 64 1
driver:   out 1152 64 192 1
driver:   lse 0x60000 by 18 1 3
driver:   window 0 splits 0 parts 0x100000 scale 0.125 negated 0 status (nil)
driver:   6 heads, groups of 3, head_dim 64
driver: cuLaunchKernel longrope_decode_m on stream 0x77
driver:   kernel longrope_decode_merge_bf16, 36 blocks
decode: 0
size: 0
18720 bytes
driver: cuLaunchKernel longrope_decode_r on stream (nil)
driver:   kernel longrope_decode_rotating_d64_bf16_r8, 12 blocks
driver:   cache k 0x30000 v 0x38000, 12 pages of 16, 2 heads
driver:   k 2048 64 1024 1
driver:   v 2048 128 64 1
driver:   table 0x3000 by 8, 2 sequences of up to 80, lengths 0x2000 wide 1
driver:   tokens: at most 2 of 3, starts 0x5000 wide 0
driver:   rotary: choices 3 0x6000 pairs 16 interleaved 1 parity 0
driver:   rotary steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.25 1.25 original 4096 first 0
driver:   q 0x10000 out 0x50000 f32 0
driver:   q 1920 640 64 1
driver:   out 1152 64 192 1
driver:   lse (nil) by 0 0 0
driver:   window 40 splits 3 parts 0x100000 scale 0.25 negated 1 status 0x4000
driver:   6 heads, groups of 3, head_dim 64
driver: cuLaunchKernel longrope_decode_m on stream (nil)
driver:   kernel longrope_decode_merge_bf16, 24 blocks
decode rotating: 0
small: 1 workspace_bytes: 18719 is not valid; expected at least the 18720 that workspace_size says
misaligned: 1 workspace: address 0x100008 is not valid; expected a multiple of 16
driver: cuLaunchKernel longrope_cache_re on stream 0x78
driver:   kernel longrope_cache_rerotate_bf16_vector_interleaved
driver:   cache k 0x30000 v 0x38000, 12 pages of 16, 2 heads
driver:   k 2048 64 1024 1
driver:   v 2048 128 64 1
driver:   table 0x3000 by 8, 2 sequences of up to 80, lengths 0x2000 wide 1
driver:   from: choices 1 (nil) pairs 16 interleaved 1 parity 0
driver:   from steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.5 1.5 original 4096 first 0
driver:   to: choices 3 0x6000 pairs 16 interleaved 1 parity 0
driver:   to steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.25 1.25 original 4096 first 0
driver:   same sets 0 head_dim 64 status 0x4000
rerotate: 0
failing: 9 cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)
failing: 9 cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)
failing: 9 cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)
empty: 0
empty: 0
empty: 0
size: 0
0 bytes
driver: cuLaunchKernel longrope_attentio on stream (nil)
driver:   kernel longrope_attention_cached_rotating_d64_bf16, 24 blocks
driver:   cache k 0x30000 v 0x38000, 12 pages of 16, 2 heads
driver:   k 2048 64 1024 1
driver:   v 2048 128 64 1
driver:   table 0x3000 by 8, 2 sequences of up to 80, lengths 0x2000 wide 1
driver:   tokens: at most 130 of 200, starts 0x5000 wide 0
driver:   rotary: choices 3 0x6000 pairs 16 interleaved 1 parity 0
driver:   rotary steps 28be60db9391054a 145f306dc9c882a5 0a2f9836e4e44153 gains 1 1.25 1.25 original 4096 first 0
driver:   q 0x10000 out 0x50000 f32 0
driver:   q 1920 640 64 1
driver:   out 76800 384 64 1
driver:   lse (nil) by 0 0 0
driver:   window 40 splits 1 of 1 batches, scale 0.25 negated 1 status 0x4000
driver:   6 heads, groups of 3, head_dim 64
prefill rotating: 0
size: 0
28080 bytes
";

/// Prefill of few queries over many keys, on a GPU of any kind.
const PORTABLE_PREFILL: &str = "\
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   kernel longrope_attention_cached_d64_bf16, 36 blocks
driver:   cache k 0x20000 v 0x28000, 2 pages of 1100, 2 heads
driver:   k 140800 128 64 1
driver:   v 140800 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 1100, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver:   q 0x10000 out 0x100000 f32 1
driver:   q 1920 640 64 1
driver:   out 1152 384 64 1
driver:   lse 0x106c00 by 18 6 1
driver:   window 0 splits 3 of 2 batches, scale 0.125 negated 0 status (nil)
driver:   6 heads, groups of 3, head_dim 64
driver: cuLaunchKernel longrope_split_me on stream 0x77
driver:   kernel longrope_split_merge_f32, 5 blocks
driver:   cache k 0x20000 v 0x28000, 2 pages of 1100, 2 heads
driver:   k 140800 128 64 1
driver:   v 140800 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 1100, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver:   3 parts 0x100000 by 2304, lse 0x106c00 by 36
driver:   parts 1152 384 64 1
driver:   their lse 0x106c00 by 18 6 1
driver:   out 0x50000
driver:   out 1152 64 192 1
driver:   lse 0x60000 by 18 1 3
driver:   batch 2 length 3 heads 6 head_dim 64
";

/// The maps of its tensors, which Hopper's kernel has.
const MAPS: &str = "\
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 3 6 2 by 1280 128 3840, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 1100 2 2 by 256 128 281600, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x28000 type 9, 64 1100 2 2 by 256 128 281600, boxes of 64 128 1 1
";

/// And what is told to that kernel beside, and to the merge of the parts, which are fewer.
const HOPPER_PREFILL: &str = "\
driver: cuMemsetD32Async 0x100000 to 0, 1 times, on stream 0x77
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   kernel longrope_attention_sm90_d64_bf16, 4 blocks for 24 items, drawn 0x100000 sums 0x100080
driver:   maps of 0x10000 0x20000 0x28000
driver:   q 0x10000 k (nil) v (nil) out 0x100080
driver:   q 1920 640 64 1
driver:   k 0 0 0 0
driver:   v 0 0 0 0
driver:   out 1152 384 64 1
driver:   lse 0x104880 by 18 6 1
driver:   2 sequences of kind 0, 3 queries, 0 keys, starts (nil) (nil) wide 0
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 1 window 0 from 0 ((nil)) and 0 status (nil)
driver:   scale 0.125 negated 0
driver:   2 parts of 2 batches
driver:   cache k 0x20000 v 0x28000, 2 pages of 1100, 2 heads
driver:   k 140800 128 64 1
driver:   v 140800 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 1100, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver: cuLaunchKernel longrope_split_me on stream 0x77
driver:   kernel longrope_split_merge_f32, 5 blocks
driver:   cache k 0x20000 v 0x28000, 2 pages of 1100, 2 heads
driver:   k 140800 128 64 1
driver:   v 140800 128 64 1
driver:   table (nil) by 0, 2 sequences of up to 1100, lengths 0x1000 wide 0
driver:   tokens: at most 3 of 3, starts (nil) wide 0
driver:   2 parts 0x100080 by 2304, lse 0x104880 by 36
driver:   parts 1152 384 64 1
driver:   their lse 0x104880 by 18 6 1
driver:   out 0x50000
driver:   out 1152 64 192 1
driver:   lse 0x60000 by 18 1 3
driver:   batch 2 length 3 heads 6 head_dim 64
";

#[test]
fn the_operations_on_a_cache_are_launched_as_their_descriptors_say() {
    let on_hopper = launch("tests/c_abi/launch_cache.c", driver(GOOD).path());
    // SAFETY: no arguments.
    if unsafe { (api().has_device_code)() } == 0 {
        assert!(on_hopper.contains("create: 4 this build has no device code"), "{on_hopper}");
        return;
    }
    let expected = |maps: &str, prefill: &str, failing: &str| {
        format!(
            "{ALL_BUT_PREFILL}{maps}{prefill}\
prefill: 0
small: 1 workspace_bytes: 28079 is not valid; expected at least the 28080 that workspace_size says
misaligned: 1 workspace: address 0x100008 is not valid; expected a multiple of 16
{maps}failing: 9 {failing}: CUDA_ERROR_ILLEGAL_ADDRESS (700)
empty: 0
driver: cuLibraryUnload the last image
"
        )
    };
    assert_eq!(on_hopper, expected(MAPS, HOPPER_PREFILL, "cuMemsetD32Async"));
    let elsewhere = driver(Driver { capability: (8, 0), ..GOOD });
    let elsewhere = launch("tests/c_abi/launch_cache.c", elsewhere.path());
    assert_eq!(elsewhere, expected("", PORTABLE_PREFILL, "cuLaunchKernel"));
}

#[test]
fn a_validation_names_the_first_bad_entry_on_the_device() {
    let text = launch("tests/c_abi/validate_cache.c", driver(GOOD).path());
    // SAFETY: no arguments.
    if unsafe { (api().has_device_code)() } == 0 {
        assert!(text.contains("create: 4 this build has no device code"), "{text}");
        return;
    }
    let expected = "\
sets: 0
driver: cuLibraryLoadData an image
driver: cuKernelGetFunction
create: 0
right
  append: 0
  decode: 0
  prefill: 0
  rerotate: 0
a length beyond the cache
  append: 1 cache.lengths[2]: 49 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  decode: 1 cache.lengths[2]: 49 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  prefill: 1 cache.lengths[2]: 49 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  rerotate: 1 cache.lengths[2]: 49 is not valid; expected 0 to 48 (what the cache holds of a sequence)
a length below its new tokens
  append: 1 cache.lengths[2]: 1 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  decode: 1 cache.lengths[2]: 1 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  prefill: 1 cache.lengths[2]: 1 is not valid; expected 0, or 2 (its new tokens) to 48 (what the cache holds of a sequence)
  rerotate: 0
a set that is none
  append: 1 desc.rotary.choices[2]: 2 is not valid; expected 0 (short) or 1 (long)
  decode: 1 desc.rotary.choices[2]: 2 is not valid; expected 0 (short) or 1 (long)
  prefill: 1 desc.rotary.choices[2]: 2 is not valid; expected 0 (short) or 1 (long)
  rerotate: 1 desc.from.choices[2]: 2 is not valid; expected 0 (short) or 1 (long)
a page that is none
  append: 0
  decode: 1 cache.page_table[2][0]: 5 is not valid; expected 0 to 4, a page of the cache
  prefill: 1 cache.page_table[2][0]: 5 is not valid; expected 0 to 4, a page of the cache
  rerotate: 1 cache.page_table[2][0]: 5 is not valid; expected 0 to 4, a page of the cache
the same, out of sight
  append: 0
  decode: 0
  prefill: 0
  rerotate: 1 cache.page_table[2][0]: 5 is not valid; expected 0 to 4, a page of the cache
starts beyond the tensors
  append: 1 desc.tokens.starts[1]: 4 is not valid; expected 0 to 3: starts rise, and end within the tensors
  decode: 1 desc.tokens.starts[1]: 4 is not valid; expected 0 to 3: starts rise, and end within the tensors
  prefill: 1 desc.tokens.starts[1]: 4 is not valid; expected 0 to 3: starts rise, and end within the tensors
  rerotate: 0
too many new tokens
  append: 1 desc.tokens.starts[1]: 3 is not valid; expected at most 2: 0 and the most new tokens
  decode: 1 desc.tokens.starts[1]: 3 is not valid; expected at most 2: 0 and the most new tokens
  prefill: 1 desc.tokens.starts[1]: 3 is not valid; expected at most 2: 0 and the most new tokens
  rerotate: 0
a driver that fails
  append: 9 cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS (700)
  decode: 9 cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS (700)
  prefill: 9 cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS (700)
  rerotate: 9 cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS (700)
driver: cuLibraryUnload the last image
";
    assert_eq!(text, expected);
}

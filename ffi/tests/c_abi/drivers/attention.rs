//! Attention and the merge, on a made-up driver.

use super::{Driver, GOOD, driver, launch};
use crate::api::api;

#[test]
fn attention_and_merge_are_launched_as_their_descriptors_say() {
    let text = launch("tests/c_abi/launch_attention.c", driver(GOOD).path());
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
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   q 0x10000 k 0x20000 v 0x30000 out 0x40000
driver:   q 1920 384 64 1
driver:   k 2560 128 64 1
driver:   v 1152 64 576 1
driver:   out 1920 64 320 1
driver:   lse 0x50000 by 30 1 5
driver:   2 sequences of kind 0, 5 queries, 9 keys, starts (nil) (nil) wide 0
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 1 window 4 from 1000 (0x1000) and -7 status 0x2000
driver:   scale 0.25 negated 1
dense: 0
size: 0
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 5 6 2 by 768 128 3840, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 9 2 2 by 256 128 5120, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x30000 type 9, 64 9 2 2 by 128 1152 2304, boxes of 64 128 1 1
driver: cuMemsetD32Async 0x100 to 0, 1 times, on stream 0x77
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   kernel longrope_attention_sm90_d64_bf16, 4 blocks for 12 items, drawn 0x100 sums 0x180
driver:   maps of 0x10000 0x20000 0x30000
driver:   q 0x10000 k 0x20000 v 0x30000 out 0x40000
driver:   q 1920 384 64 1
driver:   k 2560 128 64 1
driver:   v 1152 64 576 1
driver:   out 1920 64 320 1
driver:   lse 0x50000 by 30 1 5
driver:   2 sequences of kind 0, 5 queries, 9 keys, starts (nil) (nil) wide 0
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 0 window 0 from 0 ((nil)) and 0 status (nil)
driver:   scale 0.125 negated 0
driver:   carry 0x40000
driver:   carry 1920 64 320 1
driver:   its lse 0x50000 by 30 1 5
carry: 0
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 5 6 2 by 768 128 3840, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 9 2 2 by 256 128 5120, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x30000 type 9, 64 9 2 2 by 128 1152 2304, boxes of 64 128 1 1
driver: cuMemsetD32Async 0x100 to 0, 1 times, on stream 0x77
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   kernel longrope_attention_sm90_d64_bf16, 2 blocks for 12 items, drawn 0x100 sums 0x180
driver:   maps of 0x10000 0x20000 0x30000
driver:   q 0x10000 k 0x20000 v 0x30000 out 0x40000
driver:   q 1920 384 64 1
driver:   k 2560 128 64 1
driver:   v 1152 64 576 1
driver:   out 1920 64 320 1
driver:   lse 0x50000 by 30 1 5
driver:   2 sequences of kind 0, 5 queries, 9 keys, starts (nil) (nil) wide 0
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 0 window 0 from 0 ((nil)) and 0 status (nil)
driver:   scale 0.125 negated 0
driver:   carry 0x40000
driver:   carry 1920 64 320 1
driver:   its lse 0x50000 by 30 1 5
limit: 0
size: 0
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 5 6 2 by 768 128 3840, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 9 2 2 by 256 128 5120, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x30000 type 9, 64 9 2 2 by 128 1152 2304, boxes of 64 128 1 1
driver: cuMemsetD32Async 0x100 to 0, 1 times, on stream 0x77
driver: cuLaunchKernel longrope_attentio on stream 0x77
driver:   kernel longrope_attention_sm90_d64_bf16, 4 blocks for 12 items, drawn 0x100 sums 0x180
driver:   maps of 0x10000 0x20000 0x30000
driver:   q 0x10000 k 0x20000 v 0x30000 out 0x40000
driver:   q 1920 384 64 1
driver:   k 2560 128 64 1
driver:   v 1152 64 576 1
driver:   out 1920 64 320 1
driver:   lse 0x50000 by 30 1 5
driver:   2 sequences of kind 0, 5 queries, 9 keys, starts (nil) (nil) wide 0
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 0 window 0 from 0 ((nil)) and 0 status (nil)
driver:   scale 0.125 negated 0
driver:   carry 0x40000
driver:   carry 1920 64 320 1
driver:   its lse 0x50000 by 30 1 5
driver:   queries: choices 1 (nil) pairs 2 interleaved 0 parity 0
driver:   queries steps 28be60db9391054a 28be60db9391054a 28be60db9391054a gains 1 1 1 original 9223372036854775807 first 0
rotary: 0
size: 0
bytes: 128
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 5 6 1 by 768 128 16, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 9 2 1 by 256 128 16, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x30000 type 9, 64 9 2 1 by 128 1152 16, boxes of 64 128 1 1
driver: cuMemsetD32Async 0x100 to 0, 1 times, on stream (nil)
driver: cuLaunchKernel longrope_attentio on stream (nil)
driver:   kernel longrope_attention_sm90_d64_bf16, 4 blocks for 18 items, drawn 0x100 sums 0x180
driver:   maps of 0x10000 0x20000 0x30000
driver:   q 0x10000 k 0x20000 v 0x30000 out 0x40000
driver:   q 1920 384 64 1
driver:   k 2560 128 64 1
driver:   v 1152 64 576 1
driver:   out 1920 64 320 1
driver:   lse (nil) by 0 0 0
driver:   3 sequences of kind 1, 5 queries, 9 keys, starts 0x3000 0x4000 wide 1
driver:   6 heads, groups of 3, head_dim 64, out_is_f32 1
driver:   causal 0 window 0 from 0 ((nil)) and 0 status (nil)
driver:   scale 0.125 negated 0
packed: 0
small: 1 workspace_bytes: 127 is not valid; expected at least the 128 that workspace_size says
none: 1 workspace: a null address is not valid; expected the address of 128 bytes
misaligned: 1 workspace: address 0x108 is not valid; expected a multiple of 16
driver: cuLaunchKernel longrope_merge_f1 on stream 0x78
driver:   3 parts 0x40000 by 100000, lse 0x50000 by -1000
driver:   parts 1920 64 320 1
driver:   their lse 0x50000 by 30 1 5
driver:   out 0x60000
driver:   out 1920 384 64 1
driver:   lse 0x70000 by 30 6 1
driver:   batch 2 length 5 heads 6 head_dim 64
merge: 0
driver: cuLaunchKernel longrope_merge_f1 on stream (nil)
driver:   0 parts (nil) by 100000, lse (nil) by -1000
driver:   parts 1920 64 320 1
driver:   their lse (nil) by 30 1 5
driver:   out 0x60000
driver:   out 1920 384 64 1
driver:   lse (nil) by 0 0 0
driver:   batch 2 length 5 heads 6 head_dim 64
merge: 0
driver: cuTensorMapEncodeTiled 0x10000 type 9, 64 5 6 1 by 768 128 16, boxes of 64 192 1 1
driver: cuTensorMapEncodeTiled 0x20000 type 9, 64 9 2 1 by 256 128 16, boxes of 64 128 1 1
driver: cuTensorMapEncodeTiled 0x30000 type 9, 64 9 2 1 by 128 1152 16, boxes of 64 128 1 1
failing: 9 cuMemsetD32Async: CUDA_ERROR_ILLEGAL_ADDRESS (700)
failing: 9 cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)
empty: 0
driver: cuLibraryUnload the last image
";
    assert_eq!(text, expected);

    // What every kernel does is the same elsewhere; what Hopper's alone does is refused where it is not.
    let elsewhere =
        launch("tests/c_abi/launch_attention.c", driver(Driver { capability: (8, 0), ..GOOD }).path());
    let expected =
        "is not supported; expected none, since Hopper's kernel is not there or does not take these tensors";
    let answers: Vec<&str> = elsewhere.lines().filter(|line| !line.starts_with("driver:")).collect();
    let refused = [
        format!("limit: 3 desc.max_multiprocessors: 2 {expected}"),
        format!("rotary: 3 desc.query_rotary: a rotation {expected}"),
    ];
    assert_eq!(answers[4..9], ["carry: 0", &refused[0], "size: 0", &refused[1], "size: 0"]);
    let carried = "driver:   carry 0x40000\ndriver:   carry 1920 64 320 1\ndriver:   its lse 0x50000 by 30 1 5\ncarry: 0\n";
    assert!(elsewhere.contains(carried) && !elsewhere.contains("cuTensorMap"), "{elsewhere}");
}

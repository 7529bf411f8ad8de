//! Made by scripts/generate-params from cuda/include/params_backward.h; do not edit.

use super::*;

#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct longrope_attention_delta_params {
    pub out: *const ::core::ffi::c_void,
    pub d_out: *const ::core::ffi::c_void,
    pub delta: *mut f32,
    pub out_stride: [i64; 4usize],
    pub d_out_stride: [i64; 4usize],
    pub delta_stride: [i64; 3usize],
    pub batch: i64,
    pub length: i64,
    pub heads: i32,
    pub head_dim: i32,
    pub out_is_f32: i32,
    pub lanes: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of longrope_attention_delta_params"]
        [::core::mem::size_of::<longrope_attention_delta_params>() - 144usize];
    ["Alignment of longrope_attention_delta_params"]
        [::core::mem::align_of::<longrope_attention_delta_params>() - 8usize];
    ["Offset of field: longrope_attention_delta_params::out"]
        [::core::mem::offset_of!(longrope_attention_delta_params, out) - 0usize];
    ["Offset of field: longrope_attention_delta_params::d_out"]
        [::core::mem::offset_of!(longrope_attention_delta_params, d_out) - 8usize];
    ["Offset of field: longrope_attention_delta_params::delta"]
        [::core::mem::offset_of!(longrope_attention_delta_params, delta) - 16usize];
    ["Offset of field: longrope_attention_delta_params::out_stride"]
        [::core::mem::offset_of!(longrope_attention_delta_params, out_stride) - 24usize];
    ["Offset of field: longrope_attention_delta_params::d_out_stride"]
        [::core::mem::offset_of!(longrope_attention_delta_params, d_out_stride) - 56usize];
    ["Offset of field: longrope_attention_delta_params::delta_stride"]
        [::core::mem::offset_of!(longrope_attention_delta_params, delta_stride) - 88usize];
    ["Offset of field: longrope_attention_delta_params::batch"]
        [::core::mem::offset_of!(longrope_attention_delta_params, batch) - 112usize];
    ["Offset of field: longrope_attention_delta_params::length"]
        [::core::mem::offset_of!(longrope_attention_delta_params, length) - 120usize];
    ["Offset of field: longrope_attention_delta_params::heads"]
        [::core::mem::offset_of!(longrope_attention_delta_params, heads) - 128usize];
    ["Offset of field: longrope_attention_delta_params::head_dim"]
        [::core::mem::offset_of!(longrope_attention_delta_params, head_dim) - 132usize];
    ["Offset of field: longrope_attention_delta_params::out_is_f32"]
        [::core::mem::offset_of!(longrope_attention_delta_params, out_is_f32) - 136usize];
    ["Offset of field: longrope_attention_delta_params::lanes"]
        [::core::mem::offset_of!(longrope_attention_delta_params, lanes) - 140usize];
};
impl Default for longrope_attention_delta_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct longrope_attention_backward_params {
    pub attention: longrope_attention_params,
    pub d_out: *const ::core::ffi::c_void,
    pub delta: *const f32,
    pub dq: *mut ::core::ffi::c_void,
    pub dk: *mut ::core::ffi::c_void,
    pub dv: *mut ::core::ffi::c_void,
    pub d_out_stride: [i64; 4usize],
    pub delta_stride: [i64; 3usize],
    pub dq_stride: [i64; 4usize],
    pub dk_stride: [i64; 4usize],
    pub dv_stride: [i64; 4usize],
    pub key_blocks: i64,
    pub accumulate: i32,
    pub dq_is_f32: i32,
    pub dk_is_f32: i32,
    pub dv_is_f32: i32,
    pub key_heads: i32,
    pub scale: f32,
    pub rotates: i32,
    pub padding: i32,
    pub rotary: longrope_cache_rotary,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of longrope_attention_backward_params"]
        [::core::mem::size_of::<longrope_attention_backward_params>() - 3768usize];
    ["Alignment of longrope_attention_backward_params"]
        [::core::mem::align_of::<longrope_attention_backward_params>() - 8usize];
    ["Offset of field: longrope_attention_backward_params::attention"]
        [::core::mem::offset_of!(longrope_attention_backward_params, attention) - 0usize];
    ["Offset of field: longrope_attention_backward_params::d_out"]
        [::core::mem::offset_of!(longrope_attention_backward_params, d_out) - 400usize];
    ["Offset of field: longrope_attention_backward_params::delta"]
        [::core::mem::offset_of!(longrope_attention_backward_params, delta) - 408usize];
    ["Offset of field: longrope_attention_backward_params::dq"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dq) - 416usize];
    ["Offset of field: longrope_attention_backward_params::dk"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dk) - 424usize];
    ["Offset of field: longrope_attention_backward_params::dv"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dv) - 432usize];
    ["Offset of field: longrope_attention_backward_params::d_out_stride"]
        [::core::mem::offset_of!(longrope_attention_backward_params, d_out_stride) - 440usize];
    ["Offset of field: longrope_attention_backward_params::delta_stride"]
        [::core::mem::offset_of!(longrope_attention_backward_params, delta_stride) - 472usize];
    ["Offset of field: longrope_attention_backward_params::dq_stride"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dq_stride) - 496usize];
    ["Offset of field: longrope_attention_backward_params::dk_stride"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dk_stride) - 528usize];
    ["Offset of field: longrope_attention_backward_params::dv_stride"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dv_stride) - 560usize];
    ["Offset of field: longrope_attention_backward_params::key_blocks"]
        [::core::mem::offset_of!(longrope_attention_backward_params, key_blocks) - 592usize];
    ["Offset of field: longrope_attention_backward_params::accumulate"]
        [::core::mem::offset_of!(longrope_attention_backward_params, accumulate) - 600usize];
    ["Offset of field: longrope_attention_backward_params::dq_is_f32"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dq_is_f32) - 604usize];
    ["Offset of field: longrope_attention_backward_params::dk_is_f32"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dk_is_f32) - 608usize];
    ["Offset of field: longrope_attention_backward_params::dv_is_f32"]
        [::core::mem::offset_of!(longrope_attention_backward_params, dv_is_f32) - 612usize];
    ["Offset of field: longrope_attention_backward_params::key_heads"]
        [::core::mem::offset_of!(longrope_attention_backward_params, key_heads) - 616usize];
    ["Offset of field: longrope_attention_backward_params::scale"]
        [::core::mem::offset_of!(longrope_attention_backward_params, scale) - 620usize];
    ["Offset of field: longrope_attention_backward_params::rotates"]
        [::core::mem::offset_of!(longrope_attention_backward_params, rotates) - 624usize];
    ["Offset of field: longrope_attention_backward_params::padding"]
        [::core::mem::offset_of!(longrope_attention_backward_params, padding) - 628usize];
    ["Offset of field: longrope_attention_backward_params::rotary"]
        [::core::mem::offset_of!(longrope_attention_backward_params, rotary) - 632usize];
};
impl Default for longrope_attention_backward_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct longrope_attention_backward_sm90_params {
    pub rows: [longrope_tensor_map; 2usize],
    pub columns: [longrope_tensor_map; 2usize],
    pub backward: longrope_attention_backward_params,
    pub drawn: *mut u32,
    pub sums: *mut f32,
    pub items: u32,
    pub sharing: i32,
    pub slab: *mut f32,
    pub slab_tiles: i64,
    pub key_slab: *mut f32,
    pub key_slab_tiles: i64,
    pub turns: *mut u32,
    pub key_turns: *mut u32,
    pub list: *mut ::core::ffi::c_void,
    pub list_blocks: u32,
    pub section_items: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of longrope_attention_backward_sm90_params"]
        [::core::mem::size_of::<longrope_attention_backward_sm90_params>() - 4416usize];
    ["Alignment of longrope_attention_backward_sm90_params"]
        [::core::mem::align_of::<longrope_attention_backward_sm90_params>() - 64usize];
    ["Offset of field: longrope_attention_backward_sm90_params::rows"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, rows) - 0usize];
    ["Offset of field: longrope_attention_backward_sm90_params::columns"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, columns) - 256usize];
    ["Offset of field: longrope_attention_backward_sm90_params::backward"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, backward) - 512usize];
    ["Offset of field: longrope_attention_backward_sm90_params::drawn"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, drawn) - 4280usize];
    ["Offset of field: longrope_attention_backward_sm90_params::sums"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, sums) - 4288usize];
    ["Offset of field: longrope_attention_backward_sm90_params::items"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, items) - 4296usize];
    ["Offset of field: longrope_attention_backward_sm90_params::sharing"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, sharing) - 4300usize];
    ["Offset of field: longrope_attention_backward_sm90_params::slab"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, slab) - 4304usize];
    ["Offset of field: longrope_attention_backward_sm90_params::slab_tiles"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, slab_tiles) - 4312usize];
    ["Offset of field: longrope_attention_backward_sm90_params::key_slab"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, key_slab) - 4320usize];
    ["Offset of field: longrope_attention_backward_sm90_params::key_slab_tiles"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, key_slab_tiles) - 4328usize];
    ["Offset of field: longrope_attention_backward_sm90_params::turns"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, turns) - 4336usize];
    ["Offset of field: longrope_attention_backward_sm90_params::key_turns"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, key_turns) - 4344usize];
    ["Offset of field: longrope_attention_backward_sm90_params::list"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, list) - 4352usize];
    ["Offset of field: longrope_attention_backward_sm90_params::list_blocks"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, list_blocks) - 4360usize];
    ["Offset of field: longrope_attention_backward_sm90_params::section_items"]
        [::core::mem::offset_of!(longrope_attention_backward_sm90_params, section_items) - 4364usize];
};
impl Default for longrope_attention_backward_sm90_params {
    fn default() -> Self {
        let mut s = ::core::mem::MaybeUninit::<Self>::uninit();
        unsafe {
            ::core::ptr::write_bytes(s.as_mut_ptr(), 0, 1);
            s.assume_init()
        }
    }
}

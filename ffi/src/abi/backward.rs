//! The structs of the backward pass of attention.

use std::ffi::c_void;

use super::{CacheRotaryDesc, Tensor};

layout! {
    /// The backward pass of an attention.
    AttentionBackwardDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// 0 or 1.
        causal: i32,
        /// 0: by the head dimension.
        scale: f32,
        /// None is defined.
        flags: u32,
        /// 0: none.
        window: i64,
        /// Position of the first query.
        query_offset: i64,
        /// Position of the first key.
        key_offset: i64,
        /// A [`Sequences`](super::Sequences).
        sequence_kind: i32,
        /// Packed: of the starts; 0 is 32.
        index_bits: i32,
        /// Packed: how many.
        sequences: i64,
        /// Packed: one more than there are sequences.
        query_starts: *const c_void,
        /// As before.
        key_starts: *const c_void,
        /// Packed: 0 is the length of the queries.
        max_query_length: i64,
        /// Added to the first, by sequence; null: nothing.
        query_offsets: *const i64,
        /// Where bits are set.
        status: *mut u32,
        /// 0 or 1.
        accumulate: i32,
        /// 0.
        reserved: i32,
        /// How queries and keys were rotated; null: they were not.
        rotary: *const CacheRotaryDesc,
    }
}

layout! {
    /// What the backward pass of an attention reads and writes.
    AttentionBackwardTensors {
        /// Queries.
        q: Tensor,
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
        /// The output of the forward pass; all zero: none.
        out: Tensor,
        /// Its log-sum-exp.
        lse: Tensor,
        /// The sum of outputs times their gradients; all zero: none.
        delta: Tensor,
        /// The gradient of the output.
        d_out: Tensor,
        /// Of the queries.
        dq: Tensor,
        /// Of the keys.
        dk: Tensor,
        /// Of the values.
        dv: Tensor,
    }
}

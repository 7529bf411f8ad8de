//! The structs and constants of the header, with the same names and in the same order.
//!
//! Nothing else is here: the tests include this file and hold it against what a C compiler makes of the header.

// The tests use all of it, the library most.
#![allow(dead_code)]

use std::ffi::c_void;

use longrope::scaling::FactorSets;

pub use backward::{AttentionBackwardDesc, AttentionBackwardTensors};
pub use cache::{
    AppendDesc, AppendTensors, CacheRotaryDesc, CachedKeys, DecodeDesc, DecodeTensors, KvCache, NewTokens,
    Pages, PrefillDesc, RerotateCacheDesc,
};

/// An enum of the header: its Rust form, its numbers, and their C names.
macro_rules! constants {
    (
        $(#[$doc:meta])*
        $type:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal, $name:literal;)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(i32)]
        pub enum $type {
            $($(#[$value_doc])* $value = $number,)*
        }

        impl $type {
            /// Every value with its C name.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$value, $name)),*];

            /// The value of a number.
            pub fn from_number(number: i32) -> Option<Self> {
                Self::ALL.iter().map(|(value, _)| *value).find(|value| *value as i32 == number)
            }
        }
    };
}

/// A struct of the header, and where its fields lie.
macro_rules! layout {
    (
        $(#[$doc:meta])*
        $type:ident $(<$parameter:ident>)? { $($(#[$field_doc:meta])* $field:ident: $field_type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        #[repr(C)]
        pub struct $type $(<$parameter>)? {
            $($(#[$field_doc])* pub $field: $field_type,)*
        }

        impl $(<$parameter>)? $type $(<$parameter>)? {
            /// Name, offset and size of each field.
            pub const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), std::mem::offset_of!(Self, $field), size_of::<$field_type>())),*
            ];
        }
    };
}

// After the macros, which it uses. By its path, since the tests include this file by its own.
#[path = "abi/backward.rs"]
mod backward;
#[path = "abi/cache.rs"]
mod cache;

constants! {
    /// What a function answers.
    Status {
        /// Done.
        Ok = 0, "LONGROPE_STATUS_OK";
        /// An argument that is wrong.
        InvalidArgument = 1, "LONGROPE_STATUS_INVALID_ARGUMENT";
        /// A configuration that is wrong.
        InvalidConfig = 2, "LONGROPE_STATUS_INVALID_CONFIG";
        /// Valid, but not offered.
        Unsupported = 3, "LONGROPE_STATUS_UNSUPPORTED";
        /// Built without a CUDA compiler.
        NoDeviceCode = 4, "LONGROPE_STATUS_NO_DEVICE_CODE";
        /// No driver.
        NoDriver = 5, "LONGROPE_STATUS_NO_DRIVER";
        /// A driver that is too old.
        OldDriver = 6, "LONGROPE_STATUS_OLD_DRIVER";
        /// No such GPU.
        NoDevice = 7, "LONGROPE_STATUS_NO_DEVICE";
        /// A GPU that is too old.
        OldDevice = 8, "LONGROPE_STATUS_OLD_DEVICE";
        /// An error of the driver.
        Driver = 9, "LONGROPE_STATUS_DRIVER";
        /// A fault of the library.
        Internal = 10, "LONGROPE_STATUS_INTERNAL";
    }
}

constants! {
    /// Where an angle comes from.
    Angles {
        /// The exact phase.
        Exact = 0, "LONGROPE_ANGLES_EXACT";
        /// A product in f32.
        Parity = 1, "LONGROPE_ANGLES_PARITY";
        /// The exact phase of the frequency in f32.
        ExactOfF32 = 2, "LONGROPE_ANGLES_EXACT_OF_F32";
    }
}

constants! {
    /// The type of an element.
    Dtype {
        /// Single precision.
        F32 = 1, "LONGROPE_DTYPE_F32";
        /// Half precision.
        F16 = 2, "LONGROPE_DTYPE_F16";
        /// The upper half of an f32.
        Bf16 = 3, "LONGROPE_DTYPE_BF16";
    }
}

constants! {
    /// Which dimensions form a pair.
    Pairing {
        /// `i` and `i + pairs`.
        HalfSplit = 0, "LONGROPE_PAIRING_HALF_SPLIT";
        /// `2 i` and `2 i + 1`.
        Interleaved = 1, "LONGROPE_PAIRING_INTERLEAVED";
    }
}

constants! {
    /// Where the tokens stand.
    Positions {
        /// At an offset plus their index.
        Offset = 0, "LONGROPE_POSITIONS_OFFSET";
        /// The same, the offset being in memory.
        OffsetAt = 1, "LONGROPE_POSITIONS_OFFSET_AT";
        /// The same, with an offset a sequence.
        OffsetPerSequence = 2, "LONGROPE_POSITIONS_OFFSET_PER_SEQUENCE";
        /// A position a token.
        PerToken = 3, "LONGROPE_POSITIONS_PER_TOKEN";
        /// A position a token, in 32 bits.
        PerTokenI32 = 4, "LONGROPE_POSITIONS_PER_TOKEN_I32";
    }
}

constants! {
    /// Which factor set a sequence uses.
    Choices {
        /// By one length for all.
        Length = 0, "LONGROPE_CHOICES_LENGTH";
        /// All short.
        Short = 1, "LONGROPE_CHOICES_SHORT";
        /// All long.
        Long = 2, "LONGROPE_CHOICES_LONG";
        /// By a length a sequence.
        ByLength = 3, "LONGROPE_CHOICES_BY_LENGTH";
        /// By an index a sequence.
        ByIndex = 4, "LONGROPE_CHOICES_BY_INDEX";
    }
}

constants! {
    /// How tensors hold the sequences of a batch.
    Sequences {
        /// The batch dimension.
        Dense = 0, "LONGROPE_SEQUENCES_DENSE";
        /// One after the other along the length.
        Packed = 1, "LONGROPE_SEQUENCES_PACKED";
    }
}

layout! {
    /// Frequencies in three sets. The header has it for `double` and for `float`.
    Frequencies<T> {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// An [`Angles`].
        angles: i32,
        /// Frequencies of each array.
        pairs: i64,
        /// Up to the original length.
        short_frequencies: *const T,
        /// Beyond it; null: as short.
        long_frequencies: *const T,
        /// Of the first tokens; null if there are none.
        plain: *const T,
        /// The attention factor; 0: 1.
        short_gain: f64,
        /// The attention factor; 0: as short.
        long_gain: f64,
        /// Longer sequences are long.
        original_length: i64,
        /// How many first positions are plain.
        first_tokens: i64,
    }
}

layout! {
    /// A tensor.
    Tensor {
        /// Its first element.
        data: *mut c_void,
        /// A [`Dtype`].
        dtype: i32,
        /// Batch, length, heads, head dimension.
        shape: [i64; 4],
        /// In elements; all 0: contiguous.
        stride: [i64; 4],
    }
}

layout! {
    /// What is read and what is written.
    TensorIo {
        /// Read.
        input: Tensor,
        /// Written; all zero: the input.
        output: Tensor,
    }
}

layout! {
    /// A rotation.
    RotaryDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// A [`Pairing`].
        pairing: i32,
        /// 0 or 1.
        backward: i32,
        /// A [`Positions`].
        position_kind: i32,
        /// A [`Choices`].
        choice_kind: i32,
        /// None is defined.
        flags: u32,
        /// The angles.
        sets: *const FactorSets,
        /// For [`Positions::Offset`].
        position_offset: i64,
        /// For the others.
        positions: *const c_void,
        /// For [`Choices::Length`].
        choice_length: i64,
        /// For [`Choices::ByLength`] and [`Choices::ByIndex`].
        choices: *const c_void,
        /// Where bits are set.
        status: *mut u32,
    }
}

layout! {
    /// A re-rotation.
    RerotateDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// A [`Choices`].
        from_choice_kind: i32,
        /// Into which sets.
        to: *const RotaryDesc,
        /// Out of which.
        from: *const FactorSets,
        /// How far positions move.
        shift: i64,
        /// As in [`RotaryDesc`].
        from_choice_length: i64,
        /// As in [`RotaryDesc`].
        from_choices: *const c_void,
    }
}

layout! {
    /// An attention.
    AttentionDesc {
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
        /// A [`Sequences`].
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
        /// Rotates queries; null: they are rotated.
        query_rotary: *const CacheRotaryDesc,
        /// 0: no limit.
        max_multiprocessors: i32,
        /// 0.
        reserved: i32,
        /// The output of an earlier result; all zero: none.
        carry_out: Tensor,
        /// Its log-sum-exp.
        carry_lse: Tensor,
    }
}

layout! {
    /// What an attention reads and writes.
    AttentionTensors {
        /// Queries.
        q: Tensor,
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
        /// The output.
        out: Tensor,
        /// The log-sum-exp; all zero: none.
        lse: Tensor,
    }
}

layout! {
    /// Partial results of an attention.
    MergeParts {
        /// The output of the first.
        out: Tensor,
        /// Its log-sum-exp.
        lse: Tensor,
        /// How many there are.
        count: i64,
        /// From one output to the next, in elements.
        out_stride: i64,
        /// The same of the log-sum-exps.
        lse_stride: i64,
    }
}

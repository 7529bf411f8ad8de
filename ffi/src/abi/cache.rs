//! The structs and constants of the operations on a cache of keys and values.

use std::ffi::c_void;

use longrope::scaling::FactorSets;

use super::{Tensor, TensorIo};

constants! {
    /// Where the tokens of a cached sequence lie.
    Pages {
        /// In rows of its own.
        None = 0, "LONGROPE_PAGES_NONE";
        /// In the pages that a table names.
        Table = 1, "LONGROPE_PAGES_TABLE";
    }
}

constants! {
    /// How keys lie in a cache.
    CachedKeys {
        /// Rotated by their positions.
        Rotated = 0, "LONGROPE_CACHED_KEYS_ROTATED";
        /// As they came.
        Unrotated = 1, "LONGROPE_CACHED_KEYS_UNROTATED";
    }
}

layout! {
    /// Keys and values of sequences that grow.
    KvCache {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// A [`Pages`].
        page_kind: i32,
        /// Of the lengths; 0 is 32.
        length_bits: i32,
        /// None is defined.
        flags: u32,
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
        /// The tokens of each sequence.
        lengths: *const c_void,
        /// Table: the ids of pages.
        page_table: *const i32,
        /// Table: how many sequences there are.
        sequences: i64,
        /// Table: pages of a sequence, at most.
        table_width: i64,
        /// Table: from one sequence to the next, in elements; 0 is the width.
        table_stride: i64,
    }
}

layout! {
    /// Which tokens are new.
    NewTokens {
        /// A [`Sequences`](super::Sequences).
        sequence_kind: i32,
        /// Packed: of the starts; 0 is 32.
        index_bits: i32,
        /// Packed: one more than there are sequences.
        starts: *const c_void,
        /// Packed: of a sequence; 0 is the total.
        most: i64,
    }
}

layout! {
    /// The rotation of cached tokens.
    CacheRotaryDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// A [`Pairing`](super::Pairing).
        pairing: i32,
        /// A [`Choices`](super::Choices).
        choice_kind: i32,
        /// None is defined.
        flags: u32,
        /// The angles.
        sets: *const FactorSets,
        /// For [`Choices::Length`](super::Choices::Length).
        choice_length: i64,
        /// For [`Choices::ByIndex`](super::Choices::ByIndex).
        choices: *const c_void,
    }
}

layout! {
    /// New tokens into a cache.
    AppendDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// A [`CachedKeys`].
        cached_keys: i32,
        /// Which tokens are new.
        tokens: NewTokens,
        /// Of queries and keys.
        rotary: *const CacheRotaryDesc,
        /// Where bits are set.
        status: *mut u32,
    }
}

layout! {
    /// The new tokens.
    AppendTensors {
        /// Queries; all zero: none.
        q: TensorIo,
        /// Keys.
        k: Tensor,
        /// Values.
        v: Tensor,
    }
}

layout! {
    /// Attention of a few new tokens over a cache.
    DecodeDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// Parts of a sequence; 0: balanced.
        splits: i32,
        /// 0: by the head dimension.
        scale: f32,
        /// None is defined.
        flags: u32,
        /// 0: none.
        window: i64,
        /// Which tokens the queries are.
        tokens: NewTokens,
        /// Of keys that lie unrotated; null: they are rotated.
        rotary: *const CacheRotaryDesc,
        /// Where bits are set.
        status: *mut u32,
    }
}

layout! {
    /// What attention over a cache reads and writes beside it.
    DecodeTensors {
        /// Queries.
        q: Tensor,
        /// The output.
        out: Tensor,
        /// The log-sum-exp; all zero: none.
        lse: Tensor,
    }
}

layout! {
    /// Attention of any number of new tokens over a cache.
    PrefillDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// 0: by the head dimension.
        scale: f32,
        /// 0: none.
        window: i64,
        /// Which tokens the queries are.
        tokens: NewTokens,
        /// Of keys that lie unrotated; null: they are rotated.
        rotary: *const CacheRotaryDesc,
        /// Where bits are set.
        status: *mut u32,
    }
}

layout! {
    /// A change of the factor set of cached keys.
    RerotateCacheDesc {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// None is defined.
        flags: u32,
        /// Into which sets.
        to: *const CacheRotaryDesc,
        /// Out of which.
        from: *const CacheRotaryDesc,
        /// Where bits are set.
        status: *mut u32,
    }
}

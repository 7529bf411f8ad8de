//! The structs and constants of the header's section on configurations. Nothing else is here, as in `abi.rs`.

// The tests use all of it, the library most.
#![allow(dead_code)]

constants! {
    /// How the rotary block of a config.json is spelt.
    JsonSpelling {
        /// `rope_scaling`.
        RopeScaling = 0, "LONGROPE_JSON_ROPE_SCALING";
        /// `rope_parameters`.
        RopeParameters = 1, "LONGROPE_JSON_ROPE_PARAMETERS";
    }
}

layout! {
    /// What LongRoPE's configuration is made of.
    Factors {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// Dimensions of a head; 0 is twice the pairs.
        head_dim: i32,
        /// Pairs that turn.
        pairs: i64,
        /// Divisors up to the original length; null is all 1.
        short_factors: *const f64,
        /// Divisors beyond it.
        long_factors: *const f64,
        /// Base; 0 is 10,000.
        theta: f64,
        /// Length trained on.
        original_length: i64,
        /// Length extended to.
        max_length: i64,
        /// 0: by the lengths.
        attention_factor: f64,
        /// n_hat.
        first_tokens: i64,
    }
}

layout! {
    /// What a configuration says beside its frequencies.
    ConfigInfo {
        /// Bytes of the caller's struct.
        struct_size: u32,
        /// Dimensions of a head.
        head_dim: i32,
        /// Pairs that turn.
        pairs: i64,
        /// Base.
        theta: f64,
        /// Length trained on.
        original_length: i64,
        /// Length extended to.
        max_length: i64,
        /// The gain of cosine and sine.
        attention_factor: f64,
        /// n_hat.
        first_tokens: i64,
    }
}

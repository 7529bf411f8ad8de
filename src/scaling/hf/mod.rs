//! Hugging Face configurations: `rope_scaling` (up to transformers 4) and `rope_parameters` (from 5 on).
//!
//! Reading follows transformers 5.23, whose rules are:
//! - `rope_scaling`, if neither null nor empty, replaces `rope_parameters` whole.
//! - `rope_theta` and `partial_rotary_factor` inside the block win over those at the top level; 10000 and 1 otherwise.
//! - `rope_type` wins over `type`; neither means `default`. `su` is the early name of `longrope`, and a Phi-3 model's
//!   `yarn` means `longrope` too.
//! - `original_max_position_embeddings` at the top level wins over the one in the block; with neither it is
//!   `max_position_embeddings`. It has no meaning for the default, linear and dynamic types.
//! - An explicit `factor` wins over `max_position_embeddings / original_max_position_embeddings`, an explicit
//!   `attention_factor` over the one computed from it.
//!
//! - Of `model_type` two values matter: a `phi3` without `original_max_position_embeddings` at the top level has 4096,
//!   and a `llama` of the default type turns whole heads, whatever `partial_rotary_factor` says.
//!
//! Stricter than transformers: an attention factor of 0, factors that are not finite and above 0, and lists of the wrong
//! length are errors. More lenient: `su` is read wherever the original length stands, and YaRN without a `factor` takes
//! the ratio of the lengths.

mod export;
pub(in crate::scaling) mod field;
mod import;

pub use export::Generation;

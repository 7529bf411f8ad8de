//! The CPU form against the f64 reference, on random problems.

mod arguments;
mod attention;
mod attention_backward;
mod poison;
mod random;
mod rotary;

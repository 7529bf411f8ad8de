//! The operations on the CPU: against the reference, in every view and type, and what they refuse.

#[path = "../shared/mod.rs"]
mod shared;

mod backward;
mod refusals;
mod rotary_attention;

use candle_core::{DType, Device};
use shared::{attention, rotary};

const CPU: Device = Device::Cpu;

#[test]
fn rotary_in_f32_is_within_its_bound_of_the_reference() {
    rotary::is_within_its_bound_of_the_reference(&CPU, DType::F32);
}

#[test]
fn rotary_in_f16_is_within_its_bound_of_the_reference() {
    rotary::is_within_its_bound_of_the_reference(&CPU, DType::F16);
}

#[test]
fn rotary_in_bf16_is_within_its_bound_of_the_reference() {
    rotary::is_within_its_bound_of_the_reference(&CPU, DType::BF16);
}

#[test]
fn attention_in_f32_is_within_its_bound_of_the_reference() {
    attention::is_within_its_bound_of_the_reference(&CPU, DType::F32, None, 1);
}

#[test]
fn attention_in_f16_is_within_its_bound_of_the_reference() {
    attention::is_within_its_bound_of_the_reference(&CPU, DType::F16, None, 1);
}

#[test]
fn attention_in_bf16_is_within_its_bound_of_the_reference() {
    attention::is_within_its_bound_of_the_reference(&CPU, DType::BF16, None, 1);
}

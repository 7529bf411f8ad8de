//! What is refused, by message.

use candle_core::{DType, Device, Tensor};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};
use longrope_candle::{Attention, Direction, Rotary, attention, rotary_attention};

fn zeros(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn rotary(pairs: usize) -> Rotary {
    Rotary::new(FactorSets::uniform(FactorSet::exact(&vec![1.0; pairs], 1.0).unwrap()), SetChoice::Short)
}

fn message<T: std::fmt::Debug>(result: candle_core::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_tensor_of_other_than_four_dimensions() {
    let found = message(rotary(4).apply_one(&zeros((5, 2, 8))));
    assert_eq!(
        found,
        "x: shape [5, 2, 8] with strides [16, 8, 1] is not valid; expected four dimensions: [batch, length, heads, \
         head_dim]"
    );
    let (q, flat) = (zeros((1, 5, 2, 8)), zeros((5, 2, 8)));
    assert!(message(rotary(4).apply(&q, &flat)).starts_with("k: shape [5, 2, 8]"));
    assert!(message(attention(&q, &q, &flat, &Attention::causal())).starts_with("v: shape [5, 2, 8]"));
}

#[test]
fn a_type_that_nothing_is_computed_in() {
    let x = zeros((1, 5, 2, 8)).to_dtype(DType::F64).unwrap();
    assert_eq!(message(rotary(4).apply_one(&x)), "x: type F64 is not valid; expected F32, F16 or BF16");
    assert_eq!(
        message(attention(&x, &x, &x, &Attention::causal())),
        "q: type F64 is not valid; expected F32, F16 or BF16"
    );
}

#[test]
fn types_that_differ() {
    let x = zeros((1, 5, 2, 8));
    let half = x.to_dtype(DType::F16).unwrap();
    assert_eq!(message(rotary(4).apply(&x, &half)), "k: type F16 is not valid; expected F32, as q");
    let found = message(attention(&half, &half, &x, &Attention::causal()));
    assert_eq!(found, "v: type F32 is not valid; expected F16, as q");
}

#[test]
fn shapes_that_do_not_belong_together() {
    let x = zeros((1, 5, 3, 8));
    let found = message(rotary(5).apply_one(&x));
    assert_eq!(
        found,
        "x.head_dim: 8 is not valid; expected at least the rotary dimension of the factor sets (10)"
    );
    let longer = zeros((1, 6, 3, 8));
    assert_eq!(
        message(rotary(4).apply(&x, &longer)),
        "k: shape [1, 6, 3, 8] is not valid; expected batch 1, length 5 and head dimension 8, as q"
    );
    let two = zeros((1, 5, 2, 8));
    assert_eq!(
        message(attention(&x, &two, &two, &Attention::causal())),
        "k.heads: 2 is not valid; expected a divisor of the number of query heads (3)"
    );
    assert!(message(attention(&x, &x, &longer, &Attention::causal())).starts_with("v.length: 6"));
}

#[test]
fn a_descriptor_that_is_not_valid() {
    let x = zeros((1, 5, 2, 8));
    let nothing = Attention { window: Some(0), ..Attention::causal() };
    assert!(message(attention(&x, &x, &x, &nothing)).starts_with("window: 0 is not valid"));
}

#[test]
fn what_rotary_and_attention_as_one_operation_do_not_take() {
    let x = zeros((1, 5, 2, 8));
    let causal = Attention::causal();
    let found = |rotary: &Rotary| message(rotary_attention(&x, &x, &x, rotary, &causal));
    let halves = "expected 1 to 4, half of the head dimension";
    assert_eq!(found(&rotary(5)), format!("rotary.sets: 5 pairs is not valid; {halves}"));
    assert_eq!(found(&rotary(0)), format!("rotary.sets: 0 pairs is not valid; {halves}"));
    let backward = Rotary { direction: Direction::Backward, ..rotary(4) };
    assert_eq!(found(&backward), "rotary.direction: Backward is not valid; expected Forward");
    let parity = FactorSets::uniform(FactorSet::parity(&[1.0; 4], 1.0).unwrap());
    let parity = found(&Rotary::new(parity, SetChoice::Short));
    assert_eq!(parity, "rotary.sets: angles in parity mode is not supported; expected exact angles");
    let last = 1 << 62;
    assert_eq!(
        found(&rotary(4).at(last)),
        format!("query_offset: {last} is not valid; expected positions from -2^62 to 2^62")
    );
    let far = Attention { key_offset: 10, ..causal };
    let found = message(rotary_attention(&zeros((1, 0, 2, 8)), &x, &x, &rotary(4).at(last), &far));
    assert!(found.starts_with(&format!("key_offset: {} is not valid", last + 10)), "{found}");
    let far = Attention { query_offset: i64::MAX, ..causal };
    let found = message(rotary_attention(&x, &x, &x, &rotary(4).at(i64::MAX), &far));
    assert!(found.starts_with(&format!("query_offset: {} is not valid", i64::MAX)), "{found}");
}

#[test]
fn tensors_of_rotary_and_attention_that_do_not_belong_together() {
    let found = |q: &Tensor, k: &Tensor, v: &Tensor| {
        message(rotary_attention(q, k, v, &rotary(4), &Attention::causal()))
    };
    let x = zeros((1, 5, 3, 8));
    let flat = zeros((5, 3, 8));
    assert!(found(&flat, &x, &x).starts_with("q: shape [5, 3, 8]"));
    assert!(found(&x, &flat, &x).starts_with("k: shape [5, 3, 8]"));
    assert!(found(&x, &x, &flat).starts_with("v: shape [5, 3, 8]"));
    let half = x.to_dtype(DType::F16).unwrap();
    assert_eq!(found(&x, &half, &x), "k: type F16 is not valid; expected F32, as q");
    assert_eq!(found(&half, &half, &x), "v: type F32 is not valid; expected F16, as q");
    let wide = x.to_dtype(DType::F64).unwrap();
    assert_eq!(found(&wide, &wide, &wide), "q: type F64 is not valid; expected F32, F16 or BF16");
    let two = zeros((1, 5, 2, 8));
    let heads = "k.heads: 2 is not valid; expected a divisor of the number of query heads (3)";
    assert_eq!(found(&x, &two, &two), heads);
    assert!(found(&x, &x, &zeros((1, 6, 3, 8))).starts_with("v.length: 6"));
    assert!(found(&x, &zeros((1, 5, 3, 10)), &x).starts_with("k.head_dim: 10"));
}

#[test]
fn a_broadcast_view_is_read_as_it_lies() {
    // One key head, shown as two: strides of 0.
    let q = Tensor::randn(0f32, 1.0, (1, 5, 2, 8), &Device::Cpu).unwrap();
    let one = Tensor::randn(0f32, 1.0, (1, 5, 1, 8), &Device::Cpu).unwrap();
    let two = one.broadcast_as((1, 5, 2, 8)).unwrap();
    let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let grouped = attention(&q, &one, &one, &Attention::causal()).unwrap();
    let shown = attention(&q, &two, &two, &Attention::causal()).unwrap();
    assert_eq!(values(grouped), values(shown));
    let rotated = rotary(4).apply_one(&one).unwrap().broadcast_as((1, 5, 2, 8)).unwrap();
    assert_eq!(values(rotated.contiguous().unwrap()), values(rotary(4).apply_one(&two).unwrap()));
}

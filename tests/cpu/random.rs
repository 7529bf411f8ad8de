//! Random tensors and layouts.

use longrope::descriptor::Layout;
use proptest::prelude::*;

/// How the dimensions of a tensor lie in memory.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Batch, length, heads, dimensions.
    Bshd,
    /// Batch, heads, length, dimensions.
    Bhsd,
    /// Batch, length, heads, dimensions, with room between tokens, heads and dimensions.
    Padded,
    /// Batch, heads, dimensions, length: the head dimension is strided.
    Bhds,
    /// As `Bshd`, the tokens in reverse.
    Reversed,
}

pub fn order() -> impl Strategy<Value = Order> {
    prop_oneof![
        Just(Order::Bshd),
        Just(Order::Bhsd),
        Just(Order::Padded),
        Just(Order::Bhds),
        Just(Order::Reversed)
    ]
}

/// The layout of a shape in an order, the offset of its first element, and the elements of a buffer that holds it.
pub fn place(order: Order, [b, s, h, d]: [usize; 4]) -> (Layout, usize, usize) {
    let (si, hi, di) = (s as i64, h as i64, d as i64);
    let strides = match order {
        Order::Bshd => [si * hi * di, hi * di, di, 1],
        Order::Bhsd => [si * hi * di, di, si * di, 1],
        Order::Padded => {
            let head = 2 * di + 1;
            let token = hi * head + 5;
            [si * token, token, head, 2]
        }
        Order::Bhds => [si * hi * di, 1, si * di, si],
        Order::Reversed => [si * hi * di, -hi * di, di, 1],
    };
    let offset = if matches!(order, Order::Reversed) { s.saturating_sub(1) * h * d } else { 0 };
    let size = b * strides[0] as usize + 1;
    (Layout::strided([b, s, h, d], strides), offset, size)
}

/// Where element `(b, s, h, d)` lies.
pub fn index(layout: &Layout, offset: usize, at: [usize; 4]) -> usize {
    let steps: i64 = layout.strides().iter().zip(at).map(|(stride, i)| stride * i as i64).sum();
    (offset as i64 + steps) as usize
}

/// Visits every index of a shape in row-major order.
pub fn indices([b, s, h, d]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..b * s * h * d).map(move |i| [i / (s * h * d), i / (h * d) % s, i / d % h, i % d])
}

/// Values from -1 to 1 that follow from a seed.
pub fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

//! The operations against longrope's f64 reference, on any device: random problems, and views with any strides.

pub mod attention;
pub mod rotary;
pub mod views;

use candle_core::{DType, Device, Tensor};
use longrope::reference::Format;
use proptest::test_runner::{TestCaseError, TestRunner};

/// Tries as many cases as proptest is told to, and panics with the smallest that fails.
pub fn for_all<S: proptest::strategy::Strategy>(
    problems: S,
    check: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    TestRunner::default().run(&problems, check).unwrap_or_else(|failure| panic!("{failure}"));
}

/// The oracle's format of a type.
pub fn format(dtype: DType) -> Format {
    match dtype {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::BF16 => Format::Bf16,
        other => panic!("{other:?}"),
    }
}

/// The nearest value of a type.
pub fn rounded(dtype: DType, x: f32) -> f32 {
    let format = format(dtype);
    format.decode(format.round(f64::from(x))) as f32
}

/// The least length to try: candle can't make a tensor without elements on a GPU.
pub fn least_length(device: &Device) -> usize {
    usize::from(device.is_cuda())
}

/// The elements in row-major order. f32 holds those of every type.
pub fn elements(x: &Tensor) -> Vec<f32> {
    if x.elem_count() == 0 {
        // candle would index a view of nothing at its offset.
        return Vec::new();
    }
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Values from -1 to 1 that follow from a seed, each one of the type.
pub fn values(dtype: DType, seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rounded(dtype, (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Fails unless a result of the type lies within `eps` of the exact one, and one rounding.
pub fn check_element(dtype: DType, found: f32, exact: f64, eps: f64) -> Result<(), TestCaseError> {
    let format = format(dtype);
    match format.within(format.round(f64::from(found)), exact, eps) {
        Ok(true) => Ok(()),
        Ok(false) => Err(TestCaseError::fail(format!("{found} is not {exact} to {eps}"))),
        Err(error) => Err(TestCaseError::fail(error.to_string())),
    }
}

//! Tensors.

use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::RotaryTensor;

use crate::abi::{self, Tensor, TensorIo};
use crate::arguments::value;
use crate::status::Failure;

/// One tensor or two, as the operations take them. Nothing is allocated.
#[derive(Debug, Clone, Copy)]
pub struct Tensors {
    tensors: [RotaryTensor; 2],
    count: usize,
}

impl Tensors {
    /// Reads the caller's array.
    ///
    /// # Safety
    /// `tensors` is null or valid for `count` elements.
    pub unsafe fn read(tensors: *const TensorIo, count: usize) -> Result<Self, Failure> {
        if !(1..=2).contains(&count) {
            return Err(Failure::argument("count", count, "1 or 2 tensors"));
        }
        if tensors.is_null() {
            return Err(Failure::null("tensors", "an array of tensors"));
        }
        let one = |i: usize| {
            // SAFETY: `i` is below `count`; alignment is not assumed.
            let io = unsafe { tensors.add(i).read_unaligned() };
            let input = tensor(&format_args!("tensors[{i}].input"), &io.input)?;
            let output = optional(&format_args!("tensors[{i}].output"), &io.output)?;
            Ok::<_, Failure>(RotaryTensor { input, output: output.unwrap_or(input) })
        };
        let first = one(0)?;
        let second = if count == 2 { one(1)? } else { first };
        Ok(Self { tensors: [first, second], count })
    }

    /// The tensors.
    pub fn as_slice(&self) -> &[RotaryTensor] {
        &self.tensors[..self.count]
    }

    /// Whether there is a token at all, and so something to read positions for.
    pub fn has_tokens(&self) -> bool {
        let layout = self.tensors[0].input.layout;
        layout.batch() > 0 && layout.length() > 0
    }
}

/// Whether it is left out.
pub fn is_zero(tensor: &Tensor) -> bool {
    tensor.data.is_null() && tensor.dtype == 0 && tensor.shape == [0; 4] && tensor.stride == [0; 4]
}

/// A tensor that may be left out.
pub fn optional(name: &std::fmt::Arguments<'_>, given: &Tensor) -> Result<Option<DeviceTensor>, Failure> {
    match is_zero(given) {
        true => Ok(None),
        false => tensor(name, given).map(Some),
    }
}

/// The field of a tensor by what the Rust interface calls it.
pub fn tensor_field(name: &str) -> &str {
    match name {
        "batch" => "shape[0]",
        "length" => "shape[1]",
        "heads" => "shape[2]",
        "head_dim" => "shape[3]",
        other => other,
    }
}

/// A tensor of the caller's, which messages call `name`.
pub fn tensor(name: &std::fmt::Arguments<'_>, tensor: &Tensor) -> Result<DeviceTensor, Failure> {
    let dtype = match value!(abi::Dtype, format!("{name}.dtype"), tensor.dtype)? {
        abi::Dtype::F32 => Dtype::F32,
        abi::Dtype::F16 => Dtype::F16,
        abi::Dtype::Bf16 => Dtype::Bf16,
    };
    let mut shape = [0; 4];
    for (i, (size, &given)) in shape.iter_mut().zip(&tensor.shape).enumerate() {
        *size = usize::try_from(given)
            .map_err(|_| Failure::argument(format!("{name}.shape[{i}]"), given, "0 or more"))?;
    }
    let [batch, length, heads, head_dim] = shape;
    let layout = match tensor.stride {
        [0, 0, 0, 0] => Layout::bshd(batch, length, heads, head_dim),
        stride => Layout::strided(shape, stride),
    };
    Ok(DeviceTensor { address: tensor.data.expose_provenance() as u64, dtype, layout })
}

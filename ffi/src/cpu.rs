//! Rotary embedding on the CPU, from the descriptor of a launch.
//!
//! The tensors are the caller's, of any stride, and may overlap in memory; so a part is copied into a buffer of the library's,
//! rotated there, and copied out.

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use longrope::cpu::{TensorMut, rotary_in_place};
use longrope::descriptor::{Choices, Layout, Positions, Rotary};
use longrope::device::Dtype;
use longrope::ops::{self, BAD_CHOICE, DeviceChoices, DevicePositions, RotaryTensor};
use longrope::scaling::SetChoice;

use crate::abi::{RotaryDesc, Status, TensorIo};
use crate::arguments;
use crate::rotary::descriptor;
use crate::status::{Failure, guard};
use crate::tensor::Tensors;

/// Elements of the buffer, if a single head has no more.
const PART: usize = 1 << 20;

/// Rotates in host memory.
///
/// # Safety
/// As `longrope_rotary_supported`; all addresses are of host memory, valid for what the shapes say, and used by no one else
/// during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rotary_cpu(
    desc: *const RotaryDesc,
    tensors: *const TensorIo,
    count: usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let desc = unsafe { arguments::read(desc) }?;
        // SAFETY: as above.
        let tensors = unsafe { Tensors::read(tensors, count) }?;
        // SAFETY: as above.
        let rotary = unsafe { descriptor(&desc, "", &tensors) }?;
        // What a launch refuses is refused here.
        rotary.supported(tensors.as_slice())?;
        let dtype = tensors.as_slice()[0].input.dtype;
        if dtype != Dtype::F32 {
            let message =
                format!("tensors[0].input.dtype: {dtype:?} is not supported; the CPU form takes F32");
            return Err(Failure::new(Status::Unsupported, message));
        }
        let heads: usize = tensors.as_slice().iter().map(|tensor| tensor.input.layout.heads()).sum();
        if heads == 0 || !tensors.has_tokens() {
            return Ok(());
        }
        let mut buffer = Vec::new();
        for sequence in 0..tensors.as_slice()[0].input.layout.batch() {
            // SAFETY: the addresses were checked, and are valid by this function's contract.
            match unsafe { set_choice(rotary.choices, sequence) } {
                Some(choice) => {
                    for tensor in tensors.as_slice() {
                        // SAFETY: as above.
                        unsafe { rotate_sequence(&rotary, tensor, sequence, choice, &mut buffer) }?;
                    }
                }
                None => {
                    if let Some(status) = rotary.status {
                        // SAFETY: as above.
                        unsafe { *with_exposed_provenance_mut::<u32>(status as usize) |= BAD_CHOICE };
                    }
                }
            }
        }
        Ok(())
    })
}

/// Rotates one sequence of one tensor, part by part.
///
/// # Safety
/// The tensor and the positions are valid for their shape.
unsafe fn rotate_sequence(
    rotary: &ops::Rotary<'_>,
    tensor: &RotaryTensor,
    sequence: usize,
    choice: SetChoice,
    buffer: &mut Vec<f32>,
) -> Result<(), Failure> {
    let [_, length, heads, head_dim] = tensor.input.layout.shape();
    let heads_at_once = (PART / head_dim).clamp(1, heads.max(1));
    let tokens_at_once = (PART / (head_dim * heads_at_once)).max(1);
    for token in (0..length).step_by(tokens_at_once) {
        let tokens = tokens_at_once.min(length - token);
        let positions: Vec<i64> = (token..token + tokens)
            // SAFETY: by this function's contract.
            .map(|token| unsafe { position(rotary.positions, sequence, length, token) })
            .collect();
        let part = Rotary {
            sets: rotary.sets,
            pairing: rotary.pairing,
            direction: rotary.direction,
            positions: Positions::PerToken(&positions),
            choices: Choices::All(choice),
        };
        for head in (0..heads).step_by(heads_at_once) {
            let shape = [tokens, heads_at_once.min(heads - head), head_dim];
            buffer.clear();
            let input = Elements::new(&tensor.input, sequence, token, head);
            // SAFETY: by this function's contract.
            input.each(shape, |element| buffer.push(unsafe { element.read() }));
            let layout = Layout::bshd(1, shape[0], shape[1], shape[2]);
            rotary_in_place(&part, TensorMut::new(buffer, layout))?;
            let mut rotated = buffer.iter();
            Elements::new(&tensor.output, sequence, token, head).each(shape, |element| {
                if let Some(value) = rotated.next() {
                    // SAFETY: as above.
                    unsafe { element.write(*value) };
                }
            });
        }
    }
    Ok(())
}

/// The elements of a part of a tensor.
struct Elements {
    first: *mut f32,
    stride: [isize; 4],
}

impl Elements {
    fn new(tensor: &longrope::device::DeviceTensor, sequence: usize, token: usize, head: usize) -> Self {
        let stride = tensor.layout.strides().map(|stride| stride as isize);
        let at = |index: usize, dim: usize| (index as isize).wrapping_mul(stride[dim]);
        let offset = at(sequence, 0).wrapping_add(at(token, 1)).wrapping_add(at(head, 2));
        let data = with_exposed_provenance_mut::<f32>(tensor.address as usize);
        Self { first: data.wrapping_offset(offset), stride }
    }

    /// Visits tokens, heads and dimensions in this order.
    fn each(&self, [tokens, heads, dims]: [usize; 3], mut visit: impl FnMut(*mut f32)) {
        let [_, by_token, by_head, by_dim] = self.stride;
        for token in 0..tokens as isize {
            for head in 0..heads as isize {
                let row = token.wrapping_mul(by_token).wrapping_add(head.wrapping_mul(by_head));
                let row = self.first.wrapping_offset(row);
                (0..dims as isize).for_each(|dim| visit(row.wrapping_offset(dim.wrapping_mul(by_dim))));
            }
        }
    }
}

/// The position of a token, as the kernels read it.
///
/// # Safety
/// The addresses are of host memory, aligned and valid for the shape.
unsafe fn position(positions: DevicePositions, sequence: usize, length: usize, token: usize) -> i64 {
    let wide = |at: u64, index: usize| {
        let array = with_exposed_provenance::<i64>(at as usize);
        // SAFETY: by this function's contract.
        unsafe { array.add(index).read() }
    };
    match positions {
        DevicePositions::Offset(offset) => offset.wrapping_add(token as i64),
        DevicePositions::OffsetAt(at) => wide(at, 0).wrapping_add(token as i64),
        DevicePositions::OffsetPerSequence(at) => wide(at, sequence).wrapping_add(token as i64),
        DevicePositions::PerToken(at) => wide(at, sequence * length + token),
        DevicePositions::PerToken32(at) => {
            let array = with_exposed_provenance::<i32>(at as usize);
            // SAFETY: as above.
            i64::from(unsafe { array.add(sequence * length + token).read() })
        }
    }
}

/// The choice of a sequence, as the kernels read it; `None` if its index is bad.
///
/// # Safety
/// The addresses are of host memory, aligned and valid for the number of sequences.
unsafe fn set_choice(choices: DeviceChoices, sequence: usize) -> Option<SetChoice> {
    match choices {
        DeviceChoices::All(choice) => Some(choice),
        DeviceChoices::ByLength(at) => {
            let lengths = with_exposed_provenance::<i64>(at as usize);
            // SAFETY: by this function's contract.
            let length = unsafe { lengths.add(sequence).read() };
            Some(SetChoice::ByLength(u64::try_from(length).unwrap_or(0)))
        }
        DeviceChoices::ByIndex(at) => {
            let indices = with_exposed_provenance::<i32>(at as usize);
            // SAFETY: as above.
            match unsafe { indices.add(sequence).read() } {
                0 => Some(SetChoice::Short),
                1 => Some(SetChoice::Long),
                _ => None,
            }
        }
    }
}

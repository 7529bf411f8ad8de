//! Rotary embedding on the CPU, from the descriptor of a launch.
//!
//! A part of a tensor is copied into a buffer of the library's, rotated there, and copied out.

use longrope::cpu::{TensorMut, rotary_in_place};
use longrope::descriptor::{Choices, Layout, Positions, Rotary};
use longrope::device::Dtype;
use longrope::ops::{self, BAD_CHOICE, DeviceChoices, DevicePositions, RotaryTensor};
use longrope::scaling::SetChoice;

use crate::abi::{RotaryDesc, Status, TensorIo};
use crate::arguments;
use crate::host::{Elements, number, set_bits};
use crate::rotary::descriptor;
use crate::status::{Failure, guard};
use crate::tensor::Tensors;
use crate::threads;

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
        let desc = unsafe { arguments::read("desc", desc) }?;
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
        // SAFETY: the addresses were checked, and are valid by this function's contract.
        threads::run(|| unsafe { rotate(&rotary, tensors.as_slice()) })
    })
}

/// Rotates all sequences.
///
/// # Safety
/// The tensors, the positions, the choices and the status are valid for their shape.
unsafe fn rotate(rotary: &ops::Rotary<'_>, tensors: &[RotaryTensor]) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    for sequence in 0..tensors[0].input.layout.batch() {
        // SAFETY: by this function's contract.
        match unsafe { set_choice(rotary.choices, sequence) } {
            Some(choice) => {
                for tensor in tensors {
                    // SAFETY: as above.
                    unsafe { rotate_sequence(rotary, tensor, sequence, choice, &mut buffer) }?;
                }
            }
            // SAFETY: as above.
            None => unsafe { set_bits(rotary.status, BAD_CHOICE) },
        }
    }
    Ok(())
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

/// The position of a token, as the kernels read it.
///
/// # Safety
/// The addresses are of host memory, aligned and valid for the shape.
unsafe fn position(positions: DevicePositions, sequence: usize, length: usize, token: usize) -> i64 {
    // SAFETY: by this function's contract.
    let wide = |at: u64, index: usize| unsafe { number::<i64>(at, index) };
    match positions {
        DevicePositions::Offset(offset) => offset.wrapping_add(token as i64),
        DevicePositions::OffsetAt(at) => wide(at, 0).wrapping_add(token as i64),
        DevicePositions::OffsetPerSequence(at) => wide(at, sequence).wrapping_add(token as i64),
        DevicePositions::PerToken(at) => wide(at, sequence * length + token),
        DevicePositions::PerToken32(at) => {
            // SAFETY: as above.
            i64::from(unsafe { number::<i32>(at, sequence * length + token) })
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
            // SAFETY: by this function's contract.
            let length = unsafe { number::<i64>(at, sequence) };
            Some(SetChoice::ByLength(u64::try_from(length).unwrap_or(0)))
        }
        DeviceChoices::ByIndex(at) => {
            // SAFETY: as above.
            match unsafe { number::<i32>(at, sequence) } {
                0 => Some(SetChoice::Short),
                1 => Some(SetChoice::Long),
                _ => None,
            }
        }
    }
}

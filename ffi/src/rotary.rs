//! Rotary embedding and re-rotation on a GPU.

use std::ffi::c_void;
use std::fmt::Display;

use longrope::descriptor::{Direction, Pairing};
use longrope::device::{Context, Stream};
use longrope::ops::{DeviceChoices, DevicePositions, Rerotate, Rotary};
use longrope::scaling::{FactorSets, SetChoice};

use crate::abi::{self, Choices, Positions, RerotateDesc, RotaryDesc, Status, TensorIo};
use crate::arguments::{self, Field, value};
use crate::status::{Failure, guard};
use crate::tensor::Tensors;
use crate::{context, factors};

/// Whether a rotation can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with factor sets that are null or alive; `tensors` is null or valid for `count`
/// elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rotary_supported(
    desc: *const RotaryDesc,
    tensors: *const TensorIo,
    count: usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (rotary, tensors) = unsafe { rotary(desc, tensors, count) }?;
        Ok(rotary.supported(tensors.as_slice())?)
    })
}

/// How much scratch memory a rotation needs.
///
/// # Safety
/// As [`longrope_rotary_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rotary_workspace_size(
    desc: *const RotaryDesc,
    tensors: *const TensorIo,
    count: usize,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (rotary, tensors) = unsafe { rotary(desc, tensors, count) }?;
        rotary.supported(tensors.as_slice())?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, 0) }
    })
}

/// Launches a rotation.
///
/// # Safety
/// As [`longrope_rotary_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Rotary::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rotary_run(
    context: *const Context,
    desc: *const RotaryDesc,
    tensors: *const TensorIo,
    count: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (rotary, tensors) = unsafe { rotary(desc, tensors, count) }?;
        // SAFETY: as above.
        Ok(unsafe { rotary.run(context, tensors.as_slice(), Stream::from_raw(stream)) }?)
    })
}

/// Whether a re-rotation can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with factor sets that are null or alive and a rotation as
/// [`longrope_rotary_supported`] asks; `tensors` is null or valid for `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_supported(
    desc: *const RerotateDesc,
    tensors: *const TensorIo,
    count: usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (rerotate, tensors) = unsafe { rerotate(desc, tensors, count) }?;
        Ok(rerotate.supported(tensors.as_slice())?)
    })
}

/// How much scratch memory a re-rotation needs.
///
/// # Safety
/// As [`longrope_rerotate_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_workspace_size(
    desc: *const RerotateDesc,
    tensors: *const TensorIo,
    count: usize,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (rerotate, tensors) = unsafe { rerotate(desc, tensors, count) }?;
        rerotate.supported(tensors.as_slice())?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, 0) }
    })
}

/// Launches a re-rotation.
///
/// # Safety
/// As [`longrope_rerotate_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Rerotate::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_rerotate_run(
    context: *const Context,
    desc: *const RerotateDesc,
    tensors: *const TensorIo,
    count: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (rerotate, tensors) = unsafe { rerotate(desc, tensors, count) }?;
        // SAFETY: as above.
        Ok(unsafe { rerotate.run(context, tensors.as_slice(), Stream::from_raw(stream)) }?)
    })
}

/// Reads a rotation and its tensors.
///
/// # Safety
/// As [`longrope_rotary_supported`]; the factor sets outlive `'a`.
unsafe fn rotary<'a>(
    desc: *const RotaryDesc,
    tensors: *const TensorIo,
    count: usize,
) -> Result<(Rotary<'a>, Tensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let tensors = unsafe { Tensors::read(tensors, count) }?;
    // SAFETY: as above.
    Ok((unsafe { descriptor(&desc, "", &tensors) }?, tensors))
}

/// # Safety
/// As [`longrope_rerotate_supported`]; the factor sets outlive `'a`.
unsafe fn rerotate<'a>(
    desc: *const RerotateDesc,
    tensors: *const TensorIo,
    count: usize,
) -> Result<(Rerotate<'a>, Tensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let to = unsafe { arguments::read("to", desc.to) }?;
    // SAFETY: as above.
    let tensors = unsafe { Tensors::read(tensors, count) }?;
    // SAFETY: as above.
    let to = unsafe { descriptor(&to, "to.", &tensors) }?;
    if to.direction != Direction::Forward {
        return Err(Failure::argument("to.backward", 1, "0, since a re-rotation has no backward form"));
    }
    // SAFETY: as above.
    let from = unsafe { factors::borrow("from", desc.from) }?;
    let from_choices = choices(
        "from_",
        desc.from_choice_kind,
        desc.from_choice_length,
        desc.from_choices,
        tensors.has_tokens(),
    )?;
    Ok((Rerotate { to, from, from_choices, shift: desc.shift }, tensors))
}

/// The rotation that a descriptor asks for. `prefix` leads the names in messages.
///
/// # Safety
/// The factor sets are null, or alive and outlive `'a`.
pub unsafe fn descriptor<'a>(
    desc: &RotaryDesc,
    prefix: &str,
    tensors: &Tensors,
) -> Result<Rotary<'a>, Failure> {
    let name = |field| Field(prefix, field);
    let pairing = pairing(name("pairing"), desc.pairing)?;
    let direction = match desc.backward {
        0 => Direction::Forward,
        1 => Direction::Backward,
        other => return Err(Failure::argument(name("backward"), other, "0 or 1")),
    };
    arguments::no_flags(name("flags"), desc.flags)?;
    // SAFETY: by this function's contract.
    let sets: &'a FactorSets = unsafe { factors::borrow(name("sets"), desc.sets) }?;
    let positions = positions(prefix, desc, tensors.has_tokens())?;
    let choices = choices(prefix, desc.choice_kind, desc.choice_length, desc.choices, tensors.has_tokens())?;
    let status = match desc.status.is_null() {
        true => None,
        false => Some(arguments::address(name("status"), desc.status, 4, "a status word")?),
    };
    Ok(Rotary { sets, pairing, direction, positions, choices, status })
}

/// Which dimensions form a pair.
pub fn pairing(name: impl Display, number: i32) -> Result<Pairing, Failure> {
    Ok(match value!(abi::Pairing, name, number)? {
        abi::Pairing::HalfSplit => Pairing::HalfSplit,
        abi::Pairing::Interleaved => Pairing::Interleaved,
    })
}

/// Where the tokens stand. An address may be missing if there is none.
fn positions(prefix: &str, desc: &RotaryDesc, has_tokens: bool) -> Result<DevicePositions, Failure> {
    let name = |field| Field(prefix, field);
    let kind = value!(Positions, name("position_kind"), desc.position_kind)?;
    if kind == Positions::Offset {
        arguments::unused(name("positions"), desc.positions.is_null(), "LONGROPE_POSITIONS_OFFSET")?;
        return Ok(DevicePositions::Offset(desc.position_offset));
    }
    arguments::unused(name("position_offset"), desc.position_offset == 0, "this position_kind")?;
    let size = if kind == Positions::PerTokenI32 { 4 } else { 8 };
    let at = array(name("positions"), desc.positions, size, "the address of positions", has_tokens)?;
    Ok(match kind {
        Positions::Offset | Positions::OffsetAt => DevicePositions::OffsetAt(at),
        Positions::OffsetPerSequence => DevicePositions::OffsetPerSequence(at),
        Positions::PerToken => DevicePositions::PerToken(at),
        Positions::PerTokenI32 => DevicePositions::PerToken32(at),
    })
}

/// Which set each sequence uses.
fn choices(
    prefix: &str,
    kind: i32,
    length: i64,
    choices: *const c_void,
    has_tokens: bool,
) -> Result<DeviceChoices, Failure> {
    let name = |field| Field(prefix, field);
    let kind = value!(Choices, name("choice_kind"), kind)?;
    if kind != Choices::Length {
        arguments::unused(name("choice_length"), length == 0, "this choice_kind")?;
    }
    let size = match kind {
        Choices::ByLength => 8,
        Choices::ByIndex => 4,
        Choices::Length | Choices::Short | Choices::Long => {
            arguments::unused(name("choices"), choices.is_null(), "this choice_kind")?;
            let length = arguments::count(name("choice_length"), length)?;
            return Ok(DeviceChoices::All(match kind {
                Choices::Short => SetChoice::Short,
                Choices::Long => SetChoice::Long,
                _ => SetChoice::ByLength(length),
            }));
        }
    };
    let at = array(name("choices"), choices, size, "the address of choices", has_tokens)?;
    Ok(if size == 8 { DeviceChoices::ByLength(at) } else { DeviceChoices::ByIndex(at) })
}

/// The address of an array, which may be null if there is nothing to read.
fn array(
    name: Field<'_>,
    pointer: *const c_void,
    size: usize,
    expected: &str,
    has_tokens: bool,
) -> Result<u64, Failure> {
    match pointer.is_null() && !has_tokens {
        true => Ok(0),
        false => arguments::address(name, pointer, size, expected),
    }
}

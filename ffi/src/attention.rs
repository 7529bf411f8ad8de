//! Attention on a GPU.

use std::ffi::c_void;
use std::fmt::Display;

use longrope::Error;
use longrope::descriptor;
use longrope::device::{Context, Stream};
use longrope::ops::{self, Attention, Carry, Packed, Starts};

use crate::abi::{AttentionDesc, AttentionTensors, Sequences, Status};
use crate::arguments::{self, Field, value};
use crate::cache;
use crate::context;
use crate::status::{Failure, guard};
use crate::tensor::{optional, tensor, tensor_field};

/// Whether an attention can be launched.
///
/// # Safety
/// `desc` is null or valid for its size, with a rotation that is null or valid for its own, whose factor sets are null or alive;
/// `tensors` is null or valid for reading.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_supported(
    desc: *const AttentionDesc,
    tensors: *const AttentionTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (attention, tensors) = unsafe { read(desc, tensors) }?;
        attention.supported(&tensors).map_err(in_c)
    })
}

/// How much scratch memory an attention needs.
///
/// # Safety
/// As [`longrope_attention_supported`]; `bytes` is null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_workspace_size(
    desc: *const AttentionDesc,
    tensors: *const AttentionTensors,
    bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (attention, tensors) = unsafe { read(desc, tensors) }?;
        let size = attention.workspace_size(&tensors).map_err(in_c)?;
        // SAFETY: as above.
        unsafe { arguments::workspace_size(bytes, size) }
    })
}

/// Launches an attention.
///
/// # Safety
/// As [`longrope_attention_supported`]; `context` is null or alive, `stream` is null or a stream, and addresses are of device
/// memory as `longrope::ops::Attention::run` asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_run(
    context: *const Context,
    desc: *const AttentionDesc,
    tensors: *const AttentionTensors,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let context = unsafe { context::borrow(context) }?;
        // SAFETY: as above.
        let (attention, tensors) = unsafe { read(desc, tensors) }?;
        let workspace = arguments::workspace(workspace, workspace_bytes);
        // SAFETY: as above.
        unsafe { attention.run(context, &tensors, workspace, Stream::from_raw(stream)) }.map_err(in_c)
    })
}

/// Reads an attention and its tensors.
///
/// # Safety
/// As [`longrope_attention_supported`].
pub unsafe fn read<'a>(
    desc: *const AttentionDesc,
    tensors: *const AttentionTensors,
) -> Result<(Attention<'a>, ops::AttentionTensors), Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read("desc", desc) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read_all("tensors", tensors) }?;
    let tensors = ops::AttentionTensors {
        q: tensor(&format_args!("tensors.q"), &given.q)?,
        k: tensor(&format_args!("tensors.k"), &given.k)?,
        v: tensor(&format_args!("tensors.v"), &given.v)?,
        out: tensor(&format_args!("tensors.out"), &given.out)?,
        lse: optional(&format_args!("tensors.lse"), &given.lse)?,
    };
    // SAFETY: as above.
    Ok((unsafe { attention(&desc, tensors.q.layout.length()) }?, tensors))
}

/// The attention that a descriptor asks for, of tensors with so many queries.
///
/// # Safety
/// As [`longrope_attention_supported`].
pub unsafe fn attention<'a>(desc: &AttentionDesc, query_length: usize) -> Result<Attention<'a>, Failure> {
    let name = |field| Field("desc.", field);
    let causal = match desc.causal {
        0 => false,
        1 => true,
        other => return Err(Failure::argument(name("causal"), other, "0 or 1")),
    };
    arguments::no_flags(name("flags"), desc.flags)?;
    let window = arguments::count(name("window"), desc.window)?;
    let attention = descriptor::Attention {
        scale: (desc.scale != 0.0).then_some(desc.scale),
        causal,
        window: (window != 0).then_some(window),
        query_offset: desc.query_offset,
        key_offset: desc.key_offset,
    };
    let most = arguments::size(name("max_multiprocessors"), i64::from(desc.max_multiprocessors))?;
    arguments::unused(name("reserved"), desc.reserved == 0, "this version")?;
    Ok(Attention {
        sequences: sequences(desc, query_length)?,
        query_offsets: arguments::optional(desc.query_offsets),
        status: arguments::optional(desc.status),
        carry: carry(desc)?,
        query_rotary: match desc.query_rotary.is_null() {
            true => None,
            // SAFETY: by this function's contract.
            false => Some(unsafe { cache::rotary("desc.query_rotary", desc.query_rotary) }?),
        },
        max_multiprocessors: (most != 0).then_some(most as u32),
        ..Attention::new(attention)
    })
}

/// The earlier result, both of it or none.
fn carry(desc: &AttentionDesc) -> Result<Option<Carry>, Failure> {
    let out = optional(&format_args!("desc.carry_out"), &desc.carry_out)?;
    let lse = optional(&format_args!("desc.carry_lse"), &desc.carry_lse)?;
    match (out, lse) {
        (None, None) => Ok(None),
        (Some(out), Some(lse)) => Ok(Some(Carry { out, lse })),
        (Some(_), None) => Err(Failure::argument(Field("desc.", "carry_lse"), "none", "that of carry_out")),
        (None, Some(_)) => Err(Failure::argument(Field("desc.", "carry_out"), "none", "that of carry_lse")),
    }
}

/// How the tensors hold the sequences.
fn sequences(desc: &AttentionDesc, query_length: usize) -> Result<ops::Sequences, Failure> {
    let name = |field| Field("desc.", field);
    if value!(Sequences, name("sequence_kind"), desc.sequence_kind)? == Sequences::Dense {
        for (field, is_zero) in [
            ("index_bits", desc.index_bits == 0),
            ("sequences", desc.sequences == 0),
            ("query_starts", desc.query_starts.is_null()),
            ("key_starts", desc.key_starts.is_null()),
            ("max_query_length", desc.max_query_length == 0),
        ] {
            arguments::unused(name(field), is_zero, "LONGROPE_SEQUENCES_DENSE")?;
        }
        return Ok(ops::Sequences::Dense);
    }
    let starts = starts(name("index_bits"), desc.index_bits)?;
    Ok(ops::Sequences::Packed(Packed {
        count: arguments::size(name("sequences"), desc.sequences)?,
        query_starts: desc.query_starts.expose_provenance() as u64,
        key_starts: desc.key_starts.expose_provenance() as u64,
        starts,
        max_query_length: match arguments::size(name("max_query_length"), desc.max_query_length)? {
            0 => query_length,
            length => length,
        },
    }))
}

/// The type of starts of so many bits.
pub fn starts(name: impl Display, bits: i32) -> Result<Starts, Failure> {
    Ok(if arguments::is_wide(name, bits)? { Starts::I64 } else { Starts::I32 })
}

/// The tensors of attention and of its backward pass.
const TENSORS: [&str; 10] = ["q", "k", "v", "out", "lse", "delta", "d_out", "dq", "dk", "dv"];

/// An error in the words of C, of attention or of its backward pass.
pub fn in_c(error: Error) -> Failure {
    Failure::renamed(error, |argument| {
        let (first, rest) = argument.split_once('.').unwrap_or((argument, ""));
        match (first, rest) {
            (tensor, "") if TENSORS.contains(&tensor) => format!("tensors.{tensor}"),
            (tensor, field) if TENSORS.contains(&tensor) => {
                format!("tensors.{tensor}.{}", tensor_field(field))
            }
            ("sequences", "count") => "desc.sequences".to_owned(),
            ("sequences", field) => format!("desc.{field}"),
            ("workspace", "bytes") => "workspace_bytes".to_owned(),
            ("workspace", _) => "workspace".to_owned(),
            ("tensors", _) => argument.to_owned(),
            ("carry", field) => {
                let (first, rest) = field.split_once('.').unwrap_or((field, ""));
                let rest = if rest.is_empty() { String::new() } else { format!(".{}", tensor_field(rest)) };
                format!("desc.carry_{first}{rest}")
            }
            ("query_rotary" | "rotary", field) if !field.is_empty() => format!("desc.{first}.{field}"),
            (field, _) => format!("desc.{field}"),
        }
    })
}

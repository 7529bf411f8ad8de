//! Attention on the CPU, from the descriptor of a launch.
//!
//! The tensors of a sequence are copied into buffers of the library's, and the result is copied out.

use longrope::Error;
use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Attention, AttentionTensors, BAD_SEQUENCE};

use crate::abi::{self, AttentionDesc, Status};
use crate::attention::{in_c, read};
use crate::host::set_bits;
use crate::sequence::{Sequence, Told, gather, scatter, zeros};
use crate::status::{Failure, guard};
use crate::threads;

/// Attention in host memory.
///
/// # Safety
/// As `longrope_attention_supported`; all addresses are of host memory, valid for what the shapes say, and used by no one else
/// during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_cpu(
    desc: *const AttentionDesc,
    tensors: *const abi::AttentionTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (attention, tensors) = unsafe { read(desc, tensors) }?;
        attention.validate(&tensors).map_err(in_c)?;
        check_offered(&tensors.q)?;
        for (argument, is_asked) in
            [("carry.out", attention.carry.is_some()), ("query_rotary", attention.query_rotary.is_some())]
        {
            if is_asked {
                return Err(in_c(Error::unsupported(argument, "one", "none, since the CPU form takes none")));
            }
        }
        if tensors.q.layout.is_empty() {
            return Ok(());
        }
        // SAFETY: the addresses were checked, and are valid by this function's contract.
        threads::run(|| unsafe { attend(&attention, &tensors) })
    })
}

/// Checks the type of queries, which all others have then.
pub fn check_offered(q: &DeviceTensor) -> Result<(), Failure> {
    match q.dtype {
        Dtype::F32 => Ok(()),
        other => {
            let found = format!("{other:?}");
            Err(in_c(Error::unsupported("q.dtype", found, "F32, which is what the CPU form takes")))
        }
    }
}

/// Attention of all sequences.
///
/// # Safety
/// The addresses are of host memory, aligned, and valid for the shapes and the number of sequences.
unsafe fn attend(attention: &Attention<'_>, tensors: &AttentionTensors) -> Result<(), Failure> {
    let Attention { sequences, query_offsets, .. } = *attention;
    let query_offset = attention.attention.query_offset;
    let told = Told { sequences, query_offset, query_offsets, q: &tensors.q, k: &tensors.k };
    for index in 0..told.count() {
        // SAFETY: by this function's contract.
        match unsafe { told.sequence(index) } {
            // SAFETY: as above, and the sequence lies within the tensors.
            Some(sequence) => unsafe { attend_sequence(&sequence, &attention.attention, tensors) }?,
            // SAFETY: as above.
            None => unsafe { set_bits(attention.status, BAD_SEQUENCE) },
        }
    }
    Ok(())
}

/// Attention of a sequence's queries over its keys.
///
/// # Safety
/// The tensors are f32, of shapes that belong together, and valid for them; the sequence lies within.
unsafe fn attend_sequence(
    sequence: &Sequence,
    attention: &descriptor::Attention,
    tensors: &AttentionTensors,
) -> Result<(), Failure> {
    let Sequence { batch, queries, keys, position } = sequence;
    if queries.is_empty() {
        return Ok(());
    }
    // SAFETY: by this function's contract.
    let read = |name, tensor, tokens| unsafe { gather(name, tensor, *batch, tokens) };
    let (q, q_layout) = read("tensors.q", &tensors.q, queries)?;
    let (k, k_layout) = read("tensors.k", &tensors.k, keys)?;
    let (v, v_layout) = read("tensors.v", &tensors.v, keys)?;
    let mut out = zeros("tensors.out", &q)?;
    let mut lse = Vec::new();
    if tensors.lse.is_some() {
        lse.resize(queries.len() * q_layout.heads(), 0.0);
    }
    cpu::attention(
        &descriptor::Attention { query_offset: *position, ..*attention },
        Tensor::new(&q, q_layout),
        Tensor::new(&k, k_layout),
        Tensor::new(&v, v_layout),
        TensorMut::new(&mut out, q_layout),
        tensors.lse.is_some().then_some(&mut lse[..]),
    )
    .map_err(in_c)?;
    // SAFETY: as above.
    unsafe { scatter(&out, &tensors.out, *batch, queries, false) };
    if let Some(tensor) = &tensors.lse {
        // SAFETY: as above.
        unsafe { scatter(&lse, tensor, *batch, queries, false) };
    }
    Ok(())
}

//! The backward pass of attention on the CPU, from the descriptor of a launch.
//!
//! The tensors of a sequence are copied into buffers of the library's, and the gradients are copied out.

use longrope::cpu::{self, AttentionGradients, Tensor, TensorMut};
use longrope::descriptor::Attention;
use longrope::ops::{AttentionBackward, AttentionBackwardTensors, BAD_SEQUENCE};

use crate::abi::{self, AttentionBackwardDesc, Status};
use crate::attention::in_c;
use crate::attention_backward::read;
use crate::attention_cpu::check_offered;
use crate::host::set_bits;
use crate::sequence::{Sequence, Told, clear, gather, scatter, zeros};
use crate::status::{Failure, guard};
use crate::threads;

/// The backward pass in host memory.
///
/// # Safety
/// As `longrope_attention_backward_supported`; all addresses are of host memory, valid for what the shapes say, and used by no
/// one else during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_attention_backward_cpu(
    desc: *const AttentionBackwardDesc,
    tensors: *const abi::AttentionBackwardTensors,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let (backward, tensors) = unsafe { read(desc, tensors) }?;
        backward.validate(&tensors).map_err(in_c)?;
        check_offered(&tensors.q)?;
        if tensors.q.layout.is_empty() && tensors.k.layout.is_empty() {
            return Ok(());
        }
        // SAFETY: the addresses were checked, and are valid by this function's contract.
        threads::run(|| unsafe { differentiate(&backward, &tensors) })
    })
}

/// The gradients of all sequences.
///
/// # Safety
/// The addresses are of host memory, aligned, and valid for the shapes and the number of sequences.
unsafe fn differentiate(
    backward: &AttentionBackward,
    tensors: &AttentionBackwardTensors,
) -> Result<(), Failure> {
    let AttentionBackward { attention, sequences, query_offsets, status, accumulate, .. } = *backward;
    let query_offset = attention.query_offset;
    let told = Told { sequences, query_offset, query_offsets, q: &tensors.q, k: &tensors.k };
    for index in 0..told.count() {
        // SAFETY: by this function's contract.
        match unsafe { told.sequence(index) } {
            // SAFETY: as above, and the sequence lies within the tensors.
            Some(sequence) => unsafe { differentiate_sequence(&sequence, &attention, accumulate, tensors) }?,
            // SAFETY: as above.
            None => unsafe { set_bits(status, BAD_SEQUENCE) },
        }
    }
    Ok(())
}

/// The gradients of a sequence.
///
/// # Safety
/// The tensors are f32, of shapes that belong together, and valid for them; the sequence lies within.
unsafe fn differentiate_sequence(
    sequence: &Sequence,
    attention: &Attention,
    accumulate: bool,
    tensors: &AttentionBackwardTensors,
) -> Result<(), Failure> {
    let Sequence { batch, queries, keys, position } = sequence;
    if queries.is_empty() || tensors.q.layout.heads() == 0 {
        // Keys that no query sees, and which need not be there.
        for gradient in [&tensors.dk, &tensors.dv].into_iter().filter(|_| !accumulate) {
            // SAFETY: by this function's contract.
            unsafe { clear(gradient, *batch, keys) };
        }
        return Ok(());
    }
    // SAFETY: by this function's contract.
    let read = |name, tensor, tokens| unsafe { gather(name, tensor, *batch, tokens) };
    let (q, q_layout) = read("tensors.q", &tensors.q, queries)?;
    let (k, k_layout) = read("tensors.k", &tensors.k, keys)?;
    let (v, v_layout) = read("tensors.v", &tensors.v, keys)?;
    let (d_out, d_out_layout) = read("tensors.d_out", &tensors.d_out, queries)?;
    let (lse, _) = read("tensors.lse", &tensors.lse, queries)?;
    let delta = match (&tensors.delta, &tensors.out) {
        (Some(delta), _) => read("tensors.delta", delta, queries)?.0,
        (None, Some(out)) => {
            let (out, out_layout) = read("tensors.out", out, queries)?;
            let mut delta = zeros("tensors.delta", &lse)?;
            cpu::attention_delta(
                Tensor::new(&out, out_layout),
                Tensor::new(&d_out, d_out_layout),
                &mut delta,
            )
            .map_err(in_c)?;
            delta
        }
        // A valid backward pass has one of them.
        (None, None) => return Ok(()),
    };
    let mut dq = zeros("tensors.dq", &q)?;
    let (mut dk, mut dv) = (zeros("tensors.dk", &k)?, zeros("tensors.dv", &v)?);
    cpu::attention_backward(
        &Attention { query_offset: *position, ..*attention },
        Tensor::new(&q, q_layout),
        Tensor::new(&k, k_layout),
        Tensor::new(&v, v_layout),
        Tensor::new(&d_out, d_out_layout),
        &lse,
        &delta,
        AttentionGradients {
            dq: TensorMut::new(&mut dq, q_layout),
            dk: TensorMut::new(&mut dk, k_layout),
            dv: TensorMut::new(&mut dv, v_layout),
        },
    )
    .map_err(in_c)?;
    for (gradient, tensor, tokens) in
        [(&dq, &tensors.dq, queries), (&dk, &tensors.dk, keys), (&dv, &tensors.dv, keys)]
    {
        // SAFETY: as above.
        unsafe { scatter(gradient, tensor, *batch, tokens, accumulate) };
    }
    Ok(())
}

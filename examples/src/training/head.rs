//! The loss and its gradient by the hidden states, in chunks of rows: the logits of a long sequence are never there as a whole.

use anyhow::Result;
use candle_core::{D, DType, Tensor, Var};

use super::block::rms_norm;
use super::linear::{View, Weight, continued};
use super::llama::TrainableLlama;
use super::parameters::Gradients;

/// The next token of each row, and 1 where it counts, 0 where the row ends its document.
pub(super) struct Targets {
    pub(super) tokens: Vec<u32>,
    pub(super) counted: Vec<f32>,
}

/// The sum of the losses of the rows that count, in nats, under the hidden states `[tokens, hidden_size]`. With `gradients`,
/// also its gradient by these, and those of the last norm and the output matrix are added.
pub(super) fn loss(
    model: &TrainableLlama,
    hidden: &Tensor,
    targets: &Targets,
    mut gradients: Option<&mut Gradients>,
) -> Result<(f64, Option<Tensor>)> {
    let (rows, _) = hidden.dims2()?;
    let (mut sum, mut by_hidden) = (0.0, Vec::new());
    for start in (0..rows).step_by(model.logit_rows) {
        let count = model.logit_rows.min(rows - start);
        let piece = hidden.narrow(0, start, count)?;
        let device = hidden.device();
        let tokens = Tensor::new(&targets.tokens[start..start + count], device)?.unsqueeze(1)?;
        let counted = Tensor::new(&targets.counted[start..start + count], device)?.unsqueeze(1)?;
        let (loss, gradient) = chunk(model, &piece, &tokens, &counted, gradients.as_deref_mut())?;
        sum += loss;
        by_hidden.extend(gradient);
    }
    let by_hidden = if by_hidden.is_empty() { None } else { Some(Tensor::cat(&by_hidden, 0)?) };
    Ok((sum, by_hidden))
}

/// The same of one chunk; `tokens` and `counted` are `[rows, 1]`.
fn chunk(
    model: &TrainableLlama,
    hidden: &Tensor,
    tokens: &Tensor,
    counted: &Tensor,
    gradients: Option<&mut Gradients>,
) -> Result<(f64, Option<Tensor>)> {
    let view = View { parameters: model.parameters(), recorded: gradients.is_some() };
    let hidden = Var::from_tensor(&hidden.contiguous()?)?;
    let normed = rms_norm(&hidden, &view.get(&model.norm), model.config().norm_epsilon)?;
    let rows = normed.detach();
    let output = view.get(model.output()).detach();
    let logits = rows.matmul(&output.t()?)?.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    drop(logits);
    let weights = shifted.exp()?;
    let total = weights.sum_keepdim(D::Minus1)?;
    let losses = ((total.log()? - shifted.gather(tokens, 1)?)? * counted)?;
    let sum = losses.flatten_all()?.to_vec1::<f32>()?.iter().map(|&loss| f64::from(loss)).sum();
    drop(shifted);
    let Some(gradients) = gradients else { return Ok((sum, None)) };

    // By the logits: the softmax, less one at the target.
    let by_logits = weights.broadcast_mul(&(counted / total)?)?;
    drop(weights);
    let by_logits = by_logits.scatter_add(tokens, &counted.neg()?, 1)?.to_dtype(rows.dtype())?;
    if let Some(index) = model.output().index() {
        gradients.add(index, &by_logits.t()?.matmul(&rows)?)?;
    }
    let by_normed = by_logits.matmul(&output)?;
    let mut found = continued(&normed, &by_normed)?.backward()?;
    if let Weight::Trained(index) = model.norm {
        gradients.collect(model.parameters(), &[index], &mut found)?;
    }
    Ok((sum, found.remove(&hidden)))
}

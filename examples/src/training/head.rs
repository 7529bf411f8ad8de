//! The loss and its gradient by the hidden states, in chunks of rows: the logits of a long sequence are never there as a whole.

use anyhow::Result;
use candle_core::{Tensor, Var};

use super::linear::{View, Weight, continued};
use super::llama::TrainableLlama;
use super::parameters::Gradients;
use crate::model::ops::{cross_entropy, cross_entropy_gradient, rms_norm};

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
        let tokens = Tensor::new(&targets.tokens[start..start + count], device)?;
        let counted = &targets.counted[start..start + count];
        let (losses, gradient) = chunk(model, &piece, &tokens, counted, gradients.as_deref_mut())?;
        sum += losses.iter().zip(counted).map(|(loss, &counted)| loss * f64::from(counted)).sum::<f64>();
        by_hidden.extend(gradient);
    }
    let by_hidden = if by_hidden.is_empty() { None } else { Some(Tensor::cat(&by_hidden, 0)?) };
    Ok((sum, by_hidden))
}

/// The loss of each row of a chunk, and the gradient of the sum of those that count.
fn chunk(
    model: &TrainableLlama,
    hidden: &Tensor,
    tokens: &Tensor,
    counted: &[f32],
    gradients: Option<&mut Gradients>,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let view = View { parameters: model.parameters(), recorded: gradients.is_some() };
    let hidden = Var::from_tensor(&hidden.contiguous()?)?;
    let normed = rms_norm(&hidden, &view.get(&model.norm), model.config().norm_epsilon)?;
    let rows = normed.detach();
    let output = view.get(model.output()).detach();
    let logits = rows.matmul(&output.t()?)?;
    let losses = cross_entropy(&logits, tokens)?.to_vec1::<f64>()?;
    let Some(gradients) = gradients else { return Ok((losses, None)) };

    let counted = Tensor::new(counted, hidden.device())?;
    let by_logits = cross_entropy_gradient(&logits, tokens, &counted)?;
    drop(logits);
    if let Some(index) = model.output().index() {
        gradients.add(index, &by_logits.t()?.matmul(&rows)?)?;
    }
    let by_normed = by_logits.matmul(&output)?;
    let mut found = continued(&normed, &by_normed)?.backward()?;
    if let Weight::Trained(index) = model.norm {
        gradients.collect(model.parameters(), &[index], &mut found)?;
    }
    Ok((losses, found.remove(&hidden)))
}

//! The loss of a pack and its gradients, one block at a time.
//!
//! The forward pass keeps the input of each block, and, where memory allows, the result of its attention, which is most of the work
//! of a long sequence. The backward pass makes a block's other activations again, takes their gradients, and drops them before it
//! goes on to the block below: what is in memory is one block's activations, and a row or two for each block and token.

use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Tensor, Var};
use longrope_candle::{KeptAttention, Rotary};

use super::block::{Documents, Kept};
use super::head::{self, Targets};
use super::linear::{View, Weight, continued};
use super::llama::TrainableLlama;
use super::packing::Pack;
use super::parameters::Gradients;
use crate::interrupt;

/// The loss of some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// The sum over the tokens, in nats.
    pub sum: f64,
    /// How many tokens.
    pub tokens: usize,
}

impl Loss {
    /// A token's.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.sum += other.sum;
        self.tokens += other.tokens;
    }
}

/// The loss of a pack, each token after the first of its document.
///
/// # Errors
/// A token that the model does not have, an error of the device, or [`interrupt::Interrupted`] once Ctrl-C was pressed.
pub fn loss(model: &TrainableLlama, pack: &Pack, rotary: &Rotary) -> Result<Loss> {
    let (hidden, _) = forward(model, pack, rotary, false)?;
    let targets = pack.targets();
    let (sum, _) = head::loss(model, &hidden, &targets, None)?;
    Ok(Loss { sum, tokens: counted(&targets) })
}

/// The same, and the gradients of its sum are added to `gradients`.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_gradients(
    model: &TrainableLlama,
    pack: &Pack,
    rotary: &Rotary,
    gradients: &mut Gradients,
) -> Result<Loss> {
    let (hidden, mut inputs) = forward(model, pack, rotary, true)?;
    let targets = pack.targets();
    let (sum, gradient) = head::loss(model, &hidden, &targets, Some(gradients))?;
    drop(hidden);
    let missing = || anyhow!("the backward pass gave no gradient of the hidden states");
    let mut gradient = gradient.ok_or_else(missing)?;
    let rows = pack.documents();
    let documents = Documents { rows: &rows, rotary };
    let view = View { parameters: model.parameters(), recorded: true };
    for block in model.blocks.iter().rev() {
        interrupt::check()?;
        let (input, results) = inputs.pop().ok_or_else(missing)?;
        let input = Var::from_tensor(&input)?;
        let kept = if model.keeps_attention() { Kept::Again(&results) } else { Kept::Nothing };
        let out = block.forward(&input, view, model.config(), &documents, kept)?;
        let mut found = continued(&out, &gradient)?.backward()?;
        gradients.collect(model.parameters(), &block.parameters(), &mut found)?;
        gradient = found.remove(&input).ok_or_else(missing)?;
    }
    if let Weight::Trained(index) = model.embedding {
        // In f32: a frequent token adds up thousands of rows.
        let zeros = model.parameters()[index].value().zeros_like()?;
        let ids = Tensor::new(pack.tokens(), gradient.device())?;
        gradients.add(index, &zeros.index_add(&ids, &gradient.to_dtype(DType::F32)?, 0)?)?;
    }
    Ok(Loss { sum, tokens: counted(&targets) })
}

fn counted(targets: &Targets) -> usize {
    targets.counted.iter().filter(|&&counted| counted > 0.0).count()
}

/// What the backward pass makes a block's activations again from: its input, and its attention if that is kept.
type Input = (Tensor, Vec<KeptAttention>);

/// The hidden states before the last norm, and the input of each block if they are to be kept.
fn forward(model: &TrainableLlama, pack: &Pack, rotary: &Rotary, keep: bool) -> Result<(Tensor, Vec<Input>)> {
    let vocabulary = model.config().vocab_size;
    // A GPU would read past the embedding.
    let wrong = pack.tokens().iter().find(|token| **token as usize >= vocabulary);
    ensure!(
        wrong.is_none(),
        "tokens: {} is not valid; expected 0 to {}, the vocabulary of the model",
        wrong.unwrap_or(&0),
        vocabulary - 1
    );
    let rows = pack.documents();
    let documents = Documents { rows: &rows, rotary };
    let view = View { parameters: model.parameters(), recorded: false };
    let ids = Tensor::new(pack.tokens(), &model.place().device)?;
    let mut x = view.get(&model.embedding).index_select(&ids, 0)?;
    let mut inputs = Vec::new();
    for block in &model.blocks {
        interrupt::check()?;
        let mut results = Vec::new();
        let kept = match keep && model.keeps_attention() {
            true => Kept::Results(&mut results),
            false => Kept::Nothing,
        };
        let out = block.forward(&x, view, model.config(), &documents, kept)?;
        if keep {
            inputs.push((x, results));
        }
        x = out;
    }
    Ok((x, inputs))
}

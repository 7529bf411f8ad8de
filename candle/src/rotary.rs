//! Rotary embedding of queries and keys.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use longrope::cpu::{self, TensorMut};
use longrope::descriptor::{self, Choices, Direction, Pairing, Positions};
use longrope::scaling::{FactorSets, SetChoice};

use crate::cpu::{Values, into_storage};
use crate::error;
use crate::layout::{contiguous, same_kind};

/// A rotation of queries and keys by the angles of their positions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// The angles and gains of the first `2 * sets.pairs()` dimensions of a head; the others are copied.
    pub sets: Arc<FactorSets>,
    /// Which set the sequences use. A sequence that grows should name the whole length that it will have.
    pub choice: SetChoice,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Rotation or its transpose.
    pub direction: Direction,
    /// The position of every sequence's first token; the next ones follow.
    pub offset: i64,
}

impl Rotary {
    /// A forward rotation in half-split pairs from position 0. Other fields are set by hand.
    pub fn new(sets: impl Into<Arc<FactorSets>>, choice: SetChoice) -> Self {
        Self {
            sets: sets.into(),
            choice,
            pairing: Pairing::HalfSplit,
            direction: Direction::Forward,
            offset: 0,
        }
    }

    /// The same rotation from position `offset` on.
    pub fn at(&self, offset: i64) -> Self {
        Self { offset, ..self.clone() }
    }

    /// Rotates queries and keys, `[batch, length, heads, head_dim]` each, of one type on one device; heads may differ. On a
    /// GPU that is one launch.
    ///
    /// # Errors
    /// Shapes or types that do not belong together, factor sets larger than the heads, or an error of the device.
    pub fn apply(&self, q: &Tensor, k: &Tensor) -> Result<(Tensor, Tensor)> {
        same_kind(("q", q), &[("k", k)])?;
        let both = q.apply_op2(k, RotaryOp(self.clone()))?;
        // One result holds both, one after the other.
        let (first, second) = (q.elem_count(), k.elem_count());
        let part = |start, count, like: &Tensor| both.narrow(0, start, count)?.reshape(like.shape());
        Ok((part(0, first, q)?, part(first, second, k)?))
    }

    /// Rotates one tensor, `[batch, length, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`Rotary::apply`].
    pub fn apply_one(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(RotaryOp(self.clone()))
    }

    /// The same, not recorded for a backward pass.
    pub(crate) fn apply_one_no_bwd(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&RotaryOp(self.clone()))
    }

    /// The transpose, which takes gradients back.
    pub(crate) fn transposed(&self) -> Self {
        let direction = match self.direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        Self { direction, ..self.clone() }
    }

    /// What the core is told.
    pub(crate) fn descriptor(&self) -> descriptor::Rotary<'_> {
        descriptor::Rotary {
            sets: &self.sets,
            pairing: self.pairing,
            direction: self.direction,
            positions: Positions::Offset(self.offset),
            choices: Choices::All(self.choice),
        }
    }

    /// The rotated values, those of one input after those of the other.
    pub(crate) fn on_cpu(&self, inputs: &[(&str, &CpuStorage, &Layout)]) -> Result<CpuStorage> {
        let values = inputs
            .iter()
            .map(|(name, storage, layout)| Values::new(name, storage, layout))
            .collect::<Result<Vec<_>>>()?;
        if let [q, k] = &values[..] {
            same_tokens(q.layout(), k.layout())?;
        }
        let rotary = self.descriptor();
        let sizes: Vec<usize> = inputs.iter().map(|(_, _, layout)| layout.shape().elem_count()).collect();
        let mut out = vec![0.0; sizes.iter().sum()];
        let mut rest = &mut out[..];
        for (values, size) in values.iter().zip(sizes) {
            let (part, others) = rest.split_at_mut(size);
            let shape = contiguous(values.layout().shape());
            cpu::rotary(&rotary, values.tensor(), TensorMut::new(part, shape)).map_err(error)?;
            rest = others;
        }
        Ok(into_storage(out, inputs[0].1))
    }
}

/// The operation as candle records it.
struct RotaryOp(Rotary);

/// Its name in errors, such as that of a backward pass.
const NAME: &str = "longrope-rotary";

/// As the kernel demands, so that a call means the same on every device.
fn same_tokens(q: descriptor::Layout, k: descriptor::Layout) -> Result<()> {
    let of = |layout: descriptor::Layout| [layout.batch(), layout.length(), layout.head_dim()];
    match of(q) == of(k) {
        true => Ok(()),
        false => Err(error(longrope::Error::argument(
            "k",
            format!("shape {:?}", k.shape()),
            format!("batch {}, length {} and head dimension {}, as q", q.batch(), q.length(), q.head_dim()),
        ))),
    }
}

impl CustomOp1 for RotaryOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((self.0.on_cpu(&[("x", storage, layout)])?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.transposed().apply_one(gradient)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let out = crate::cuda::rotary(&self.0, &[("x", storage, layout)])?;
        Ok((out, layout.shape().clone()))
    }
}

impl CustomOp2 for RotaryOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.0.on_cpu(&[("q", q, q_layout), ("k", k, k_layout)])?;
        Ok((out, both(q_layout, k_layout)))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (first, second) = (q.elem_count(), k.elem_count());
        let dq = gradient.narrow(0, 0, first)?.reshape(q.shape())?;
        let dk = gradient.narrow(0, first, second)?.reshape(k.shape())?;
        let (dq, dk) = self.0.transposed().apply(&dq, &dk)?;
        Ok((Some(dq), Some(dk)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_layout: &Layout,
        k: &candle_core::CudaStorage,
        k_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let layouts = [crate::layout::layout("q", q_layout)?, crate::layout::layout("k", k_layout)?];
        same_tokens(layouts[0], layouts[1])?;
        let out = crate::cuda::rotary(&self.0, &[("q", q, q_layout), ("k", k, k_layout)])?;
        Ok((out, both(q_layout, k_layout)))
    }
}

/// The shape of a result that holds both.
fn both(q: &Layout, k: &Layout) -> Shape {
    Shape::from(q.shape().elem_count() + k.shape().elem_count())
}

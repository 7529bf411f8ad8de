//! Rotary embedding in f32 from the exact phase.

use std::f64::consts::TAU;

use rayon::prelude::*;

use crate::Error;
use crate::cpu::tensor::{Tensor, TensorMut};
use crate::descriptor::{Direction, Layout, Pairing, Rotary};
use crate::scaling::{Angles, FactorSet, phase};

/// Rotates `x` into `out`, both `[batch, length, heads, head_dim]` with any strides.
///
/// Pair `(x1, x2)` becomes `gain * (x1 cos - x2 sin, x2 cos + x1 sin)` of the angle at its token's position (RoPE,
/// arXiv 2104.09864, eq. 34, with LongRoPE's rescaling, arXiv 2402.13753, eq. 3). Dimensions beyond the rotary ones
/// are copied. With exact angles, at positions within +-2^31, the result is within `2.4e-7 * gain * hypot(x1, x2)` of the
/// exact value.
///
/// # Errors
/// A layout outside its buffer, an output that overlaps itself, shapes that differ, or positions and choices whose
/// number does not fit the shape. Nothing is written then.
pub fn rotary(rotary: &Rotary<'_>, x: Tensor<'_>, out: TensorMut<'_>) -> Result<(), Error> {
    x.check("x")?;
    if out.layout().shape() != x.layout.shape() {
        return Err(Error::argument(
            "out",
            format!("shape {:?}", out.layout().shape()),
            format!("{:?}, as x", x.layout.shape()),
        ));
    }
    out.check("out")?;
    rotary.validate(&x.layout)?;
    let layout = x.layout;
    let (source, target) = (x, out.into_rows());
    for_each_token(rotary, &layout, |batch, token, angles| {
        for head in 0..layout.heads() {
            let from = source.row(batch, token, head);
            let to = target.row(batch, token, head);
            // SAFETY: `source` was checked to lie in its buffer, `target` in its own and to have distinct elements; a
            // token belongs to one thread. The buffers do not overlap, as one is borrowed exclusively.
            unsafe {
                angles.apply(rotary.pairing, from, source.layout.dim_stride(), to, target.dim_stride());
                let rotated = 2 * angles.cos_sin.len();
                for i in rotated as isize..layout.head_dim() as isize {
                    *to.offset(i * target.dim_stride()) = *from.offset(i * source.layout.dim_stride());
                }
            }
        }
    });
    Ok(())
}

/// Rotates `x` in place.
///
/// # Errors
/// As [`rotary()`].
pub fn rotary_in_place(rotary: &Rotary<'_>, x: TensorMut<'_>) -> Result<(), Error> {
    let layout = x.layout();
    x.check("x")?;
    rotary.validate(&layout)?;
    let rows = x.into_rows();
    for_each_token(rotary, &layout, |batch, token, angles| {
        for head in 0..layout.heads() {
            let row = rows.row(batch, token, head);
            // SAFETY: the view was checked to lie in its buffer with distinct elements; a token belongs to one thread.
            // Reading and writing the same row is what `apply` allows.
            unsafe { angles.apply(rotary.pairing, row, rows.dim_stride(), row, rows.dim_stride()) };
        }
    });
    Ok(())
}

/// Calls `work` for every token, in parallel, with the cosine and sine of its position.
fn for_each_token(
    rotary: &Rotary<'_>,
    layout: &Layout,
    work: impl Fn(usize, usize, &TokenAngles) + Send + Sync,
) {
    if layout.is_empty() {
        return;
    }
    let length = layout.length();
    (0..layout.batch() * length).into_par_iter().with_min_len(16).for_each_init(
        TokenAngles::default,
        |angles, i| {
            let (batch, token) = (i / length, i % length);
            let position = rotary.position(batch, token, length);
            let set = rotary.sets.at(position, rotary.choice(batch));
            angles.fill(set, position, rotary.direction);
            work(batch, token, angles);
        },
    );
}

/// Cosine and sine of each pair at one position, the gain multiplied in.
#[derive(Default)]
struct TokenAngles {
    cos_sin: Vec<(f32, f32)>,
}

impl TokenAngles {
    fn fill(&mut self, set: &FactorSet, position: i64, direction: Direction) {
        let gain = f64::from(set.gain());
        let sign = match direction {
            Direction::Forward => gain,
            Direction::Backward => -gain,
        };
        self.cos_sin.clear();
        match set.angles() {
            Angles::Exact(steps) => self.cos_sin.extend(steps.iter().map(|&step| {
                let turns = phase(position, step) as f64 * 2f64.powi(-64);
                let (sin, cos) = (turns * TAU).sin_cos();
                ((cos * gain) as f32, (sin * sign) as f32)
            })),
            // Hugging Face multiplies position and frequency in f32, takes cosine and sine, then multiplies the gain.
            Angles::Parity(frequencies) => self.cos_sin.extend(frequencies.iter().map(|&frequency| {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                (cos * gain as f32, sin * sign as f32)
            })),
        }
    }

    /// Rotates one head.
    ///
    /// # Safety
    /// `from` and `to` with their steps must be valid for the rotated dimensions, and must either be the same row or
    /// not overlap.
    unsafe fn apply(
        &self,
        pairing: Pairing,
        from: *const f32,
        from_step: isize,
        to: *mut f32,
        to_step: isize,
    ) {
        let half = self.cos_sin.len() as isize;
        for (i, &(cos, sin)) in (0isize..).zip(&self.cos_sin) {
            let (first, second) = match pairing {
                Pairing::HalfSplit => (i, i + half),
                Pairing::Interleaved => (2 * i, 2 * i + 1),
            };
            // SAFETY: by this function's contract; both values are read before either is written.
            unsafe {
                let x1 = *from.offset(first * from_step);
                let x2 = *from.offset(second * from_step);
                *to.offset(first * to_step) = x1 * cos - x2 * sin;
                *to.offset(second * to_step) = x2 * cos + x1 * sin;
            }
        }
    }
}

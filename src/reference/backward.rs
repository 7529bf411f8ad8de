//! The gradients of attention, from the plain formulas.

use super::ReferenceError;
use super::attention::{Problem, dot};
use super::error::check_shape;
use super::rotary::{Direction, Factors, Pairing, rotate_rows};

/// Result of [`Problem::backward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Gradient of the queries, `[query_length, query_heads, head_dim]`.
    pub dq: Vec<f64>,
    /// Gradient of the keys, `[key_length, key_heads, head_dim]`: summed over the query heads that share a key head.
    pub dk: Vec<f64>,
    /// Gradient of the values, `[key_length, key_heads, head_dim]`.
    pub dv: Vec<f64>,
}

impl Problem {
    /// Gradients of `Σ out · d_out + Σ lse · d_lse`, given `d_out` in `[query_length, query_heads, head_dim]` and, where the
    /// log-sum-exp is used further on, `d_lse` in `[query_length, query_heads]`. With S the scaled scores, P the
    /// probabilities:
    ///
    /// ```text
    /// P  = exp(S) / Σ_j exp(S_ij)  dV = Pᵀ dO
    /// dP = dO Vᵀ                   delta_i = Σ_j P_ij dP_ij
    /// dS = P ∘ (dP - delta + d_lse)    dQ = scale · dS K    dK = scale · dSᵀ Q
    /// ```
    ///
    /// A fully masked row adds nothing, whatever its `d_out` and `d_lse`.
    ///
    /// # Errors
    /// Where a field of the problem is out of range, or a slice has another length than its shape.
    pub fn backward(
        &self,
        q: &[f64],
        k: &[f64],
        v: &[f64],
        d_out: &[f64],
        d_lse: Option<&[f64]>,
    ) -> Result<Gradients, ReferenceError> {
        self.check(q, k, v)?;
        self.check_queries("d_out", d_out)?;
        if let Some(d_lse) = d_lse {
            let extents = [self.query_length, self.query_heads];
            check_shape("d_lse", d_lse, "[query_length, query_heads]", &extents)?;
        }

        let mut gradients =
            Gradients { dq: vec![0.0; q.len()], dk: vec![0.0; k.len()], dv: vec![0.0; v.len()] };
        for query in 0..self.query_length {
            for head in 0..self.query_heads {
                let row = query * self.query_heads + head;
                let d_lse = d_lse.map_or(0.0, |d_lse| d_lse[row]);
                let (q_row, d_out_row) = (self.query_row(q, query, head), self.query_row(d_out, query, head));
                // (key, P, dP) of the keys that this row sees.
                let terms: Vec<_> = self
                    .probabilities(q, k, query, head)
                    .0
                    .into_iter()
                    .map(|(key, p)| (key, p, dot(d_out_row, self.key_row(v, key, head))))
                    .collect();
                let delta: f64 = terms.iter().map(|(_, p, dp)| p * dp).sum();

                for (key, p, dp) in terms {
                    let ds = self.scale * p * (dp - delta + d_lse);
                    let keys = self.key_range(key, head);
                    add(&mut gradients.dv[keys.clone()], p, d_out_row);
                    add(&mut gradients.dk[keys.clone()], ds, q_row);
                    add(&mut gradients.dq[self.query_range(query, head)], ds, &k[keys]);
                }
            }
        }
        Ok(gradients)
    }
}

impl Gradients {
    /// Of gradients by rotated queries and keys of `problem`, those by what they were before: each row through the transpose of
    /// the rotation at its global position, by the factors that `choose` gives for it. Values are rotated by nothing.
    ///
    /// # Errors
    /// Those of [`rotate_rows`].
    pub fn before_rotation<'a>(
        self,
        problem: &Problem,
        choose: impl Fn(i64) -> Factors<'a>,
        pairing: Pairing,
    ) -> Result<Self, ReferenceError> {
        let transpose = |x: &[f64], heads, first: i64, length: usize| {
            let positions: Vec<i64> = (0..length as i64).map(|token| first.wrapping_add(token)).collect();
            rotate_rows(x, heads, &positions, &choose, pairing, Direction::Backward)
        };
        Ok(Self {
            dq: transpose(&self.dq, problem.query_heads, problem.query_offset, problem.query_length)?,
            dk: transpose(&self.dk, problem.key_heads, problem.key_offset, problem.key_length)?,
            dv: self.dv,
        })
    }
}

/// `sum += factor · x`.
fn add(sum: &mut [f64], factor: f64, x: &[f64]) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += factor * x;
    }
}

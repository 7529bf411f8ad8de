//! Softmax attention of one sequence, with grouped heads, global positions, a causal mask and a sliding window.

use super::ReferenceError;
use super::error::check_shape;

/// What is asked of one attention. Tensors are contiguous: queries, the output and its gradient in
/// `[query_length, query_heads, head_dim]`, keys and values in `[key_length, key_heads, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Heads of the queries.
    pub query_heads: usize,
    /// Heads of the keys and values; divides `query_heads`. Query head `h` reads key head `h / (query_heads / key_heads)`.
    pub key_heads: usize,
    /// Query rows. May be zero.
    pub query_length: usize,
    /// Key rows. May be zero: then every query row is fully masked.
    pub key_length: usize,
    /// Elements of a head row.
    pub head_dim: usize,
    /// Multiplies the dot products; usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Whether a query sees only keys at its own global position and before.
    pub causal: bool,
    /// With `Some(w)`, a causal query sees the `w` latest positions, its own included; a query that is not causal sees
    /// those less than `w` positions away on both sides. `Some(0)` masks everything.
    pub window: Option<u64>,
    /// Global position of query row 0; row `i` is at `query_offset + i`.
    pub query_offset: i64,
    /// Global position of key row 0.
    pub key_offset: i64,
}

/// Result of [`Problem::forward`], or of [`merge`](super::merge::merge).
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The weighted mean of the values, `[query_length, query_heads, head_dim]`; zero in a fully masked row.
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of the exponentials of a row's scaled scores, `[query_length, query_heads]`; -∞ in a
    /// fully masked row.
    pub lse: Vec<f64>,
}

impl Problem {
    /// Whether query row `query` may see key row `key`.
    pub fn allows(&self, query: usize, key: usize) -> bool {
        // i128: no sum of an offset and a row overflows.
        let query_position = i128::from(self.query_offset) + query as i128;
        let key_position = i128::from(self.key_offset) + key as i128;
        let distance = query_position - key_position;
        let causal = !self.causal || distance >= 0;
        let window = self.window.is_none_or(|window| distance.abs() < i128::from(window));
        causal && window
    }

    /// Attention: `out = softmax(scale · q kᵀ + mask) v` for every head, and the log-sum-exp.
    ///
    /// Sums are plain f64 sums over the keys, so `out` is within about `key_length · 1e-16` of the largest value, times the
    /// magnitude of the scores where that is above 1; in practice far nearer.
    ///
    /// # Errors
    /// Where a field of the problem is out of range, or a slice has another length than its shape.
    pub fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> Result<Output, ReferenceError> {
        self.check(q, k, v)?;
        let mut out = vec![0.0; q.len()];
        let mut lse = vec![f64::NEG_INFINITY; self.query_length * self.query_heads];
        for query in 0..self.query_length {
            for head in 0..self.query_heads {
                let row = query * self.query_heads + head;
                let (probabilities, row_lse) = self.probabilities(q, k, query, head);
                lse[row] = row_lse;
                for (key, probability) in probabilities {
                    let value = self.key_row(v, key, head);
                    for (sum, x) in self.query_row_mut(&mut out, query, head).iter_mut().zip(value) {
                        *sum += probability * x;
                    }
                }
            }
        }
        Ok(Output { out, lse })
    }

    /// The keys that a query row sees, in order, each with its probability; and the log-sum-exp of the row.
    pub(super) fn probabilities(
        &self,
        q: &[f64],
        k: &[f64],
        query: usize,
        head: usize,
    ) -> (Vec<(usize, f64)>, f64) {
        let query_row = self.query_row(q, query, head);
        let keys: Vec<usize> = (0..self.key_length).filter(|&key| self.allows(query, key)).collect();
        let scores: Vec<f64> =
            keys.iter().map(|&key| self.scale * dot(query_row, self.key_row(k, key, head))).collect();
        let (probabilities, lse) = softmax(&scores);
        (keys.into_iter().zip(probabilities).collect(), lse)
    }

    /// Where head row `head` of query row `query` lies in `[query_length, query_heads, head_dim]`.
    pub(super) fn query_range(&self, query: usize, head: usize) -> std::ops::Range<usize> {
        let start = (query * self.query_heads + head) * self.head_dim;
        start..start + self.head_dim
    }

    /// Where the row of `key` that query head `head` reads lies in `[key_length, key_heads, head_dim]`.
    pub(super) fn key_range(&self, key: usize, head: usize) -> std::ops::Range<usize> {
        let key_head = head / (self.query_heads / self.key_heads);
        let start = (key * self.key_heads + key_head) * self.head_dim;
        start..start + self.head_dim
    }

    pub(super) fn query_row<'a>(&self, x: &'a [f64], query: usize, head: usize) -> &'a [f64] {
        &x[self.query_range(query, head)]
    }

    pub(super) fn query_row_mut<'a>(&self, x: &'a mut [f64], query: usize, head: usize) -> &'a mut [f64] {
        &mut x[self.query_range(query, head)]
    }

    pub(super) fn key_row<'a>(&self, x: &'a [f64], key: usize, head: usize) -> &'a [f64] {
        &x[self.key_range(key, head)]
    }

    pub(super) fn check(&self, q: &[f64], k: &[f64], v: &[f64]) -> Result<(), ReferenceError> {
        if self.query_heads == 0 {
            return Err(ReferenceError::invalid("problem.query_heads", 0, "at least 1"));
        }
        if self.key_heads == 0 || !self.query_heads.is_multiple_of(self.key_heads) {
            return Err(ReferenceError::invalid(
                "problem.key_heads",
                self.key_heads,
                format!("a divisor of query_heads = {}", self.query_heads),
            ));
        }
        if self.head_dim == 0 {
            return Err(ReferenceError::invalid("problem.head_dim", 0, "at least 1"));
        }
        if !self.scale.is_finite() {
            return Err(ReferenceError::invalid("problem.scale", self.scale, "a finite number"));
        }
        self.check_queries("q", q)?;
        let names = "[key_length, key_heads, head_dim]";
        let extents = [self.key_length, self.key_heads, self.head_dim];
        check_shape("k", k, names, &extents)?;
        check_shape("v", v, names, &extents)?;
        Ok(())
    }

    pub(super) fn check_queries(&self, argument: &str, x: &[f64]) -> Result<(), ReferenceError> {
        let names = "[query_length, query_heads, head_dim]";
        let extents = [self.query_length, self.query_heads, self.head_dim];
        check_shape(argument, x, names, &extents).map(|_| ())
    }
}

/// The weights exp(score) / Σ exp(score), and ln Σ exp(score). Of no score, or of none above -∞, the weights are zero and
/// the logarithm is -∞. A NaN score makes all of them NaN.
///
/// By way of the largest score, not as exp(score - lse): the rounding of a large lse would be a factor on every weight.
pub(super) fn softmax(scores: &[f64]) -> (Vec<f64>, f64) {
    // Unlike `f64::max`, this keeps a NaN.
    let larger = |a: f64, &b: &f64| if b.is_nan() || b > a { b } else { a };
    let largest = scores.iter().fold(f64::NEG_INFINITY, larger);
    if largest == f64::NEG_INFINITY {
        return (vec![0.0; scores.len()], largest);
    }
    let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    (exponentials.iter().map(|x| x / sum).collect(), largest + sum.ln())
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::softmax;

    const MINUS_INFINITY: f64 = f64::NEG_INFINITY;

    #[test]
    fn the_softmax_of_nothing_or_of_minus_infinity_is_zero_and_never_nan() {
        assert_eq!(softmax(&[]), (vec![], MINUS_INFINITY));
        assert_eq!(softmax(&[MINUS_INFINITY; 2]), (vec![0.0; 2], MINUS_INFINITY));
        assert_eq!(softmax(&[MINUS_INFINITY, -1e300]), (vec![0.0, 1.0], -1e300));
    }

    #[test]
    fn a_nan_score_is_not_hidden_wherever_it_stands() {
        for scores in [[f64::NAN, 1.0], [1.0, f64::NAN], [MINUS_INFINITY, f64::NAN], [f64::NAN; 2]] {
            let (weights, lse) = softmax(&scores);
            assert!(lse.is_nan() && weights.iter().all(|weight| weight.is_nan()));
        }
    }
}

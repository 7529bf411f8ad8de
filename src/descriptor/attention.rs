//! The descriptor of an attention.

use crate::{Error, descriptor::Layout};

/// Scaled dot-product attention with grouped heads: mask, scale and where the tokens stand.
///
/// Query `i` has the global position `query_offset + i`, key `j` has `key_offset + j`; the masks compare global
/// positions, so a chunk of a prefill and a step of decoding are the same call with other offsets. A row whose keys
/// are all masked gives zeros and a log-sum-exp of minus infinity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What logits are multiplied by; `None` is `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// Whether a query sees keys at its own position and before only.
    pub causal: bool,
    /// How many positions a query sees back, its own included: keys `p - window < position`. Without `causal` it sees
    /// as many ahead. `None` is no limit.
    pub window: Option<u64>,
    /// Global position of the first query.
    pub query_offset: i64,
    /// Global position of the first key.
    pub key_offset: i64,
}

impl Default for Attention {
    /// Full attention from position 0.
    fn default() -> Self {
        Self { scale: None, causal: false, window: None, query_offset: 0, key_offset: 0 }
    }
}

impl Attention {
    /// Causal attention from position 0.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Checks the descriptor and that the layouts of q, k, v and the output belong together.
    pub(crate) fn validate(&self, q: &Layout, k: &Layout, v: &Layout, out: &Layout) -> Result<(), Error> {
        let same = |name: &str, found: usize, expected: usize, whose: &str| match found == expected {
            true => Ok(()),
            false => Err(Error::argument(name, found, format!("{expected}, as {whose}"))),
        };
        if q.head_dim() == 0 {
            return Err(Error::argument("q.head_dim", 0, "at least 1"));
        }
        same("k.batch", k.batch(), q.batch(), "q")?;
        same("k.head_dim", k.head_dim(), q.head_dim(), "q")?;
        same("v.batch", v.batch(), k.batch(), "k")?;
        same("v.length", v.length(), k.length(), "k")?;
        same("v.heads", v.heads(), k.heads(), "k")?;
        same("v.head_dim", v.head_dim(), k.head_dim(), "k")?;
        for (name, found, expected) in [
            ("out.batch", out.batch(), q.batch()),
            ("out.length", out.length(), q.length()),
            ("out.heads", out.heads(), q.heads()),
            ("out.head_dim", out.head_dim(), q.head_dim()),
        ] {
            same(name, found, expected, "q")?;
        }
        if k.heads() == 0 || !q.heads().is_multiple_of(k.heads()) {
            return Err(Error::argument(
                "k.heads",
                k.heads(),
                format!("a divisor of the number of query heads ({})", q.heads()),
            ));
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::argument("scale", scale, "a finite number"));
        }
        if self.window == Some(0) {
            return Err(Error::argument("window", 0, "at least 1, since a query sees its own position"));
        }
        for (name, offset, length) in
            [("query_offset", self.query_offset, q.length()), ("key_offset", self.key_offset, k.length())]
        {
            // Half of the range leaves room for differences of positions.
            let last = offset.checked_add_unsigned(length as u64);
            if offset < -(1 << 62) || last.is_none_or(|last| last > 1 << 62) {
                return Err(Error::argument(name, offset, "positions from -2^62 to 2^62"));
            }
        }
        Ok(())
    }

    /// The factor of the logits for this head dimension.
    pub(crate) fn scale_for(&self, head_dim: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt())
    }

    /// The keys that the query at global position `position` sees, as a half-open range of key indices within
    /// `0..keys`; empty if it sees none.
    pub(crate) fn visible(&self, position: i64, keys: usize) -> (usize, usize) {
        let reach = self.window.map_or(i64::MAX, |window| i64::try_from(window).unwrap_or(i64::MAX));
        let first = position.saturating_sub(reach).saturating_add(1);
        let last = match self.causal {
            true => position,
            false => position.saturating_add(reach).saturating_sub(1),
        };
        // Without a window the reach saturates, which must not cut off the far ends.
        let first = if self.window.is_none() { i64::MIN } else { first };
        let last = if self.window.is_none() && !self.causal { i64::MAX } else { last };
        let index = |position: i64| {
            (i128::from(position) - i128::from(self.key_offset)).clamp(0, keys as i128) as usize
        };
        let (start, end) = (index(first), index(last.saturating_add(1)));
        let end = if last == i64::MAX { keys } else { end };
        (start, end.max(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brute_force(attention: &Attention, position: i64, keys: usize) -> Vec<usize> {
        (0..keys)
            .filter(|&j| {
                let key = attention.key_offset + j as i64;
                let causal = !attention.causal || key <= position;
                let near = attention.window.is_none_or(|w| {
                    let w = i128::from(w);
                    let gap = i128::from(position) - i128::from(key);
                    gap < w && -gap < w
                });
                causal && near
            })
            .collect()
    }

    #[test]
    fn the_visible_keys_are_those_the_masks_allow_one_by_one() {
        for causal in [false, true] {
            for window in [None, Some(1), Some(3), Some(100), Some(u64::MAX)] {
                for key_offset in [-7, 0, 4] {
                    let attention = Attention { causal, window, key_offset, ..Attention::default() };
                    for position in -12..20 {
                        let (start, end) = attention.visible(position, 9);
                        let seen: Vec<usize> = (start..end).collect();
                        assert_eq!(seen, brute_force(&attention, position, 9), "{attention:?} {position}");
                    }
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_belong_together_are_named() {
        let q = Layout::bshd(1, 4, 4, 8);
        let k = Layout::bshd(1, 6, 2, 8);
        assert!(Attention::causal().validate(&q, &k, &k, &q).is_ok());
        let three = Layout::bshd(1, 6, 3, 8);
        let message = Attention::causal().validate(&q, &three, &three, &q).unwrap_err().to_string();
        assert_eq!(message, "k.heads: 3 is not valid; expected a divisor of the number of query heads (4)");
        assert!(Attention::causal().validate(&q, &k, &Layout::bshd(1, 5, 2, 8), &q).is_err());
        let nan = Attention { scale: Some(f32::NAN), ..Attention::default() };
        assert!(nan.validate(&q, &k, &k, &q).is_err());
        let none = Attention { window: Some(0), ..Attention::default() };
        assert!(none.validate(&q, &k, &k, &q).is_err());
        let far = Attention { query_offset: i64::MAX, ..Attention::default() };
        assert!(far.validate(&q, &k, &k, &q).is_err());
    }
}

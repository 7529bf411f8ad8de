//! Shapes and strides.

use crate::Error;

/// The shape and strides of a tensor with dimensions batch, length (tokens), heads, head dimension.
///
/// Strides are in elements, may be any, and are 64-bit throughout: 1,048,576 tokens of 32 heads of 128 are 2^32
/// elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: [usize; 4],
    strides: [i64; 4],
}

impl Layout {
    /// Contiguous `[batch, length, heads, head_dim]`.
    pub fn bshd(batch: usize, length: usize, heads: usize, head_dim: usize) -> Self {
        let (d, h, s) = (head_dim as i64, heads as i64, length as i64);
        let token = h.wrapping_mul(d);
        Self::strided([batch, length, heads, head_dim], [s.wrapping_mul(token), token, d, 1])
    }

    /// Contiguous `[batch, heads, length, head_dim]`.
    pub fn bhsd(batch: usize, length: usize, heads: usize, head_dim: usize) -> Self {
        let (d, h, s) = (head_dim as i64, heads as i64, length as i64);
        let head = s.wrapping_mul(d);
        Self::strided([batch, length, heads, head_dim], [h.wrapping_mul(head), d, head, 1])
    }

    /// Any strides, in elements, for a shape of batch, length, heads, head dimension.
    pub const fn strided(shape: [usize; 4], strides: [i64; 4]) -> Self {
        Self { shape, strides }
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> usize {
        self.shape[1]
    }

    /// Heads of a token.
    pub fn heads(&self) -> usize {
        self.shape[2]
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.shape[3]
    }

    /// Batch, length, heads, head dimension.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// The strides of batch, length, heads and head dimension, in elements.
    pub fn strides(&self) -> [i64; 4] {
        self.strides
    }

    /// Where the first dimension of a head lies, in elements from the tensor's first.
    pub(crate) fn row(&self, batch: usize, token: usize, head: usize) -> isize {
        let [b, s, h, _] = self.strides.map(|stride| stride as isize);
        batch as isize * b + token as isize * s + head as isize * h
    }

    /// The step from one dimension of a head to the next, in elements.
    pub(crate) fn dim_stride(&self) -> isize {
        self.strides[3] as isize
    }

    /// Whether there is no element at all.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The lowest and the highest offset of an element from the tensor's first, or `None` if there is no element.
    fn extent(&self, name: &str) -> Result<Option<(i64, i64)>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let (mut low, mut high) = (0i64, 0i64);
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let end = i64::try_from(size - 1).ok().and_then(|last| last.checked_mul(stride));
            let ends = end.and_then(|end| match end < 0 {
                true => Some((low.checked_add(end)?, high)),
                false => Some((low, high.checked_add(end)?)),
            });
            (low, high) = ends.ok_or_else(|| {
                Error::argument(
                    name,
                    format!("shape {:?} with strides {:?}", self.shape, self.strides),
                    "offsets that fit 63 bits",
                )
            })?;
        }
        Ok(Some((low, high)))
    }

    /// Checks that every element lies within a buffer of `elements`, the tensor's first being at `offset`.
    pub(crate) fn check_bounds(&self, name: &str, offset: usize, elements: usize) -> Result<(), Error> {
        let Some((low, high)) = self.extent(name)? else { return Ok(()) };
        let (offset, elements) = (offset as i128, elements as i128);
        if offset + i128::from(low) < 0 || offset + i128::from(high) >= elements {
            return Err(Error::argument(
                name,
                format!(
                    "shape {:?} with strides {:?} at offset {offset}, which spans elements {} to {}",
                    self.shape,
                    self.strides,
                    offset + i128::from(low),
                    offset + i128::from(high)
                ),
                format!("elements 0 to {} of the buffer", elements - 1),
            ));
        }
        Ok(())
    }

    /// Checks that no two indices share an element, as an output must.
    ///
    /// With the strides in rising order, each must step over all that the smaller ones reach. That holds for every
    /// layout that is a permuted, padded or sliced dense one.
    pub(crate) fn check_distinct(&self, name: &str) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let mut dims: Vec<(u128, u128)> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(size, _)| **size > 1)
            .map(|(&size, &stride)| (u128::from(stride.unsigned_abs()), size as u128))
            .collect();
        dims.sort_unstable();
        let mut reach = 0u128;
        for (stride, size) in dims {
            if stride <= reach {
                return Err(Error::argument(
                    name,
                    format!("shape {:?} with strides {:?}, where elements overlap", self.shape, self.strides),
                    "an output whose elements are distinct",
                ));
            }
            reach += stride * (size - 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_contiguous_orders_have_the_same_shape_and_other_strides() {
        let (bshd, bhsd) = (Layout::bshd(2, 5, 3, 8), Layout::bhsd(2, 5, 3, 8));
        assert_eq!(bshd.shape(), bhsd.shape());
        assert_eq!(bshd.strides(), [120, 24, 8, 1]);
        assert_eq!(bhsd.strides(), [120, 8, 40, 1]);
        assert_eq!(bhsd.row(1, 2, 1), 120 + 16 + 40);
    }

    #[test]
    fn bounds_are_checked_in_both_directions() {
        let layout = Layout::strided([1, 4, 1, 2], [0, -2, 2, 1]);
        assert!(layout.check_bounds("q", 6, 8).is_ok());
        assert!(layout.check_bounds("q", 5, 8).is_err());
        assert!(layout.check_bounds("q", 7, 8).is_err());
        assert!(Layout::bshd(0, 9, 9, 9).check_bounds("q", 0, 0).is_ok());
        let message = Layout::bshd(1, 2, 1, 2).check_bounds("q", 0, 3).unwrap_err().to_string();
        assert!(message.starts_with("q: shape [1, 2, 1, 2]"), "{message}");
    }

    #[test]
    fn offsets_beyond_63_bits_are_an_error() {
        let layout = Layout::strided([1, 1 << 40, 1, 1], [0, 1 << 40, 0, 1]);
        assert!(layout.check_bounds("q", 0, usize::MAX).is_err());
        // and offsets beyond 2^32 are not
        assert!(Layout::bshd(1, 1 << 20, 32, 128).check_bounds("q", 0, 1 << 32).is_ok());
        assert!(Layout::bshd(1, 1 << 20, 32, 128).check_bounds("q", 0, (1 << 32) - 1).is_err());
    }

    #[test]
    fn an_output_that_overlaps_itself_is_refused() {
        assert!(Layout::bshd(2, 3, 4, 8).check_distinct("out").is_ok());
        assert!(Layout::bhsd(2, 3, 4, 8).check_distinct("out").is_ok());
        assert!(Layout::strided([1, 3, 1, 4], [0, 6, 0, 1]).check_distinct("out").is_ok());
        assert!(Layout::strided([1, 3, 2, 4], [0, 4, 0, 1]).check_distinct("out").is_err());
        assert!(Layout::strided([2, 3, 1, 4], [4, 4, 4, 1]).check_distinct("out").is_err());
    }
}

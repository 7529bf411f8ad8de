//! The workspace of attention backward in one kernel (attention_backward_fast.rs): what lies there, and for how many heads at a time.

/// Bytes before all else: a counter; and as many to align what follows.
pub(super) const COUNTER_BYTES: usize = 128;

/// What bounds the slab.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlabBounds {
    /// Bytes for several key heads, or sequences.
    pub(super) several: usize,
    /// Bytes for the query heads of one key head and one sequence of the batch: no fewer can be had.
    pub(super) one: usize,
}

/// 1 GiB, which costs few heads at a time at no usual length; and what four query heads need of 1,048,576 tokens and 128
/// dimensions, with the room between packed sequences: beyond it the kernels without a slab are taken.
pub(super) const BOUNDS: SlabBounds = SlabBounds { several: 1 << 30, one: (2 << 30) + (32 << 20) };

/// Bytes of what lies in the workspace behind the counter: zeros, the slab, which is zeros only where sums have any order, and the sums
/// that are folded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes {
    pub(super) turns: usize,
    pub(super) key_turns: usize,
    pub(super) items: usize,
    /// Of dK and dV, and of dQ.
    pub(super) key_slab: usize,
    pub(super) slab: usize,
    pub(super) sums: usize,
}

impl Bytes {
    fn parts(&self) -> [usize; 6] {
        let Self { turns, key_turns, items, key_slab, slab, sums } = *self;
        [turns, key_turns, items, key_slab, slab, sums]
    }

    /// Of all but the sums, which one key head and one sequence have.
    pub(super) fn of_one(&self) -> Option<usize> {
        self.parts()[..5].iter().try_fold(0usize, |sum, bytes| sum.checked_add(*bytes))
    }

    /// As many of each, and these sums.
    pub(super) fn times(self, count: usize, sums: usize) -> Self {
        let [turns, key_turns, items, key_slab, slab, _] =
            self.parts().map(|bytes| (count * bytes).next_multiple_of(COUNTER_BYTES));
        Self { turns, key_turns, items, key_slab, slab, sums }
    }

    pub(super) fn all(&self) -> usize {
        self.parts().iter().sum()
    }

    /// Of those that are zeros before the launch. The first block to add in turn writes.
    pub(super) fn zeros(&self, in_turn: bool) -> usize {
        self.all() - self.sums - if in_turn { self.slab } else { 0 }
    }

    /// Where each begins.
    pub(super) fn addresses(&self, first: u64) -> [u64; 6] {
        let mut next = first;
        self.parts().map(|bytes| {
            let address = next;
            next += bytes as u64;
            address
        })
    }
}

/// How many sequences of the batch and key heads of so many are worked on together, where one of each needs `one` bytes: of equal
/// size, as far as that goes. All of the batch, if there is room; else one head. `None` if there is no room for one.
pub(super) fn together([batch, heads]: [usize; 2], one: usize, bounds: SlabBounds) -> Option<[usize; 2]> {
    if one > bounds.one {
        return None;
    }
    let equal = |count: usize, most: usize| count.div_ceil(count.div_ceil(most.max(1)).max(1)).max(1);
    let fit = bounds.several / one.max(1);
    Some(match batch <= fit {
        true => [batch.max(1), equal(heads, fit / batch.max(1))],
        false => [equal(batch, fit), 1],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    #[test]
    fn as_many_heads_as_fit_share_the_slab() {
        for ([batch, heads], one, expected) in [
            // All.
            ([1, 16], 8 << 20, Some([1, 16])),
            ([8, 16], 1 << 20, Some([8, 16])),
            // Some heads of the whole batch, in sections of about the same size.
            ([1, 8], GIB / 4, Some([1, 4])),
            ([1, 9], GIB / 8, Some([1, 5])),
            ([2, 8], GIB / 5, Some([2, 2])),
            // A part of the batch, a head at a time.
            ([5, 2], GIB / 4, Some([3, 1])),
            // Not even one, but it is within what can be given; and beyond.
            ([2, 8], 2 * GIB, Some([1, 1])),
            ([1, 1], 3 * GIB, None),
            // Nothing.
            ([0, 4], 0, Some([1, 4])),
            ([1, 4], 0, Some([1, 4])),
        ] {
            assert_eq!(together([batch, heads], one, BOUNDS), expected, "{batch} of {heads} heads of {one}");
        }
    }
}

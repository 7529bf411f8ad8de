//! How the items of one sequence are divided among clusters of blocks.

/// Clusters of a launch (`cuda/include/decode_sm90.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clusters {
    /// Blocks of a cluster.
    pub(super) size: u32,
    /// Clusters of an item.
    pub(super) splits: u32,
}

/// Bytes of keys and values beyond which it does not pay: what clusters save is a few microseconds a launch, and blocks that know
/// nothing of each other read a little faster.
const MAX_BYTES: usize = 256 << 20;

impl Clusters {
    /// A block on half of the multiprocessors or more, for those of the launch after this one stand beside them; or `None`, where items
    /// are so many that blocks need not share one, or there is room for more than [`MAX_BYTES`].
    pub(super) fn new(items: usize, bytes: usize, multiprocessors: u32) -> Option<Self> {
        let multiprocessors = multiprocessors as usize;
        let of = |size: usize| {
            let splits = multiprocessors / (items * size).max(1);
            (splits > 0).then_some(Self { size: size as u32, splits: splits as u32 })
        };
        let clusters = [8, 4, 2].into_iter().find_map(of).filter(|_| bytes <= MAX_BYTES)?;
        // One cluster an item spares the merge, which takes longer than the others would save.
        let is_half = |clusters: &Self| 9 * clusters.blocks(items) >= 4 * multiprocessors;
        let whole = Self { splits: 1, ..clusters };
        Some(if is_half(&whole) { whole } else { clusters })
    }

    /// Blocks of the grid.
    pub(super) fn blocks(&self, items: usize) -> usize {
        items * self.size as usize * self.splits as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_has_one_cluster_if_half_of_the_multiprocessors_have_a_block_then() {
        for (items, size, splits) in [
            (1, 8, 16),
            (3, 8, 5),
            (7, 8, 2),
            (8, 8, 1),
            (16, 8, 1),
            (17, 4, 1),
            (33, 4, 1),
            (34, 2, 1),
            (66, 2, 1),
        ] {
            assert_eq!(Clusters::new(items, 1 << 20, 132), Some(Clusters { size, splits }), "{items} items");
        }
        assert_eq!(Clusters::new(67, 1 << 20, 132), None);
    }

    #[test]
    fn blocks_are_no_more_than_multiprocessors() {
        for multiprocessors in [1, 16, 78, 114, 132] {
            for items in 1..200 {
                let Some(clusters) = Clusters::new(items, 0, multiprocessors) else { continue };
                assert!(clusters.blocks(items) <= multiprocessors as usize, "{items} items, {clusters:?}");
            }
        }
    }

    #[test]
    fn large_caches_are_read_by_blocks_that_know_nothing_of_each_other() {
        assert!(Clusters::new(8, MAX_BYTES, 132).is_some());
        assert!(Clusters::new(8, MAX_BYTES + 1, 132).is_none());
    }
}

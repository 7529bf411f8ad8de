//! How the items of one sequence are divided among clusters of blocks.

/// Clusters of a launch (`cuda/include/decode_sm90.cuh`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clusters {
    /// Blocks of a cluster.
    pub(super) size: u32,
    /// Clusters of an item.
    pub(super) splits: u32,
}

impl Clusters {
    /// A block for each multiprocessor or somewhat fewer, so that those of a launch that depends on this one may stand beside them;
    /// `None` where items are so many that blocks need not share one.
    pub(super) fn new(items: usize, multiprocessors: u32) -> Option<Self> {
        let multiprocessors = multiprocessors as usize;
        let of = |size: usize| {
            let splits = multiprocessors / (items * size).max(1);
            (splits > 0).then_some(Self { size: size as u32, splits: splits as u32 })
        };
        let all = || [16, 8, 4, 2].into_iter().filter_map(of);
        // One cluster an item spares the merge. A few multiprocessors fewer read as fast.
        let whole = all().find(|clusters| clusters.splits == 1 && 10 * clusters.blocks(items) >= 7 * multiprocessors);
        let most = all().map(|clusters| clusters.blocks(items)).max();
        whole.or_else(|| all().find(|clusters| Some(clusters.blocks(items)) == most))
    }

    /// Blocks of the grid.
    pub(super) fn blocks(&self, items: usize) -> usize {
        items * self.size as usize * self.splits as usize
    }
}

//! Whether the items of one sequence are decoded by clusters of blocks (`cuda/include/decode_sm90.cuh`), and by how large ones.

/// Bytes of keys and values beyond which it does not pay: what clusters save is a few microseconds a launch, and blocks that know
/// nothing of each other read a little faster.
const MAX_BYTES: usize = 256 << 20;

/// Bytes that a block may have to read where fewer than four in nine of the multiprocessors have one: a multiprocessor takes so many in about
/// the time that the merge would.
const MAX_BLOCK_BYTES: usize = 256 << 10;

/// The blocks of the cluster that an item has to itself, so that nothing is left to merge; or `None`, where items are so many that
/// blocks need not share one, or there is room for more than pays.
pub(super) fn cluster_size(items: usize, bytes: usize, multiprocessors: u32) -> Option<u32> {
    let multiprocessors = multiprocessors as usize;
    let size = [8, 4, 2].into_iter().find(|size| items.saturating_mul(*size) <= multiprocessors)?;
    let blocks = items * size;
    // About half is enough: those of the launch after this one stand beside them.
    let is_enough = 9 * blocks >= 4 * multiprocessors;
    let most = if is_enough { MAX_BYTES } else { blocks * MAX_BLOCK_BYTES };
    (bytes <= most).then_some(size as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_as_large_as_there_is_room_for() {
        for (items, size) in [(8, 8), (16, 8), (17, 4), (33, 4), (34, 2), (66, 2)] {
            assert_eq!(cluster_size(items, MAX_BYTES, 132), Some(size), "{items} items");
            assert_eq!(cluster_size(items, MAX_BYTES + 1, 132), None, "{items} items");
        }
        assert_eq!(cluster_size(67, 0, 132), None);
        assert_eq!(cluster_size(usize::MAX, 0, 132), None);
    }

    #[test]
    fn few_items_have_clusters_where_their_keys_are_few() {
        for items in [1, 3, 7] {
            assert_eq!(cluster_size(items, items * 8 * MAX_BLOCK_BYTES, 132), Some(8), "{items} items");
            assert_eq!(cluster_size(items, items * 8 * MAX_BLOCK_BYTES + 1, 132), None, "{items} items");
        }
    }

    #[test]
    fn blocks_are_no_more_than_multiprocessors() {
        for multiprocessors in [1, 16, 78, 114, 132] {
            for items in 1..200 {
                let Some(size) = cluster_size(items, 0, multiprocessors) else { continue };
                assert!(
                    items * size as usize <= multiprocessors as usize,
                    "{items} items, clusters of {size}"
                );
            }
        }
    }
}

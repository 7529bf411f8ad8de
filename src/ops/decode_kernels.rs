//! The kernels that decode, and what a launch of each is to know.

use crate::Error;
use crate::device::{Context, Dtype, Family};

/// Bytes of shared memory a block (`kSharedBytes`).
pub(super) const SHARED_BYTES: u32 = 96 << 10;
/// The same of a block in a cluster, with what the others send it (`kInboxBytes`).
pub(super) const CLUSTER_SHARED_BYTES: u32 = SHARED_BYTES + (13 << 10);
/// Threads of a merging block (`kDecodeMergeThreads`).
pub(super) const MERGE_THREADS: u32 = 256;

/// The instances for head dimensions up to one.
pub(super) struct HeadDim {
    /// The images for every GPU and those of Hopper's clusters; of each, over keys as they are, and over keys that are rotated while
    /// they are read.
    images: [[&'static str; 2]; 2],
    /// The padded head dimension (`kDim`).
    dim: usize,
    /// Threads a block (`kThreads`).
    pub(super) threads: u32,
    /// Query rows an item (`kRows`), few and many.
    rows: [usize; 2],
    /// bf16 with few and with many rows, f16 with few and with many; of each image.
    kernels: [[[&'static str; 4]; 2]; 2],
}

/// Whose blocks take an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocks {
    /// Blocks that know nothing of each other.
    Apart,
    /// Those of a cluster, which join their results.
    Clusters,
}

macro_rules! head_dim {
    ($dim:literal, threads $threads:literal, rows $few:literal or $many:literal) => {
        HeadDim {
            images: [
                [concat!("decode_d", $dim), concat!("decode_rotating_d", $dim)],
                [concat!("decode_sm90_d", $dim), concat!("decode_rotating_sm90_d", $dim)],
            ],
            dim: $dim,
            threads: $threads,
            rows: [$few, $many],
            kernels: [
                [
                    head_dim!(kernels "longrope_decode_d", $dim, $few, $many),
                    head_dim!(kernels "longrope_decode_rotating_d", $dim, $few, $many),
                ],
                [
                    head_dim!(kernels "longrope_decode_sm90_d", $dim, $few, $many),
                    head_dim!(kernels "longrope_decode_rotating_sm90_d", $dim, $few, $many),
                ],
            ],
        }
    };
    (kernels $name:literal, $dim:literal, $few:literal, $many:literal) => {
        [
            concat!($name, $dim, "_bf16_r", $few),
            concat!($name, $dim, "_bf16_r", $many),
            concat!($name, $dim, "_f16_r", $few),
            concat!($name, $dim, "_f16_r", $many),
        ]
    };
}

/// The instances in `cuda/decode_d*.cu`, `decode_rotating_d*.cu`, `decode_sm90_d*.cu` and `decode_rotating_sm90_d*.cu`.
static KERNELS: [HeadDim; 4] = [
    head_dim!(64, threads 128, rows 8 or 32),
    head_dim!(96, threads 128, rows 8 or 16),
    head_dim!(128, threads 128, rows 8 or 16),
    // More rows do not fit the registers.
    head_dim!(256, threads 64, rows 8 or 8),
];

/// bf16 and f16: the instances in `cuda/decode_merge.cu`.
pub(super) static MERGES: [&str; 2] = ["longrope_decode_merge_bf16", "longrope_decode_merge_f16"];

/// The instances for a head dimension.
pub(super) fn kernels(head_dim: usize) -> Result<&'static HeadDim, Error> {
    let found = KERNELS.iter().find(|instances| head_dim <= instances.dim);
    found.ok_or_else(|| Error::unsupported("q.head_dim", head_dim, "at most 256"))
}

/// Whether the context has the kernels whose blocks form clusters.
pub(super) fn has_clusters(context: &Context) -> bool {
    context.has(KERNELS[0].kernels[1][0][0])
}

impl HeadDim {
    /// Whether the items of a sequence with so many rows are those with many (1) or few (0).
    fn row_choice(&self, sequence_rows: usize) -> usize {
        usize::from(sequence_rows > self.rows[0])
    }

    /// Rows of an item of a sequence with so many.
    pub(super) fn item_rows(&self, sequence_rows: usize) -> usize {
        self.rows[self.row_choice(sequence_rows)]
    }

    /// The kernel for a type, for keys as they are or `rotating`, and for the rows of a sequence.
    pub(super) fn kernel(
        &self,
        blocks: Blocks,
        dtype: Dtype,
        rotating: bool,
        sequence_rows: usize,
    ) -> &'static str {
        let kernel = 2 * usize::from(dtype == Dtype::F16) + self.row_choice(sequence_rows);
        self.kernels[usize::from(blocks == Blocks::Clusters)][usize::from(rotating)][kernel]
    }
}

/// What a context loads.
pub(super) fn families() -> Vec<Family> {
    let mut families = vec![Family::portable("decode_merge", MERGES.to_vec(), 0)];
    for instances in &KERNELS {
        let [portable, clusters] = [0, 1].map(|i| instances.images[i].into_iter().zip(&instances.kernels[i]));
        families
            .extend(portable.map(|(image, kernels)| Family::portable(image, kernels.to_vec(), SHARED_BYTES)));
        let clusters =
            clusters.map(|(image, kernels)| Family::hopper(image, kernels.to_vec(), CLUSTER_SHARED_BYTES));
        families.extend(clusters.map(|family| Family { in_clusters: true, ..family }));
    }
    families
}

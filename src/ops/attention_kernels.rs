//! The attention kernels, by head dimension and type: the instances in `cuda/attention_sm80_d*.cu`, which every GPU runs, and in
//! `cuda/attention_sm90_d*.cu`, for Hopper.

use std::ops::RangeInclusive;

use crate::device::{Dtype, Family};

/// An instance of a kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    /// Queries a block (`kRows`).
    pub(super) rows: usize,
    /// Threads a block.
    pub(super) threads: u32,
    /// Bytes of shared memory a block (`kSharedBytes`).
    pub(super) shared_bytes: u32,
}

/// The instances for head dimensions up to one.
struct HeadDim {
    image: &'static str,
    /// The padded head dimension (`kDim`).
    dim: usize,
    kernels: [Kernel; 4],
}

/// `$rows`, `$keys` and `$stages` as in the source's `AttentionShape`; with any strides, the ring is of one tile.
macro_rules! portable {
    ($dim:literal, rows $rows:literal, keys $keys:literal, stages $stages:literal) => {
        HeadDim {
            image: concat!("attention_sm80_d", $dim),
            dim: $dim,
            kernels: [
                portable!(@ $dim, "bf16_vector", $rows, $keys, $stages),
                portable!(@ $dim, "bf16_strided", $rows, $keys, 1),
                portable!(@ $dim, "f16_vector", $rows, $keys, $stages),
                portable!(@ $dim, "f16_strided", $rows, $keys, 1),
            ],
        }
    };
    (@ $dim:literal, $name:literal, $rows:literal, $keys:literal, $stages:literal) => {
        Kernel {
            name: concat!("longrope_attention_sm80_d", $dim, "_", $name),
            rows: $rows,
            threads: 128,
            shared_bytes: 2 * $dim * ($rows + 2 * $stages * $keys),
        }
    };
}

/// bf16 with vectors, bf16 with any strides, f16 with vectors, f16 with any strides.
static PORTABLE: [HeadDim; 4] = [
    portable!(64, rows 128, keys 112, stages 1),
    portable!(96, rows 128, keys 64, stages 2),
    portable!(128, rows 128, keys 64, stages 2),
    portable!(256, rows 64, keys 64, stages 1),
];

/// An instance of Hopper's kernel.
#[derive(Debug)]
pub(super) struct HopperKernel {
    pub(super) kernel: Kernel,
    /// Keys of a tile (`kKeys`).
    pub(super) keys: u32,
    /// The padded head dimension (`kDim`).
    pub(super) dim: usize,
}

/// The instances of Hopper's kernel for head dimensions up to one, and for some numbers of keys.
struct HopperHeadDim {
    image: &'static str,
    for_keys: RangeInclusive<usize>,
    /// bf16 and f16.
    kernels: [HopperKernel; 2],
}

/// The numbers as in the source's `HopperShape`.
macro_rules! hopper {
    (
        $dim:literal $suffix:literal, keys $for_keys:expr,
        consumers $consumers:literal, tile $keys:literal, stages $stages:literal, query_stages $queries:literal
    ) => {
        HopperHeadDim {
            image: concat!("attention_sm90_d", $dim, $suffix),
            for_keys: $for_keys,
            kernels: [
                hopper!(@ $dim, $suffix, "_bf16", $consumers, $keys, $stages, $queries),
                hopper!(@ $dim, $suffix, "_f16", $consumers, $keys, $stages, $queries),
            ],
        }
    };
    (
        @ $dim:literal, $suffix:literal, $dtype:literal,
        $consumers:literal, $keys:literal, $stages:literal, $queries:literal
    ) => {
        HopperKernel {
            kernel: Kernel {
                name: concat!("longrope_attention_sm90_d", $dim, $suffix, $dtype),
                rows: 64 * $consumers,
                threads: 128 * ($consumers + 1),
                // Alignment, queries, keys and values.
                shared_bytes: 1024 + 2 * $dim * (64 * $consumers * $queries + 2 * $stages * $keys),
            },
            keys: $keys,
            dim: $dim,
        }
    };
}

/// The first that fits is taken.
static HOPPER: [HopperHeadDim; 4] = [
    hopper!(64 "", keys 0..=usize::MAX, consumers 3, tile 128, stages 3, query_stages 2),
    hopper!(128 "_long", keys 4096..=usize::MAX, consumers 2, tile 176, stages 2, query_stages 1),
    hopper!(128 "", keys 0..=usize::MAX, consumers 2, tile 128, stages 3, query_stages 1),
    hopper!(256 "", keys 0..=usize::MAX, consumers 2, tile 80, stages 2, query_stages 1),
];

/// The instances over a cache, in `cuda/attention_cached_d*.cu`, for head dimensions up to one.
struct CachedHeadDim {
    image: &'static str,
    dim: usize,
    /// bf16 and f16.
    kernels: [CachedKernel; 2],
}

/// An instance over a cache: as the portable kernel with vectors.
#[derive(Debug)]
pub(super) struct CachedKernel {
    /// Over keys as they are, and over keys that are rotated while they are read.
    pub(super) names: [&'static str; 2],
    /// Queries a block.
    pub(super) rows: usize,
    /// Bytes of shared memory a block.
    pub(super) shared_bytes: u32,
}

macro_rules! cached {
    ($dim:literal, rows $rows:literal, keys $keys:literal, stages $stages:literal) => {
        CachedHeadDim {
            image: concat!("attention_cached_d", $dim),
            dim: $dim,
            kernels: [
                cached!(@ $dim, "bf16", $rows, $keys, $stages),
                cached!(@ $dim, "f16", $rows, $keys, $stages),
            ],
        }
    };
    (@ $dim:literal, $name:literal, $rows:literal, $keys:literal, $stages:literal) => {
        CachedKernel {
            names: [
                concat!("longrope_attention_cached_d", $dim, "_", $name),
                concat!("longrope_attention_cached_rotating_d", $dim, "_", $name),
            ],
            rows: $rows,
            shared_bytes: 2 * $dim * ($rows + 2 * $stages * $keys),
        }
    };
}

static CACHED: [CachedHeadDim; 4] = [
    cached!(64, rows 128, keys 112, stages 1),
    cached!(96, rows 128, keys 64, stages 2),
    cached!(128, rows 128, keys 64, stages 2),
    cached!(256, rows 64, keys 64, stages 1),
];

/// The kernel over a cache, for a type of 16 bits and a head dimension; `None` beyond 256.
pub(super) fn cached(dtype: Dtype, head_dim: usize) -> Option<&'static CachedKernel> {
    let instances = CACHED.iter().find(|instances| head_dim <= instances.dim)?;
    Some(&instances.kernels[usize::from(dtype == Dtype::F16)])
}

/// The kernel that every GPU runs, for a type of 16 bits and a head dimension; `None` beyond 256. `vector`: whether 16 bytes
/// can be moved at once.
pub(super) fn portable(dtype: Dtype, head_dim: usize, vector: bool) -> Option<&'static Kernel> {
    let which = if dtype == Dtype::F16 { 2 } else { 0 } + usize::from(!vector);
    Some(&PORTABLE.iter().find(|instances| head_dim <= instances.dim)?.kernels[which])
}

/// Hopper's kernel, for a type of 16 bits, a head dimension and a number of keys; `None` beyond 256.
pub(super) fn hopper(dtype: Dtype, head_dim: usize, keys: usize) -> Option<&'static HopperKernel> {
    let fits = |instances: &&HopperHeadDim| {
        head_dim <= instances.kernels[0].dim && instances.for_keys.contains(&keys)
    };
    Some(&HOPPER.iter().find(fits)?.kernels[usize::from(dtype == Dtype::F16)])
}

/// What a context loads.
pub(in crate::ops) fn families() -> Vec<Family> {
    let portable = PORTABLE.iter().map(|instances| {
        let kernels = instances.kernels.iter().map(|kernel| kernel.name).collect();
        Family::portable(instances.image, kernels, instances.kernels[0].shared_bytes)
    });
    let hopper = HOPPER.iter().map(|instances| {
        let kernels = instances.kernels.iter().map(|instance| instance.kernel.name).collect();
        Family::hopper(instances.image, kernels, instances.kernels[0].kernel.shared_bytes)
    });
    portable.chain(hopper).collect()
}

/// The same of the kernels over a cache.
pub(in crate::ops) fn cached_families() -> Vec<Family> {
    let family = |instances: &CachedHeadDim| {
        let kernels = instances.kernels.iter().flat_map(|kernel| kernel.names).collect();
        Family::portable(instances.image, kernels, instances.kernels[0].shared_bytes)
    };
    CACHED.iter().map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_dimension_has_the_smallest_kernel_that_holds_it() {
        let dim = |kernel: Option<&Kernel>| kernel.map(|kernel| kernel.name.split('_').nth(3).unwrap());
        for (head_dim, portable_dim, hopper_dim) in [
            (8, Some("d64"), Some("d64")),
            (64, Some("d64"), Some("d64")),
            (72, Some("d96"), Some("d128")),
            (128, Some("d128"), Some("d128")),
            (136, Some("d256"), Some("d256")),
            (256, Some("d256"), Some("d256")),
            (264, None, None),
        ] {
            assert_eq!(dim(portable(Dtype::F16, head_dim, true)), portable_dim, "{head_dim}");
            let hopper = hopper(Dtype::Bf16, head_dim, 100).map(|instance| &instance.kernel);
            assert_eq!(dim(hopper), hopper_dim, "{head_dim}");
        }
    }

    #[test]
    fn many_keys_come_in_larger_tiles() {
        for (keys, tile) in [(0, 128), (4095, 128), (4096, 176), (1 << 21, 176)] {
            assert_eq!(hopper(Dtype::F16, 128, keys).unwrap().keys, tile, "{keys}");
        }
        assert_eq!(hopper(Dtype::F16, 64, 100_000).unwrap().keys, 128);
        assert_eq!(hopper(Dtype::F16, 256, 100_000).unwrap().keys, 80);
    }

    #[test]
    fn a_block_fits_the_shared_memory_of_its_gpus() {
        let portable = PORTABLE.iter().flat_map(|instances| &instances.kernels);
        assert!(portable.clone().all(|kernel| kernel.shared_bytes <= 99 << 10));
        let mut hopper = HOPPER.iter().flat_map(|instances| &instances.kernels);
        // 227 KiB, of which the kernel has 1 KiB for itself.
        assert!(hopper.all(|instance| instance.kernel.shared_bytes <= 226 << 10));
    }
}

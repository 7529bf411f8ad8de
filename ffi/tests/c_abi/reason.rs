//! What an example says of a GPU, which may not be there.

use crate::expected::check_difference;

/// On a GPU the result is that of the CPU; without one there is a reason.
#[track_caller]
pub fn check_gpu(gpu: &str, bound: f64) {
    let reasons =
        ["no NVIDIA driver", "this build has no device code", "the NVIDIA driver supports", "device 0"];
    if !reasons.iter().any(|reason| gpu.starts_with(reason)) {
        check_difference(gpu, bound);
    }
}

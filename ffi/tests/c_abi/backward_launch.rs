//! Gradients of attention as programs in C ask for them: what the kernels are told, and what the CPU form computes.

use crate::api::api;
use crate::recording::Recorded;

/// What a program prints at last, where the library has kernels and where it has none.
fn last(with_kernels: &'static str) -> &'static str {
    // SAFETY: no arguments.
    if unsafe { (api().has_device_code)() } == 0 { "without kernels\n" } else { with_kernels }
}

#[test]
fn the_kernels_are_told_what_the_descriptor_says() {
    assert_eq!(Recorded::new(&["backward.c"]).run(&[]), last("done\n"));
}

#[test]
fn gradients_are_the_slopes_of_the_output() {
    assert_eq!(Recorded::new(&["gradients.c"]).run(&[]), "done\n");
}

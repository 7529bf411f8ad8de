//! Two engines' habits, each a program that does as the engine does: ggml's, and XLA's foreign functions.

use crate::api::api;
use crate::recording::Recorded;

/// What a program prints at last, where the library has kernels and where it has none.
fn last(with_kernels: &'static str) -> &'static str {
    // SAFETY: no arguments.
    if unsafe { (api().has_device_code)() } == 0 { "without kernels\n" } else { with_kernels }
}

#[test]
fn ggml_has_byte_strides_a_pool_and_a_captured_graph() {
    let text = Recorded::new(&["engines/ggml.c"]).run(&[]);
    assert_eq!(text, format!("as defined\n{}", last("two graphs\n")));
}

#[test]
fn xla_has_a_stream_in_a_status_out_and_no_state() {
    let text = Recorded::new(&["engines/xla.c"]).run(&[]);
    assert_eq!(text, last("4000 calls\n"));
}

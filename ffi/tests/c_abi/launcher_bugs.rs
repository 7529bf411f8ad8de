//! The five faults that a launcher of attention in C is known to have, each with a test that it is not ours.
//!
//! They were those of one entry of candle-flash-attn-v3, and were mended in huggingface/candle's pull request 3892. What the
//! kernels are told is seen by a driver that keeps their parameters; what comes out, by the CPU form.

use std::sync::OnceLock;

use crate::api::api;
use crate::recording::Recorded;

/// Runs one of the program's tests.
#[track_caller]
fn holds(name: &str) {
    static PROGRAM: OnceLock<Recorded> = OnceLock::new();
    let text = PROGRAM.get_or_init(|| Recorded::new(&["launcher_bugs.c"])).run(&[name]);
    // SAFETY: no arguments.
    let end = if unsafe { (api().has_device_code)() } == 0 { "without kernels" } else { "done" };
    assert_eq!(text, format!("{name}: {end}\n"));
}

/// A launch on the legacy default stream does not wait for a stream that doesn't wait for it.
#[test]
fn every_launch_goes_to_the_stream_of_the_caller() {
    holds("stream");
}

/// A default stream is one of the current CUDA context, and a thread may have none.
#[test]
fn a_thread_without_a_context_launches_and_validates_in_the_primary_one() {
    holds("no_context");
}

/// A counter of tiles that the caller had to allocate and to clear, and which was null.
#[test]
fn no_launch_needs_a_counter_or_shares_one() {
    holds("tile_counter");
}

/// A log-sum-exp with room for the head dimension: 3 GB at 16,384 tokens.
#[test]
fn the_log_sum_exp_has_one_number_a_row() {
    holds("lse_size");
}

/// A window of "none" that was overwritten, and made causal attention attention in both directions.
#[test]
fn causal_attention_without_a_window_stays_causal() {
    holds("window");
}

/// Query heads that were packed into groups as if the batch were one sequence.
#[test]
fn groups_of_heads_honour_the_starts_of_packed_sequences() {
    holds("packed_groups");
}

//! What a person sees while a program works: a bar on a terminal, a line every few seconds elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Between two lines where the output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of a number of steps, on the standard error.
pub struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    started: Cell<Instant>,
    done_before: Cell<usize>,
    line: Cell<Option<Instant>>,
}

impl Progress {
    /// Progress of steps called `what`, as in "evaluations".
    pub fn new(what: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = ProgressStyle::with_template("[{elapsed}] {wide_bar} {pos}/{len} {msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            what,
            bar,
            started: Cell::new(Instant::now()),
            done_before: Cell::new(0),
            line: Cell::new(None),
        }
    }

    /// The work begins, or goes on, with `done` of `planned` steps done before.
    pub fn start(&self, done: usize, planned: usize) {
        self.started.set(Instant::now());
        self.done_before.set(done);
        if let Some(bar) = &self.bar {
            bar.set_length(planned as u64);
            bar.set_position(done as u64);
            bar.reset_elapsed();
        }
    }

    /// `done` of `planned` steps are done; `best` is the lowest perplexity so far, or NaN where there is no such thing.
    pub fn update(&self, done: usize, planned: usize, best: f64) {
        let best = if best.is_nan() { String::new() } else { format!("best {best:.4}") };
        self.show(done, planned, &best);
    }

    /// `done` of `planned` steps are done; `detail` is shown with them where it is not empty.
    pub fn show(&self, done: usize, planned: usize, detail: &str) {
        let elapsed = self.started.get().elapsed();
        let fresh = done.saturating_sub(self.done_before.get()).max(1);
        let left = elapsed.mul_f64(planned.saturating_sub(done) as f64 / fresh as f64);
        let separator = if detail.is_empty() { "" } else { ", " };
        let message = format!("{}{separator}{detail}, about {} left", self.what, HumanDuration(left));
        match &self.bar {
            Some(bar) => {
                bar.set_length(planned as u64);
                bar.set_position(done as u64);
                bar.set_message(message);
            }
            None if self.line.get().is_none_or(|line| line.elapsed() >= LINE_INTERVAL) => {
                eprintln!("{done}/{planned} {message}");
                self.line.set(Some(Instant::now()));
            }
            None => {}
        }
    }

    /// The work ended; what was printed stays.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

//! Ours and a peer, taking turns, timed by CUDA events within criterion.
//!
//! A round is one turn of each. Criterion asks for samples of some rounds; each sample measures both and gives it our
//! time, so that its report is of ours. What both took in the samples (not in criterion's warm-up) makes a row by medians
//! over the rounds: `family,op,shape,unit,ours,peer,peer_value,ratio`. A ratio above 1 is better than the peer. The rows
//! are printed after all else, and scripts/gpu-suite collects them.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode};
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags_enum;

use super::Gpu;

/// What criterion spends on a case: before the samples, and on them.
const WARM_UP: Duration = Duration::from_millis(200);
const MEASUREMENT: Duration = Duration::from_millis(700);
/// Samples of a case; where a round alone takes a good part of a second, the fewest that criterion takes.
const SAMPLES: usize = 25;
const SAMPLES_OF_LONG: usize = 10;
const LONG: Duration = Duration::from_millis(100);
/// Rounds that are under way at a time: short work then follows without a gap, and few events are alive.
const UNDER_WAY: u64 = 64;

/// What is measured.
pub struct Case {
    /// A name of letters, digits and `_`.
    pub op: String,
    /// As in `b1 s131072 h32/8 d128 Bf16`.
    pub shape: String,
    pub unit: Unit,
}

/// What a value means, and how it follows from the time of a turn.
#[derive(Clone, Copy)]
pub enum Unit {
    /// GB/s, from the bytes that a turn reads and writes. More is better.
    Bytes(f64),
    /// TFLOP/s, from the operations of a turn. More is better.
    #[allow(dead_code, reason = "not every family counts operations")]
    Operations(f64),
    /// Microseconds of one launch, from how many a turn makes. Less is better.
    Launches(usize),
}

/// What ours is compared with.
pub enum Peer<'a> {
    /// Other work of the same unit on the same stream.
    Work(&'static str, &'a mut dyn FnMut()),
    /// The goal itself, in the unit, where nothing else does the same.
    #[allow(dead_code, reason = "not every family has such a goal")]
    Goal(f64),
    /// Nothing here: what does the same is of the peers' program, or there is none.
    #[allow(dead_code, reason = "not every family has such a case")]
    Nothing,
}

/// The cases of a family, and their rows.
pub struct Measurements<'a> {
    family: &'static str,
    gpu: &'a Gpu,
    criterion: Criterion,
    rows: Vec<String>,
    /// Whether criterion measures; else it runs each case once, as `cargo bench -- --test` asks.
    measuring: bool,
}

/// The rounds of one of criterion's samples, in milliseconds: ours and the peer's.
type Sample = Vec<(f32, f32)>;

impl<'a> Measurements<'a> {
    pub(super) fn new(family: &'static str, gpu: &'a Gpu) -> Self {
        let has = |flag: &str| std::env::args().any(|argument| argument == flag);
        let measuring = has("--bench") && !has("--test") && !has("--list");
        // Few resamples: criterion's own intervals are not what the rows are made of.
        let criterion = Criterion::default().nresamples(2000).configure_from_args();
        Self { family, gpu, criterion, rows: Vec::new(), measuring }
    }

    /// Times `ours` beside the peer. Both queue their work on the stream, and may be called any number of times.
    pub fn measure(&mut self, case: &Case, mut ours: impl FnMut(), mut peer: Peer<'_>) {
        let mut samples: Vec<Sample> = Vec::new();
        let mut round = |count| self.gpu.rounds(count, &mut ours, &mut peer);
        // Also loads code and sets clocks, before anything is counted.
        let first = if self.measuring { round(3) } else { Vec::new() };
        let length = first.last().map_or(0.0, |(ours, peer)| ours + peer);
        let is_long = length > LONG.as_secs_f32() * 1e3;
        let wanted = if is_long { SAMPLES_OF_LONG } else { SAMPLES };

        let mut group = self.criterion.benchmark_group(self.family);
        group.sample_size(wanted).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(WARM_UP).measurement_time(MEASUREMENT);
        group.bench_function(BenchmarkId::new(&case.op, &case.shape), |bencher| {
            bencher.iter_custom(|count| {
                let sample = round(count);
                let ours: f64 = sample.iter().map(|(ours, _)| f64::from(*ours)).sum();
                samples.push(sample);
                Duration::from_secs_f64(ours / 1e3 / case.unit.launches())
            });
        });
        group.finish();
        // Samples come last, after the warm-up. A case that a filter leaves out has none.
        if self.measuring && samples.len() >= wanted {
            let rounds = samples[samples.len() - wanted..].concat();
            self.rows.push(row(self.family, case, &rounds, &peer));
        }
    }

    pub(super) fn finish(self) {
        self.criterion.final_summary();
        if self.measuring {
            println!("family,op,shape,unit,ours,peer,peer_value,ratio");
            self.rows.iter().for_each(|row| println!("{row}"));
        }
    }
}

impl Gpu {
    /// Milliseconds of ours and of the peer, which take turns.
    fn rounds(&self, count: u64, ours: &mut dyn FnMut(), peer: &mut Peer<'_>) -> Sample {
        let mut sample = Sample::new();
        while (sample.len() as u64) < count {
            let now = UNDER_WAY.min(count - sample.len() as u64);
            let events: Vec<[CudaEvent; 3]> = (0..now)
                .map(|_| {
                    let start = self.event();
                    ours();
                    let between = self.event();
                    if let Peer::Work(_, work) = peer {
                        work();
                    }
                    [start, between, self.event()]
                })
                .collect();
            let elapsed = |a: &CudaEvent, b: &CudaEvent| a.elapsed_ms(b).expect("both events passed");
            sample.extend(events.iter().map(|[a, b, c]| (elapsed(a, b), elapsed(b, c))));
        }
        sample
    }

    /// An event after what is on the stream.
    fn event(&self) -> CudaEvent {
        let event = self.cuda.new_event(Some(CUevent_flags_enum::CU_EVENT_DEFAULT)).expect("an event");
        event.record(&self.stream).expect("an event is recorded");
        event
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes(_) => "GB/s",
            Self::Operations(_) => "TFLOP/s",
            Self::Launches(_) => "us",
        }
    }

    /// The value of a turn of so many milliseconds.
    fn value(self, milliseconds: f64) -> f64 {
        match self {
            Self::Bytes(bytes) => bytes / milliseconds / 1e6,
            Self::Operations(operations) => operations / milliseconds / 1e9,
            Self::Launches(count) => milliseconds * 1e3 / count as f64,
        }
    }

    fn launches(self) -> f64 {
        match self {
            Self::Launches(count) => count as f64,
            _ => 1.0,
        }
    }
}

fn row(family: &str, case: &Case, rounds: &[(f32, f32)], peer: &Peer<'_>) -> String {
    let ours = case.unit.value(median(rounds.iter().map(|(ours, _)| *ours)));
    let Case { op, shape, unit } = case;
    let decimals = if matches!(unit, Unit::Launches(_)) { 3 } else { 1 };
    let (name, other) = match peer {
        Peer::Work(name, _) => (*name, case.unit.value(median(rounds.iter().map(|(_, peer)| *peer)))),
        Peer::Goal(goal) => ("goal", *goal),
        Peer::Nothing => return format!("{family},{op},{shape},{},{ours:.decimals$},,,", unit.name()),
    };
    let ratio = match case.unit {
        Unit::Launches(_) => other / ours,
        _ => ours / other,
    };
    format!("{family},{op},{shape},{},{ours:.decimals$},{name},{other:.decimals$},{ratio:.4}", unit.name())
}

fn median(times: impl Iterator<Item = f32>) -> f64 {
    let mut times: Vec<f32> = times.collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[times.len() / 2])
}

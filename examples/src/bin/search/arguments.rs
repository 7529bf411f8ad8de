//! The flags of the search, and which go together.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use longrope::search::{CmaEs, Evolution};
use longrope_drivers::arguments::ModelArguments;
use longrope_drivers::search_run::{EarlyDrop, ShortCuts};

/// Searches LongRoPE interpolation factors for a Llama, and compares them with other methods on unseen text.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Adapter of the model in PEFT's format, as `finetune` leaves it: its changes become part of the weights
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Text: the search uses its first half, the table its second; several are one, in this order [default: Moby Dick, in two
    /// files]
    #[arg(long, value_name = "FILE")]
    pub text: Vec<PathBuf>,
    /// Measure the table on this text instead, and search on all of --text
    #[arg(long, value_name = "FILE", requires = "text")]
    pub eval_text: Option<PathBuf>,
    /// Context to search for, in tokens [default: 8 times the model's own]
    #[arg(long, value_name = "TOKENS")]
    pub length: Option<usize>,
    /// Second search of the progressive extension: the configuration that the model was fine-tuned with, whose factors are
    /// multiplied by those searched for
    #[arg(long, value_name = "FILE", conflicts_with = "recover")]
    pub multiply: Option<PathBuf>,
    /// Search a set for the shorter context --length, to recover what the factors of this configuration or schedule lose there;
    /// it becomes a set of schedule.json
    #[arg(long, value_name = "FILE", requires = "length")]
    pub recover: Option<PathBuf>,
    /// A configuration to begin with, before the usual ones: as `search` writes it, or of another length, to which its factors are
    /// brought
    #[arg(long, value_name = "FILE")]
    pub start: Vec<PathBuf>,
    /// What is minimised: perplexity, or keys that are not retrieved from long prompts
    #[arg(long, value_enum, default_value_t = Objective::Perplexity)]
    pub objective: Objective,
    /// Take the perplexity of the last N tokens of each window alone [default: of all]
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Seed of the search
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Continue from the checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
    /// Directory for the checkpoint, the configuration, CSV files and plots
    #[arg(long, value_name = "DIR", default_value = "longrope-search")]
    pub output: PathBuf,
    /// Windows of text, or prompts, that a candidate is measured on [default: 2; passkey: 5]
    #[arg(long, value_name = "N")]
    pub windows: Option<usize>,
    /// Windows of unseen text per cell of the table; 0 for no table
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub eval_windows: usize,
    /// How candidates are chosen: a separable CMA-ES, Algorithm 1 of the paper, or the authors' released code
    #[arg(long, value_enum, default_value_t = OptimiserKind::CmaEs)]
    pub optimiser: OptimiserKind,
    /// Evaluations at the most [default: 96 of cma-es; of paper and released, what their sizes give]
    #[arg(long, value_name = "N")]
    pub evaluations: Option<usize>,
    /// Sizes of paper and released: small ones, or the paper's, of which it halves population and offspring above 524,288 tokens
    /// [default: small]
    #[arg(long, value_enum)]
    pub sizes: Option<Sizes>,
    /// Individuals of the first population of paper and released [default: by --sizes 32 or 64]
    #[arg(long, value_name = "N")]
    pub population: Option<usize>,
    /// Iterations of paper and released after the first population [default: by --sizes 10 or 40]
    #[arg(long, value_name = "N")]
    pub iterations: Option<usize>,
    /// Mutants, and as many crossovers, of an iteration of paper and released [default: by --sizes 8 or 16]
    #[arg(long, value_name = "N")]
    pub offspring: Option<usize>,
    /// Whether the attention factor is searched too, by cma-es, or is √(1 + ln scale / ln original length), LongRoPE's rule
    /// [default: searched by cma-es, else fixed]
    #[arg(long, value_enum)]
    pub attention_factor: Option<AttentionFactor>,
    /// Also search how many first tokens stay un-interpolated (n_hat), which no engine's configuration can hold
    #[arg(long)]
    pub first_tokens: bool,
    /// Whether the factors are searched; fixed ones are those of PI, NTK-aware and YaRN, each with every allowed number of
    /// --first-tokens
    #[arg(long, value_enum, default_value_t = Factors::Searched, requires_if("fixed", "first_tokens"))]
    pub factors: Factors,
    /// Whether factors never decrease from one pair of dimensions to the next
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub monotone: Switch,
    /// The largest factor, as a multiple of the scale [default: 1.25, the paper's; with --recover, where the scale is 1 or what
    /// exceeds the model's context, 5, which the authors' published sets reach]
    #[arg(long, value_name = "RATIO")]
    pub maximum_ratio: Option<f64>,
    /// Leave a candidate after its first window where its loss there is more than so many nats a token above the best
    /// candidate's; or off [default: 0.02; of prompts, off]
    #[arg(long, value_name = "NATS")]
    pub early_drop: Option<EarlyDrop>,
    /// Look at so many tokens at the beginning of the first window first, and leave a candidate there by the same margin: costs
    /// a part of a window, and tells of a shorter length
    #[arg(long, value_name = "TOKENS")]
    pub screen: Option<usize>,
    /// Draw so many samples for each that cma-es evaluates, and evaluate those that a Gaussian process through what was measured ranks
    /// best [default: 1, no ranking]
    #[arg(long, value_name = "SAMPLES")]
    pub surrogate: Option<usize>,
    /// Begin cma-es again, around the best and with twice as many samples, after so many generations without a better candidate
    /// [default: never]
    #[arg(long, value_name = "GENERATIONS")]
    pub restarts: Option<usize>,
    /// Draw another run's history.csv into convergence.svg: NAME=FILE, or FILE
    #[arg(long, value_name = "FILE")]
    pub compare: Vec<String>,
}

/// The flag `--objective`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Objective {
    Perplexity,
    Passkey,
}

/// The flag `--optimiser`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimiserKind {
    CmaEs,
    Paper,
    Released,
}

impl OptimiserKind {
    /// As the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CmaEs => "cma-es",
            Self::Paper => "paper",
            Self::Released => "released",
        }
    }
}

/// The flag `--sizes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sizes {
    Small,
    Paper,
}

/// The flag `--attention-factor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttentionFactor {
    Fixed,
    Searched,
}

/// The flag `--factors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Factors {
    Searched,
    Fixed,
}

/// The flag `--monotone`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// Sizes of a search where no flag says another.
pub const EVALUATIONS: usize = 96;
const POPULATION: usize = 32;
const ITERATIONS: usize = 10;
const OFFSPRING: usize = 8;
/// Targets above this many tokens have half the paper's sizes.
const HALVED_ABOVE: usize = 512 * 1024;

impl Arguments {
    /// Individuals of the first population, iterations after it, and mutants of each, of a search for so many tokens.
    pub fn sizes(&self, length: usize) -> [usize; 3] {
        let usual = match self.sizes {
            None | Some(Sizes::Small) => [POPULATION, ITERATIONS, OFFSPRING],
            Some(Sizes::Paper) => {
                let paper = Evolution::default();
                let paper = if length > HALVED_ABOVE { paper.halved() } else { paper };
                [paper.population, paper.iterations, paper.mutations]
            }
        };
        let given = [self.population, self.iterations, self.offspring];
        std::array::from_fn(|i| given[i].unwrap_or(usual[i]))
    }

    /// Windows or prompts of an evaluation.
    pub fn windows(&self) -> usize {
        self.windows.unwrap_or(match self.objective {
            Objective::Perplexity => 2,
            Objective::Passkey => 5,
        })
    }

    /// When a candidate is left early.
    pub fn short_cuts(&self) -> ShortCuts {
        let early_drop = self.early_drop.unwrap_or(match self.objective {
            Objective::Perplexity => EarlyDrop(Some(0.02)),
            Objective::Passkey => EarlyDrop(None),
        });
        ShortCuts { early_drop, screen: self.screen }
    }

    /// Whether the attention factor is searched.
    pub fn searches_attention_factor(&self) -> bool {
        self.optimiser == OptimiserKind::CmaEs
            && self.attention_factor != Some(AttentionFactor::Fixed)
            && self.factors == Factors::Searched
    }

    /// Counts within their ranges, and flags that go together: one that has no effect is refused rather than ignored.
    pub fn check(&self, length: usize) -> Result<()> {
        if let Some(screen) = self.screen {
            let most = length.saturating_sub(1);
            ensure!(
                (2..=most).contains(&screen),
                "--screen: {screen} is not valid; expected 2 to {most}, less than the length"
            );
        }
        for (name, value, least) in [
            ("--windows", self.windows(), 1),
            ("--eval-windows", self.eval_windows, 0),
            ("--last", self.last.unwrap_or(1), 1),
            ("--evaluations", self.evaluations.unwrap_or(EVALUATIONS), 1),
            ("--population", self.population.unwrap_or(POPULATION), 3),
            ("--offspring", self.offspring.unwrap_or(OFFSPRING), 1),
            ("--restarts", self.restarts.unwrap_or(1), 1),
        ] {
            ensure!(
                (least..=4096).contains(&value),
                "{name}: {value} is not valid; expected {least} to 4096"
            );
        }
        let most = CmaEs::MAXIMUM_SURROGATE;
        let samples = self.surrogate.unwrap_or(most);
        ensure!((2..=most).contains(&samples), "--surrogate: {samples} is not valid; expected 2 to {most}");
        let ratio = self.maximum_ratio.unwrap_or(1.25);
        ensure!((1.0..=1000.0).contains(&ratio), "--maximum-ratio: {ratio} is not valid; expected 1 to 1000");
        let (kind, searched) = (self.optimiser, self.attention_factor == Some(AttentionFactor::Searched));
        let cma_es = kind == OptimiserKind::CmaEs;
        let not_released = kind != OptimiserKind::Released;
        let with = "--optimiser";
        let name = kind.name();
        self.refuse(
            with,
            name,
            &[
                ("--attention-factor searched", searched, cma_es, "cma-es"),
                ("--factors fixed", self.factors == Factors::Fixed, cma_es, "cma-es"),
                ("--surrogate", self.surrogate.is_some(), cma_es, "cma-es"),
                ("--restarts", self.restarts.is_some(), cma_es, "cma-es"),
                ("--sizes", self.sizes.is_some(), !cma_es, "paper or released"),
                ("--population", self.population.is_some(), !cma_es, "paper or released"),
                ("--iterations", self.iterations.is_some(), !cma_es, "paper or released"),
                ("--offspring", self.offspring.is_some(), !cma_es, "paper or released"),
                ("--first-tokens", self.first_tokens, not_released, "cma-es or paper"),
                ("--monotone off", self.monotone == Switch::Off, not_released, "cma-es or paper"),
                ("--maximum-ratio", self.maximum_ratio.is_some(), not_released, "cma-es or paper"),
                ("--recover", self.recover.is_some(), not_released, "cma-es or paper"),
                ("--start", !self.start.is_empty(), not_released, "cma-es or paper"),
            ],
        )?;
        let fixed = self.factors == Factors::Fixed;
        self.refuse(
            "--factors",
            "fixed",
            &[
                ("--attention-factor searched", searched, !fixed, "searched"),
                ("--evaluations", self.evaluations.is_some(), !fixed, "searched"),
                ("--surrogate", self.surrogate.is_some(), !fixed, "searched"),
                ("--restarts", self.restarts.is_some(), !fixed, "searched"),
                ("--recover", self.recover.is_some(), !fixed, "searched"),
                ("--start", !self.start.is_empty(), !fixed, "searched"),
            ],
        )?;
        let text = self.objective == Objective::Perplexity;
        self.refuse(
            "--objective",
            "passkey",
            &[
                ("--last", self.last.is_some(), text, "perplexity"),
                ("--early-drop", self.early_drop.is_some_and(|drop| drop.0.is_some()), text, "perplexity"),
                ("--screen", self.screen.is_some(), text, "perplexity"),
            ],
        )?;
        let drops = self.early_drop.is_none_or(|drop| drop.0.is_some());
        self.refuse("--early-drop", "off", &[("--screen", self.screen.is_some(), drops, "a number")])
    }

    /// Refuses the flags that are given and not valid with `flag` at `value`.
    fn refuse(&self, flag: &str, value: &str, flags: &[(&str, bool, bool, &str)]) -> Result<()> {
        for (name, given, valid, with) in flags {
            ensure!(*valid || !given, "{name}: not valid with {flag} {value}; expected {flag} {with}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paper_s_sizes_are_halved_above_512k_tokens() {
        let sizes = |flags: &[&str], length| {
            let all = [&["search", "--optimiser", "paper"], flags].concat();
            Arguments::try_parse_from(all).unwrap().sizes(length)
        };
        assert_eq!(sizes(&[], 1 << 20), [32, 10, 8]);
        assert_eq!(sizes(&["--sizes", "paper"], 524_288), [64, 40, 16]);
        assert_eq!(sizes(&["--sizes", "paper"], 524_289), [32, 40, 8]);
        assert_eq!(sizes(&["--sizes", "paper", "--iterations", "3"], 1 << 20), [32, 3, 8]);
    }
}

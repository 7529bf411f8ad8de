//! The flags of `finetune`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use longrope_drivers::arguments::ModelArguments;
use longrope_drivers::model::{Projection, WeightType};
use longrope_drivers::training::{LearningRate, Lora, Method, Packing, Recipe};

/// Fine-tunes a Llama at a longer context, and exports it for Hugging Face.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Text to train on: a file, or a name in the manifest, of role train or search [default: those of them that are committed]
    #[arg(long, value_name = "NAME")]
    pub text: Vec<String>,
    /// Text to measure the loss on, by its name in the manifest [default: those of role eval that are committed]
    #[arg(long, value_name = "NAME")]
    pub eval_text: Vec<String>,
    /// The manifest of the texts
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/manifest.json"))]
    pub manifest: PathBuf,
    /// What stands between the documents of a text [default: a text is one document]
    #[arg(long, value_name = "TEXT")]
    pub separator: Option<String>,
    /// Factors: a configuration of `search`, or a schedule [default: the model's own, or YaRN's where these are for less]
    #[arg(long, visible_alias = "schedule", value_name = "FILE")]
    pub rope_scaling: Option<String>,
    /// Tokens of a sequence [default: 4 times the model's own context]
    #[arg(long, value_name = "TOKENS")]
    pub length: Option<usize>,
    /// How documents make a sequence
    #[arg(long, value_enum, default_value_t = Packing::Documents)]
    pub packing: Packing,
    /// Steps in all; with --adapter also 0, which merges it
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,
    /// Sequences of a step, one after the other
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub batch: usize,
    /// The highest learning rate; it falls to zero in a line [default: 2e-4; with --lora 1e-3]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Steps in which the learning rate rises
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warm_up: usize,
    /// Share of each matrix that is taken away per step and unit of the learning rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Norm that longer gradients are shortened to
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f64,
    /// Train low-rank changes of some matrices alone, of this rank [default: train every weight]
    #[arg(long, value_name = "RANK")]
    pub lora: Option<usize>,
    /// Scale of the changes, times the rank [default: twice the rank]
    #[arg(long, value_name = "SCALE", requires = "lora")]
    pub alpha: Option<f64>,
    /// Matrices that --lora changes
    #[arg(long, value_enum, value_delimiter = ',', requires = "lora", default_values = ["q", "k", "v", "o"])]
    pub lora_targets: Vec<Projection>,
    /// Begin with this adapter, the folder that an earlier run left
    #[arg(long, value_name = "DIR", requires = "lora")]
    pub adapter: Option<PathBuf>,
    /// Seed of the order of texts and of what LoRA begins with
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps between two checkpoints
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub checkpoint_every: usize,
    /// Continue from the checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
    /// Continue although steps, batch, learning rate, warm-up, weight decay or clip are others than the checkpoint's
    #[arg(long, requires = "resume")]
    pub changed: bool,
    /// Directory for checkpoints, the model, the report and the loss curve
    #[arg(long, value_name = "DIR", default_value = "longrope-finetune")]
    pub output: PathBuf,
    /// Windows of unseen text that the loss is measured on
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub eval_windows: usize,
    /// The device's peak in 10^12 floating-point operations a second, for its utilisation [default: by its name]
    #[arg(long, value_name = "TFLOPS")]
    pub peak: Option<f64>,
}

impl Arguments {
    /// What is trained.
    pub fn method(&self) -> Method {
        match self.lora {
            None => Method::Full,
            Some(rank) => Method::Lora(Lora {
                rank,
                alpha: self.alpha.unwrap_or(2.0 * rank as f64),
                projections: self.lora_targets.clone(),
            }),
        }
    }

    /// How a step is made.
    pub fn recipe(&self) -> Recipe {
        let usual = if self.lora.is_some() { 1e-3 } else { 2e-4 };
        let highest = self.learning_rate.unwrap_or(usual);
        Recipe {
            batch: self.batch,
            learning_rate: LearningRate { highest, warm_up: self.warm_up, steps: self.steps },
            weight_decay: self.weight_decay,
            clip: self.clip,
            checkpoint_every: self.checkpoint_every,
        }
    }

    /// Values within their ranges.
    pub fn check(&self) -> Result<()> {
        for (name, value, least) in [
            // None: an adapter is merged.
            ("--steps", self.steps, usize::from(self.adapter.is_none())),
            ("--batch", self.batch, 1),
            ("--warm-up", self.warm_up, 0),
            ("--checkpoint-every", self.checkpoint_every, 1),
            ("--eval-windows", self.eval_windows, 1),
        ] {
            let valid = (least..=1_000_000).contains(&value);
            ensure!(valid, "{name}: {value} is not valid; expected {least} to 1000000");
        }
        for (name, value) in [
            ("--learning-rate", self.recipe().learning_rate.highest),
            ("--clip", self.clip),
            ("--alpha", self.alpha.unwrap_or(1.0)),
            ("--peak", self.peak.unwrap_or(1.0)),
        ] {
            let valid = value > 0.0 && value.is_finite();
            ensure!(valid, "{name}: {value} is not valid; expected a positive number");
        }
        let decay = self.weight_decay;
        ensure!((0.0..=1.0).contains(&decay), "--weight-decay: {decay} is not valid; expected 0 to 1");
        let wrong = self.model.dtype == Some(WeightType::F16);
        ensure!(!wrong, "--dtype: f16 is not valid, gradients leave its range; expected bf16 or f32");
        Ok(())
    }
}

//! The search that the flags ask for.

use std::path::Path;

use anyhow::{Context, Result};
use longrope::scaling::RopeConfig;
use longrope::search::{
    Candidate, CmaEs, Evolution, Operators, Optimiser, Search, paper_seeds, released_seeds,
};
use longrope_drivers::files;
use longrope_drivers::model::LlamaConfig;
use longrope_drivers::search_run::{CheckpointFile, Run};
use longrope_drivers::target::{Purpose, Target, schedule_of};

use super::arguments::{Arguments, EVALUATIONS, Factors, OptimiserKind, Switch};

/// The largest factor of a recovery, as a multiple of the scale.
const RECOVERY_RATIO: f64 = 5.0;

/// What the search is to find.
pub fn target(arguments: &Arguments, config: &LlamaConfig) -> Result<Target> {
    let read = |path: &Path| files::read_text(path);
    let name = |path: &Path| format!("{}", path.display());
    let purpose = match (&arguments.multiply, &arguments.recover) {
        (Some(path), _) => {
            Purpose::Further(RopeConfig::from_hf_json(&read(path)?).with_context(|| name(path))?)
        }
        (None, Some(path)) => Purpose::Recover(schedule_of(&read(path)?).with_context(|| name(path))?),
        (None, None) => Purpose::Extend,
    };
    let from = match &purpose {
        Purpose::Further(earlier) => earlier.max_length() as usize,
        _ => config.original_length(),
    };
    Target::new(&config.rope, arguments.length.unwrap_or(from.saturating_mul(8)), purpose)
}

/// A new search, or the one that the checkpoint holds.
pub fn start(
    arguments: &Arguments,
    config: &LlamaConfig,
    target: &Target,
    checkpoint: &CheckpointFile,
) -> Result<Run> {
    let (optimiser, seeds) = optimiser(arguments, &config.rope, target)?;
    let scale = target.scale();
    if !arguments.resume {
        let search = Search::new(optimiser, scale, seeds).with_context(|| match arguments.optimiser {
            OptimiserKind::CmaEs => "--evaluations",
            _ => "--population, --offspring, --iterations",
        })?;
        return Ok(Run::new(search));
    }
    let (saved, costs) = checkpoint.load(arguments.short_cuts())?;
    let path = || format!("{}", checkpoint.path().display());
    saved.check_arguments(&optimiser, scale, &seeds).with_context(path)?;
    Ok(Run { search: Search::resume(saved).with_context(path)?, costs })
}

/// The optimiser that the flags ask for, and what it begins with.
fn optimiser(
    arguments: &Arguments,
    rope: &RopeConfig,
    target: &Target,
) -> Result<(Optimiser, Vec<Candidate>)> {
    let (geometry, kind, scale) = (rope.geometry(), arguments.optimiser, target.scale());
    let paper = Evolution::default();
    let first_tokens = if arguments.first_tokens { paper.first_tokens.clone() } else { vec![0] };
    let recovers = matches!(target.purpose(), Purpose::Recover(_));
    let maximum_ratio =
        arguments.maximum_ratio.unwrap_or(if recovers { RECOVERY_RATIO } else { paper.maximum_ratio });
    let monotone = arguments.monotone == Switch::On;
    let searched = arguments.searches_attention_factor();
    let usual = match kind {
        OptimiserKind::Released => released_seeds(geometry, scale),
        _ => paper_seeds(geometry, scale),
    };
    let mut seeds = target.recovery_seeds(usual, maximum_ratio * scale, searched);
    let mut start = Vec::new();
    for path in &arguments.start {
        let name = || format!("--start: {}", path.display());
        let found = RopeConfig::from_hf_json(&files::read_text(path)?).with_context(name)?;
        let bounds = (maximum_ratio * scale, monotone);
        start.push(target.start(&found, bounds, searched).with_context(name)?);
    }
    seeds.splice(0..0, start);
    if kind == OptimiserKind::CmaEs && arguments.factors == Factors::Searched {
        // Where there is no room for all, the first ones.
        seeds.truncate(arguments.evaluations.unwrap_or(EVALUATIONS));
    }
    if arguments.factors == Factors::Fixed {
        let with = |seed: &Candidate| {
            let all = first_tokens.iter().map(|&first_tokens| Candidate { first_tokens, ..seed.clone() });
            all.collect::<Vec<_>>()
        };
        seeds = seeds.iter().flat_map(with).collect();
    }
    let [population, iterations, offspring] = arguments.sizes(target.length());
    let optimiser = match kind {
        OptimiserKind::CmaEs => Optimiser::from(CmaEs {
            evaluations: match arguments.factors {
                // The seeds are all there is to be measured.
                Factors::Fixed => seeds.len(),
                Factors::Searched => arguments.evaluations.unwrap_or(EVALUATIONS),
            },
            attention_factor: searched.then(|| target.rule()),
            maximum_ratio,
            first_tokens,
            monotone,
            restarts: arguments.restarts,
            surrogate: arguments.surrogate,
            seed: arguments.seed,
            ..CmaEs::default()
        }),
        OptimiserKind::Paper | OptimiserKind::Released => Optimiser::from(Evolution {
            population,
            mutations: offspring,
            crossovers: offspring,
            parents: population.div_ceil(2),
            iterations,
            seed: arguments.seed,
            first_tokens,
            maximum_ratio,
            monotone,
            operators: match kind {
                OptimiserKind::Released => Operators::Released,
                _ => Operators::Paper,
            },
            ..paper
        }),
    };
    Ok((optimiser, seeds))
}

//! The rotary embedding that a model is trained with.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use longrope::scaling::{FactorSets, RopeConfig, Schedule};

use crate::convert::Source;
use crate::methods;

/// Factors for sequences of the training length.
pub struct Factors {
    /// What the exported configuration gets.
    pub source: Source,
    /// As shown.
    pub name: String,
    /// Tokens of a sequence.
    pub length: usize,
    /// For every position of it.
    pub sets: FactorSets,
}

impl Factors {
    /// Those of `file`, a configuration or a schedule; without one the model's own where they are for the length, else YaRN's,
    /// the best of the methods that need no search.
    ///
    /// # Errors
    /// A file that is not valid, of another model, or of factors for shorter sequences.
    pub fn choose(base: &RopeConfig, model: &Path, length: usize, file: Option<&str>) -> Result<Self> {
        let tokens = length as u64;
        let (source, name) = match file {
            Some(file) => (Source::read(file, Some(model))?.1, file.to_owned()),
            None if tokens <= base.max_length() => {
                (Source::Config(base.clone()), "the model's own".to_owned())
            }
            None => {
                let yarn = methods::baselines(base, length)?.pop().context("no method")?;
                (Source::Config(yarn.rope), yarn.name.to_owned())
            }
        };
        let (geometry, longest) = match &source {
            Source::Config(rope) => (rope.geometry(), rope.max_length()),
            Source::Schedule(schedule) => (schedule.geometry(), schedule.max_length()),
        };
        ensure!(
            geometry == base.geometry(),
            "--rope-scaling: {name}: {geometry:?} is not valid; expected factors for that of the model, {:?}",
            base.geometry()
        );
        ensure!(
            tokens <= longest,
            "--rope-scaling: {name}: factors for up to {longest} tokens are not valid; expected at least {length}, --length"
        );
        let sets = match &source {
            Source::Config(rope) => rope.factor_sets(tokens)?,
            Source::Schedule(schedule) => schedule.factor_sets(tokens)?,
        };
        Ok(Self { source, name, length, sets })
    }

    /// All that they say, for comparison.
    pub fn described(&self) -> Result<String> {
        Ok(match &self.source {
            Source::Config(rope) => Schedule::from_configs(std::slice::from_ref(rope))
                .map_or_else(|_| format!("{rope:?}"), |schedule| schedule.to_json().to_string()),
            Source::Schedule(schedule) => schedule.to_json().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use longrope::scaling::hf::Generation;
    use longrope::scaling::{Geometry, Scaling};

    use super::*;

    fn base() -> RopeConfig {
        RopeConfig::new(Geometry::new(8, 8, 1e4, 256).unwrap(), 256, Scaling::Default).unwrap()
    }

    #[test]
    fn without_a_file_a_longer_sequence_gets_yarn() {
        let choose = |length| Factors::choose(&base(), Path::new("model"), length, None).unwrap();
        assert_eq!(choose(256).source, Source::Config(base()));
        let longer = choose(1024);
        let Source::Config(rope) = &longer.source else { panic!("{:?}", longer.source) };
        assert!(matches!(rope.scaling(), Scaling::Yarn(_)) && rope.max_length() == 1024);
        assert_ne!(longer.described().unwrap(), choose(2048).described().unwrap());
    }

    #[test]
    fn factors_of_another_model_or_for_less_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rope.json");
        let file = path.to_str().unwrap();
        let yarn = methods::baselines(&base(), 1024).unwrap().pop().unwrap().rope;
        std::fs::write(&path, yarn.to_hf(Generation::RopeScaling).to_string()).unwrap();
        let choose =
            |base: &RopeConfig, length| Factors::choose(base, Path::new("model"), length, Some(file));
        assert!(choose(&base(), 1024).is_ok());
        let message = choose(&base(), 1025).err().unwrap().to_string();
        assert!(message.ends_with("up to 1024 tokens are not valid; expected at least 1025, --length"));
        let other = RopeConfig::new(Geometry::new(8, 8, 5e5, 256).unwrap(), 256, Scaling::Default).unwrap();
        let message = choose(&other, 1024).err().unwrap().to_string();
        assert!(message.starts_with("--rope-scaling: ") && message.contains("that of the model"));
    }
}

//! What a candidate stands for: the rotary embedding of the model at the length searched for.

use anyhow::{Context, Result, ensure};
use longrope::scaling::{Bucket, FactorSets, RopeConfig, Schedule, rescale};
use longrope::search::Candidate;

use crate::methods;

/// What a search is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// Factors for a longer context than the model's own.
    Extend,
    /// The second search of the progressive extension: the model was fine-tuned with these factors, and those searched for
    /// multiply them (LongRoPE, section 3.3).
    Further(RopeConfig),
    /// A set for a shorter context than this schedule's longest, to recover what its factors lose there.
    Recover(Schedule),
}

/// The rotary embedding at a length, but for what a candidate says.
#[derive(Debug, Clone)]
pub struct Target {
    base: RopeConfig,
    length: usize,
    purpose: Purpose,
}

impl Target {
    /// Of a model whose own rotary embedding is `base`.
    ///
    /// # Errors
    /// A length that the purpose has no use for, or factors of another model.
    pub fn new(base: &RopeConfig, length: usize, purpose: Purpose) -> Result<Self> {
        let original = base.geometry().original_length();
        let expect = |valid: bool, expected: String| -> Result<()> {
            ensure!(valid, "--length: {length} is not valid; expected {expected}");
            Ok(())
        };
        let tokens = length as u64;
        let found = match &purpose {
            Purpose::Extend => {
                expect(tokens > original, format!("more than the model's own context ({original})"))?;
                base.geometry()
            }
            Purpose::Further(earlier) => {
                let least = earlier.max_length().max(original);
                expect(tokens > least, format!("more than the {least} tokens that --multiply is for"))?;
                earlier.to_longrope().context("--multiply")?;
                earlier.geometry()
            }
            Purpose::Recover(schedule) => {
                let longest = schedule.max_length();
                let expected = format!("2 to {}, below the longest of --recover", longest.saturating_sub(1));
                expect((2..longest).contains(&tokens), expected)?;
                schedule.geometry()
            }
        };
        ensure!(
            found == base.geometry(),
            "{found:?} is not valid; expected factors for that of the model, {:?}",
            base.geometry()
        );
        Ok(Self { base: base.clone(), length, purpose })
    }

    /// The length searched for, in tokens.
    pub fn length(&self) -> usize {
        self.length
    }

    /// What the search is for.
    pub fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// How many times longer than what the factors are to extend; 1 where nothing is to be extended.
    pub fn scale(&self) -> f64 {
        match &self.purpose {
            Purpose::Extend => methods::scale(&self.base, self.length),
            Purpose::Further(earlier) => self.length as f64 / earlier.max_length() as f64,
            Purpose::Recover(_) => methods::scale(&self.base, self.length).max(1.0),
        }
    }

    /// LongRoPE's attention factor for the length.
    pub fn rule(&self) -> f64 {
        let scale = methods::scale(&self.base, self.length);
        rescale::longrope_attention_factor(scale, self.base.geometry().original_length())
    }

    /// The attention factor of a candidate that has none, where it is not searched: the rule's; in a recovery that of the
    /// schedule at this length, which a model's configuration applies at every length.
    pub fn fixed_attention_factor(&self) -> Result<f64> {
        Ok(match &self.purpose {
            Purpose::Recover(schedule) => schedule.choose(self.length as u64)?.attention_factor,
            _ => self.rule(),
        })
    }

    /// What each frequency is divided by.
    pub fn factors(&self, candidate: &Candidate) -> Vec<f64> {
        match &self.purpose {
            Purpose::Further(earlier) => {
                let earlier = earlier.divisors(earlier.max_length());
                earlier.iter().zip(&candidate.factors).map(|(earlier, factor)| earlier * factor).collect()
            }
            _ => candidate.factors.clone(),
        }
    }

    /// The set of a candidate.
    fn bucket(&self, candidate: &Candidate, attention_factor: f64) -> Bucket {
        Bucket {
            max_length: self.length as u64,
            factors: self.factors(candidate),
            attention_factor: candidate.attention_factor.unwrap_or(attention_factor),
            first_tokens: candidate.first_tokens,
        }
    }

    /// The sets under which a candidate is measured: any choice gives its own.
    pub fn sets(&self, candidate: &Candidate, attention_factor: f64) -> Result<FactorSets> {
        let bucket = self.bucket(candidate, attention_factor);
        Ok(Schedule::new(*self.base.geometry(), vec![bucket])?.factor_sets(self.length as u64)?)
    }

    /// The configuration of a candidate: its factors beyond the original length and none up to it. Of a search that
    /// extends.
    pub fn rope(&self, candidate: &Candidate) -> Result<RopeConfig> {
        let candidate = Candidate { factors: self.factors(candidate), ..candidate.clone() };
        methods::longrope(&self.base, self.length, &candidate)
    }

    /// The schedule with a candidate's set for the length, in place of the one that was there; `None` where nothing is
    /// recovered.
    pub fn schedule(&self, candidate: &Candidate, attention_factor: f64) -> Result<Option<Schedule>> {
        let Purpose::Recover(schedule) = &self.purpose else { return Ok(None) };
        let length = self.length as u64;
        let mut buckets: Vec<Bucket> =
            schedule.buckets().iter().filter(|bucket| bucket.max_length != length).cloned().collect();
        buckets.push(self.bucket(candidate, attention_factor));
        buckets.sort_by_key(|bucket| bucket.max_length);
        Ok(Some(Schedule::new(*schedule.geometry(), buckets)?))
    }

    /// The candidate that a configuration stands for, with its attention factor where that is `searched`. One for another length
    /// is brought to this one: each factor is raised to the power by which the logarithm of the scale grows, and the attention
    /// factor keeps its ratio to LongRoPE's rule. Factors are held within 1 and `maximum`, and to rise where they are to be
    /// `monotone`.
    ///
    /// # Errors
    /// Factors of another model, or for no more than what is extended.
    pub fn start(
        &self,
        rope: &RopeConfig,
        (maximum, monotone): (f64, bool),
        searched: bool,
    ) -> Result<Candidate> {
        let (own, found) = (self.base.geometry(), rope.geometry());
        ensure!(found == own, "{found:?} is not valid; expected factors for that of the model, {own:?}");
        let (from, earlier) = match &self.purpose {
            Purpose::Further(earlier) => (earlier.max_length(), earlier.divisors(earlier.max_length())),
            _ => (own.original_length(), vec![1.0; own.pairs()]),
        };
        let to = rope.max_length();
        let same = to == self.length as u64;
        ensure!(
            same || (to > from && self.scale() > 1.0),
            "factors for {to} tokens are not valid; expected more than {from} tokens, or {} as --length",
            self.length
        );
        let power = if same { 1.0 } else { self.scale().ln() / (to as f64 / from as f64).ln() };
        let relative = rope.divisors(to).into_iter().zip(earlier).map(|(factor, earlier)| factor / earlier);
        let mut least = 1f64;
        let factors = relative
            .map(|factor| {
                let factor = if same { factor } else { factor.powf(power) }.clamp(least, maximum);
                least = if monotone { factor } else { 1.0 };
                factor
            })
            .collect();
        let rule = |length: u64| {
            let scale = methods::scale(&self.base, length as usize);
            rescale::longrope_attention_factor(scale, own.original_length())
        };
        let attention_factor = match same {
            true => rope.attention_factor(),
            false => rope.attention_factor() / rule(to) * self.rule(),
        };
        let first_tokens = rope.first_tokens();
        Ok(Candidate { factors, first_tokens, attention_factor: searched.then_some(attention_factor) })
    }

    /// What a recovery begins with, none of it beyond `maximum`: no interpolation, or the usual methods beyond the original
    /// length, then the schedule's longest factors, weakened (each to a power below 1) to what is allowed and to half of that
    /// in logarithms. With the attention factor of the longest where it is `searched`.
    pub fn recovery_seeds(&self, usual: Vec<Candidate>, maximum: f64, searched: bool) -> Vec<Candidate> {
        let Purpose::Recover(schedule) = &self.purpose else { return usual };
        let plain = Candidate {
            factors: vec![1.0; self.base.geometry().pairs()],
            first_tokens: 0,
            attention_factor: None,
        };
        let mut seeds = if self.scale() > 1.0 { usual } else { vec![plain] };
        let Some(longest) = schedule.buckets().last() else { return seeds };
        // Published sets may decrease; a search's do not.
        let mut highest = 1f64;
        let mut rising = longest.factors.clone();
        for factor in &mut rising {
            highest = highest.max(*factor);
            *factor = highest;
        }
        let allowed = if highest > maximum { maximum.ln() / highest.ln() } else { 1.0 };
        for power in [allowed, allowed / 2.0] {
            let weakened = |factor: &f64| if power == 1.0 { *factor } else { factor.powf(power) };
            let factors = rising.iter().map(|factor| weakened(factor).min(maximum)).collect();
            let attention_factor = searched.then_some(longest.attention_factor);
            seeds.push(Candidate { factors, first_tokens: 0, attention_factor });
        }
        seeds
    }
}

/// The schedule in `text`: a schedule file, or a configuration, which becomes one.
///
/// # Errors
/// Neither of the two.
pub fn schedule_of(text: &str) -> Result<Schedule> {
    let json: serde_json::Value = serde_json::from_str(text)?;
    match json.get("buckets") {
        Some(_) => Ok(Schedule::from_json(text)?),
        None => Ok(Schedule::from_configs(&[RopeConfig::from_hf(&json)?])?),
    }
}

#[cfg(test)]
mod tests {
    use longrope::scaling::{Geometry, Scaling, SetChoice};

    use super::*;

    /// 4 pairs, 256 tokens.
    fn base() -> RopeConfig {
        RopeConfig::new(Geometry::new(8, 8, 1e4, 256).unwrap(), 256, Scaling::Default).unwrap()
    }

    fn candidate(factors: [f64; 4], attention_factor: Option<f64>) -> Candidate {
        Candidate { factors: factors.to_vec(), first_tokens: 0, attention_factor }
    }

    fn extended() -> RopeConfig {
        let target = Target::new(&base(), 1024, Purpose::Extend).unwrap();
        target.rope(&candidate([1.0, 1.5, 3.0, 5.0], None)).unwrap()
    }

    fn steps(sets: &FactorSets, choice: SetChoice) -> String {
        format!("{:?}", sets.at(700, choice))
    }

    #[test]
    fn a_candidate_is_measured_as_its_configuration_is() {
        for attention in [None, Some(1.3)] {
            let candidate = candidate([1.0, 1.5, 3.0, 5.0], attention);
            let target = Target::new(&base(), 1024, Purpose::Extend).unwrap();
            let sets = target.sets(&candidate, target.rule()).unwrap();
            let rope = target.rope(&candidate).unwrap().factor_sets(1024).unwrap();
            assert_eq!(steps(&sets, SetChoice::Long), steps(&rope, SetChoice::Long));
        }
    }

    #[test]
    fn factors_of_a_second_search_multiply_the_first_ones() {
        let target = Target::new(&base(), 4096, Purpose::Further(extended())).unwrap();
        assert_eq!(target.scale(), 4.0);
        let rope = target.rope(&candidate([1.0, 2.0, 2.0, 4.0], None)).unwrap();
        let Scaling::LongRope(longrope) = rope.scaling() else { panic!("{rope:?}") };
        assert_eq!(longrope.long_factor, [1.0, 3.0, 6.0, 20.0]);
        // The rule is that of both extensions together: 16 times 256 tokens.
        assert_eq!((longrope.factor, rope.max_length()), (16.0, 4096));
        assert!((rope.attention_factor() - (1.0 + 16f64.ln() / 256f64.ln()).sqrt()).abs() < 1e-12);
        assert_eq!(target.rule(), rope.attention_factor());
    }

    #[test]
    fn a_recovered_set_takes_the_place_of_its_length_and_leaves_the_others() {
        let schedule = Schedule::from_configs(&[extended()]).unwrap();
        for (length, lengths) in
            [(128, vec![128, 256, 1024]), (256, vec![256, 1024]), (512, vec![256, 512, 1024])]
        {
            let target = Target::new(&base(), length, Purpose::Recover(schedule.clone())).unwrap();
            let new = target.schedule(&candidate([1.0, 1.0, 1.1, 1.2], Some(1.05)), 1.0).unwrap().unwrap();
            let found: Vec<u64> = new.buckets().iter().map(|bucket| bucket.max_length).collect();
            assert_eq!(found, lengths);
            let bucket = new.choose(length as u64).unwrap();
            assert_eq!((bucket.factors[3], bucket.attention_factor), (1.2, 1.05));
            assert_eq!(new.choose(1024).unwrap(), schedule.choose(1024).unwrap());
        }
    }

    #[test]
    fn a_recovery_begins_within_its_bounds() {
        let schedule = Schedule::from_configs(&[extended()]).unwrap();
        let target = Target::new(&base(), 128, Purpose::Recover(schedule)).unwrap();
        assert_eq!((target.scale(), target.rule()), (1.0, 1.0));
        // What engines apply at every length, without a schedule.
        assert_eq!(target.fixed_attention_factor().unwrap(), extended().attention_factor());
        let seeds = target.recovery_seeds(Vec::new(), 3.0, true);
        assert_eq!(seeds[0], candidate([1.0; 4], None));
        assert_eq!(seeds[1].factors[3], 3.0);
        assert!((seeds[2].factors[3] - 3f64.sqrt()).abs() < 1e-12);
        assert!(seeds.iter().all(|seed| seed.factors.is_sorted()));
        assert_eq!(seeds[1].attention_factor, Some(extended().attention_factor()));
        assert_eq!(target.recovery_seeds(Vec::new(), 8.0, false)[1], candidate([1.0, 1.5, 3.0, 5.0], None));
    }

    #[test]
    fn a_configuration_to_begin_with_is_brought_to_the_length() {
        let found = candidate([1.0, 1.5, 3.0, 4.0], Some(1.3));
        let close = |a: &Candidate, b: &Candidate| {
            let [mut a, mut b] = [a, b].map(|candidate| candidate.factors.clone());
            a.extend([1.0]);
            b.extend([1.0]);
            a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12)
        };
        let target = |length, purpose| Target::new(&base(), length, purpose).unwrap();
        let bounds = (100.0, true);
        // Of the same length it is what it was.
        let extend = target(1024, Purpose::Extend);
        let rope = extend.rope(&found).unwrap();
        assert_eq!(extend.start(&rope, bounds, true).unwrap(), found);
        assert_eq!(extend.start(&rope, bounds, false).unwrap().attention_factor, None);
        // Of 4 times the context, for 16 times: squares.
        let longer = target(4096, Purpose::Extend);
        let start = longer.start(&rope, bounds, true).unwrap();
        assert!(close(&start, &candidate([1.0, 2.25, 9.0, 16.0], None)), "{start:?}");
        let ratio = start.attention_factor.unwrap() / longer.rule();
        assert!((ratio - 1.3 / extend.rule()).abs() < 1e-12);
        // Of a second search, what multiplies the first one's factors: 8 times its length, from twice.
        let first = extended();
        let further = |length| target(length, Purpose::Further(extended()));
        let second = further(2048).rope(&candidate([1.0, 1.0, 2.0, 2.0], None)).unwrap();
        let start = further(8192).start(&second, bounds, false).unwrap();
        assert!(close(&start, &candidate([1.0, 1.0, 8.0, 8.0], None)), "{start:?}");
        // Factors that fall, or are too large.
        let falling = extend.rope(&candidate([1.0, 3.0, 2.0, 4.0], None)).unwrap();
        let start = |bounds| extend.start(&falling, bounds, false).unwrap().factors;
        assert_eq!(start((3.5, true)), [1.0, 3.0, 3.0, 3.5]);
        assert_eq!(start((3.5, false)), [1.0, 3.0, 2.0, 3.5]);
        let refused = further(8192).start(&first, bounds, false).unwrap_err().to_string();
        assert!(refused.starts_with("factors for 1024 tokens are not valid; expected more than 1024 tokens"));
    }

    #[test]
    fn lengths_without_a_use_are_refused() {
        let message = |length, purpose| Target::new(&base(), length, purpose).unwrap_err().to_string();
        assert!(message(256, Purpose::Extend).ends_with("more than the model's own context (256)"));
        let further = message(1024, Purpose::Further(extended()));
        assert!(further.ends_with("expected more than the 1024 tokens that --multiply is for"), "{further}");
        let schedule = Schedule::from_configs(&[extended()]).unwrap();
        let recover = message(1024, Purpose::Recover(schedule));
        assert!(recover.ends_with("expected 2 to 1023, below the longest of --recover"), "{recover}");
    }
}

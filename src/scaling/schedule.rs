//! Factor sets by length: more than the short and the long one that a model's configuration holds.

use serde_json::{Value, json};

use crate::scaling::hf::field::Object;
use crate::scaling::{ConfigError, FactorSet, FactorSets, Geometry, LongRope, RopeConfig, Scaling};

/// The `format` of the file.
const FORMAT: &str = "longrope-schedule";

/// Larger files hold no schedule.
const MAX_BYTES: usize = 64 << 20;

/// The factors of sequences up to a length.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// The longest sequence that takes these factors, in tokens.
    pub max_length: u64,
    /// What each frequency is divided by, one per pair.
    pub factors: Vec<f64>,
    /// What cosine and sine are multiplied by, of queries and of keys.
    pub attention_factor: f64,
    /// How many first positions keep the plain frequencies and a gain of 1 (n_hat).
    pub first_tokens: u64,
}

/// Factor sets of one model by the length of the sequence.
///
/// LongRoPE's authors published a set for every doubling of the context, and chose by the length rounded up to the next
/// one. A sequence takes the first bucket whose `max_length` is not below its own. The choice is made for a whole
/// sequence from its total length, as that of [`FactorSets`] is.
///
/// ```
/// use longrope::scaling::{Bucket, Geometry, Schedule};
///
/// let bucket = |max_length, last| Bucket {
///     max_length,
///     factors: vec![1.0, 1.0, 1.5, last],
///     attention_factor: 1.0,
///     first_tokens: 0,
/// };
/// let schedule = Schedule::new(Geometry::new(8, 8, 1e4, 4096)?, vec![bucket(8192, 2.0), bucket(16_384, 4.0)])?;
/// assert_eq!(schedule.choose(8192)?.factors[3], 2.0);
/// assert_eq!(schedule.choose(8193)?.factors[3], 4.0);
/// assert!(schedule.choose(16_385).is_err());
/// # Ok::<(), longrope::scaling::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    geometry: Geometry,
    buckets: Vec<Bucket>,
}

impl Schedule {
    /// Factor sets for a model of this geometry.
    ///
    /// # Errors
    /// No bucket; lengths that do not rise; a number of factors other than that of the pairs; a factor or attention
    /// factor that is not a finite number above 0, or gives a frequency that no rotary embedding can have.
    pub fn new(geometry: Geometry, buckets: Vec<Bucket>) -> Result<Self, ConfigError> {
        if buckets.is_empty() {
            return Err(ConfigError::invalid("buckets", "an empty list", "at least one bucket"));
        }
        for (i, bucket) in buckets.iter().enumerate() {
            let least = if i == 0 { 1 } else { buckets[i - 1].max_length.saturating_add(1) };
            if bucket.max_length < least {
                return Err(ConfigError::invalid(
                    format!("buckets[{i}].max_length"),
                    bucket.max_length,
                    format!("at least {least}, since lengths rise"),
                ));
            }
            bucket.check(&geometry, &format!("buckets[{i}]"))?;
        }
        let schedule = Self { geometry, buckets };
        // Every frequency is checked here once, so that no choice can fail later.
        for bucket in &schedule.buckets {
            schedule.sets_of(bucket)?;
        }
        Ok(schedule)
    }

    /// The schedule of several configurations of one model, in any order: each gives a bucket up to its maximum length.
    /// Lengths up to the original one take the short factors and the attention factor of the shortest configuration
    /// beyond it, unless a configuration is for exactly that length.
    ///
    /// # Errors
    /// No configuration; configurations of different geometries, of the same length, with different short factors, or of
    /// dynamic NTK, whose factors are others at every length.
    pub fn from_configs(configs: &[RopeConfig]) -> Result<Self, ConfigError> {
        let Some(first) = configs.first() else {
            return Err(ConfigError::invalid("configurations", "an empty list", "at least one"));
        };
        let (geometry, original) = (*first.geometry(), first.geometry().original_length());
        let mut buckets = Vec::new();
        let mut beyond: Option<(u64, Bucket)> = None;
        for (i, config) in configs.iter().enumerate() {
            if config.geometry() != &geometry {
                return Err(ConfigError::invalid(
                    format!("configurations[{i}]"),
                    format!("{:?}", config.geometry()),
                    format!("that of the first, {geometry:?}"),
                ));
            }
            let config = config.to_longrope()?;
            let bucket = |length: u64| Bucket {
                max_length: length,
                factors: config.divisors(length),
                attention_factor: config.attention_factor(),
                first_tokens: config.first_tokens(),
            };
            buckets.push(bucket(config.max_length()));
            if config.max_length() > original {
                let short = bucket(original);
                if let Some((_, other)) = beyond.as_ref().filter(|(_, other)| other.factors != short.factors)
                {
                    return Err(ConfigError::invalid(
                        format!("configurations[{i}].short_factor"),
                        format!("{:?}", short.factors),
                        format!(
                            "those of the others, {:?}: a schedule has one set up to {original}",
                            other.factors
                        ),
                    ));
                }
                if beyond.as_ref().is_none_or(|(length, _)| config.max_length() < *length) {
                    beyond = Some((config.max_length(), short));
                }
            }
        }
        if let Some((_, short)) =
            beyond.filter(|_| configs.iter().all(|config| config.max_length() != original))
        {
            buckets.push(short);
        }
        buckets.sort_by_key(|bucket| bucket.max_length);
        Self::new(geometry, buckets)
    }

    /// Reads the text of a schedule file:
    ///
    /// ```json
    /// {
    ///   "format": "longrope-schedule",
    ///   "version": 1,
    ///   "head_dim": 8, "rotary_dim": 8, "rope_theta": 10000.0,
    ///   "original_max_position_embeddings": 4096,
    ///   "buckets": [
    ///     {"max_length": 4096, "attention_factor": 1.0, "factors": [1.0, 1.0, 1.0, 1.0]},
    ///     {"max_length": 8192, "attention_factor": 1.04, "n_hat": 4, "factors": [1.0, 1.1, 1.5, 2.0]}
    ///   ]
    /// }
    /// ```
    ///
    /// `factors` are what each frequency is divided by, `n_hat` is the number of first tokens that keep the plain
    /// frequencies; absent it is 0.
    ///
    /// # Errors
    /// Text that is not JSON or exceeds 64 MiB; a field that is missing, unknown or of the wrong type, and all that
    /// [`new`](Self::new) refuses. The message holds the path of the field.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_BYTES {
            return Err(ConfigError::invalid(
                "schedule",
                format!("{} bytes", text.len()),
                format!("at most {MAX_BYTES} bytes"),
            ));
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ConfigError::Syntax { format: "JSON", reason: error.to_string() })?;
        let top = Object::new("", &value)?;
        top.only(&[
            "format",
            "version",
            "head_dim",
            "rotary_dim",
            "rope_theta",
            "original_max_position_embeddings",
            "buckets",
        ])?;
        match top.text("format")? {
            Some(FORMAT) => {}
            Some(other) => return Err(ConfigError::invalid("format", format!("{other:?}"), FORMAT)),
            None => return Err(ConfigError::missing("format", FORMAT)),
        }
        match top.required_whole("version")? {
            1 => {}
            other => return Err(ConfigError::invalid("version", other, "1")),
        }
        let geometry = Geometry::new(
            top.required_whole("head_dim")? as usize,
            top.required_whole("rotary_dim")? as usize,
            top.required_number("rope_theta")?,
            top.required_whole("original_max_position_embeddings")?,
        )?;
        let list = top
            .get("buckets")
            .and_then(Value::as_array)
            .ok_or_else(|| ConfigError::missing("buckets", "a list of buckets"))?;
        let buckets =
            list.iter().enumerate().map(|(i, value)| Bucket::from_json(value, &format!("buckets[{i}]")));
        Self::new(geometry, buckets.collect::<Result<_, _>>()?)
    }

    /// The schedule as a file holds it; [`from_json`](Self::from_json) reads it back to an equal one.
    pub fn to_json(&self) -> Value {
        let buckets = self.buckets.iter().map(|bucket| {
            json!({
                "max_length": bucket.max_length,
                "attention_factor": bucket.attention_factor,
                "n_hat": bucket.first_tokens,
                "factors": bucket.factors,
            })
        });
        json!({
            "format": FORMAT,
            "version": 1,
            "head_dim": self.geometry.head_dim(),
            "rotary_dim": self.geometry.rotary_dim(),
            "rope_theta": self.geometry.theta(),
            "original_max_position_embeddings": self.geometry.original_length(),
            "buckets": buckets.collect::<Vec<_>>(),
        })
    }

    /// Head dimensions, base and original length.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The buckets by rising length; at least one.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The longest sequence that has a bucket, in tokens.
    pub fn max_length(&self) -> u64 {
        self.buckets.last().map_or(0, |bucket| bucket.max_length)
    }

    /// The bucket of a sequence of `length` tokens in all: the first whose maximum is not below it.
    ///
    /// # Errors
    /// A `length` beyond the last bucket.
    pub fn choose(&self, length: u64) -> Result<&Bucket, ConfigError> {
        self.buckets.iter().find(|bucket| length <= bucket.max_length).ok_or_else(|| {
            ConfigError::invalid(
                "length",
                length,
                format!("at most {}, that of the schedule's last bucket", self.max_length()),
            )
        })
    }

    /// The exact sets of a sequence of `length` tokens in all. Short and long are the same, those of its bucket, so any
    /// [`SetChoice`](crate::scaling::SetChoice) gives them.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn factor_sets(&self, length: u64) -> Result<FactorSets, ConfigError> {
        self.sets_of(self.choose(length)?)
    }

    /// What a model's configuration can hold of the schedule: the factors, attention factor and first tokens of the
    /// bucket of `length` beyond the original length, and the factors of the original length's bucket up to it.
    ///
    /// # Errors
    /// As [`choose`](Self::choose).
    pub fn to_config(&self, length: u64) -> Result<RopeConfig, ConfigError> {
        let long = self.choose(length)?;
        let short = self.choose(self.geometry.original_length().min(length))?;
        let ratio = long.max_length as f64 / self.geometry.original_length() as f64;
        let mut longrope = LongRope {
            short_factor: short.factors.clone(),
            long_factor: long.factors.clone(),
            factor: ratio,
            attention_factor: None,
            first_tokens: long.first_tokens,
        };
        let by_rule = Scaling::LongRope(longrope.clone()).gain(&self.geometry);
        if by_rule != long.attention_factor {
            longrope.attention_factor = Some(long.attention_factor);
        }
        RopeConfig::new(self.geometry, long.max_length, Scaling::LongRope(longrope))
    }

    fn sets_of(&self, bucket: &Bucket) -> Result<FactorSets, ConfigError> {
        let plain = self.geometry.frequencies();
        let divided: Vec<f64> = plain.iter().zip(&bucket.factors).map(|(f, lambda)| f / lambda).collect();
        let set = FactorSet::exact(&divided, bucket.attention_factor)?;
        FactorSets::new(
            FactorSet::exact(&plain, 1.0)?,
            set.clone(),
            set,
            self.geometry.original_length(),
            bucket.first_tokens,
        )
    }
}

impl Bucket {
    fn check(&self, geometry: &Geometry, path: &str) -> Result<(), ConfigError> {
        if self.factors.len() != geometry.pairs() {
            return Err(ConfigError::invalid(
                format!("{path}.factors"),
                format!("a list of {}", self.factors.len()),
                format!("{} numbers, one per pair of the rotary dimension", geometry.pairs()),
            ));
        }
        let named = self.factors.iter().enumerate().map(|(i, factor)| (format!("factors[{i}]"), *factor));
        for (name, value) in named.chain([("attention_factor".to_owned(), self.attention_factor)]) {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::invalid(format!("{path}.{name}"), value, "a finite number above 0"));
            }
        }
        Ok(())
    }

    fn from_json(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let fields = Object::new(path, value)?;
        fields.only(&["max_length", "attention_factor", "n_hat", "factors"])?;
        Ok(Self {
            max_length: fields.required_whole("max_length")?,
            factors: fields.required_numbers("factors")?,
            attention_factor: fields.required_number("attention_factor")?,
            first_tokens: fields.whole("n_hat")?.unwrap_or(0),
        })
    }
}

//! What was measured already, on disk, so that a run that was cut short goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use longrope::scaling::FactorSets;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files;
use crate::model::{AttentionKind, Origin, Place};
use crate::search_run::add_place;

/// How often the file is written.
const INTERVAL: Duration = Duration::from_secs(2);

/// Values by a hash of all that they depend on.
pub struct Record {
    path: Option<PathBuf>,
    /// The model, where it runs, and how.
    common: Sha256,
    entries: BTreeMap<String, Entry>,
    written: Instant,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    value: f64,
    seconds: f64,
    /// Of a passkey alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correct: Option<bool>,
}

impl Record {
    /// A record in memory alone.
    pub fn none() -> Self {
        Self { path: None, common: Sha256::new(), entries: BTreeMap::new(), written: Instant::now() }
    }

    /// The record at `path` of what `model` was measured to be; what an earlier run wrote there is taken up if `resumed`.
    ///
    /// # Errors
    /// The model or the file can't be read.
    pub fn open(
        path: PathBuf,
        model: &Origin,
        place: &Place,
        attention: AttentionKind,
        resumed: bool,
    ) -> Result<Self> {
        let mut common = Sha256::new();
        model.add_to(&mut common)?;
        add_place(&mut common, place);
        common.update(attention.to_string());
        let entries = match resumed && path.exists() {
            true => serde_json::from_str(&files::read_text(&path)?)
                .map_err(|error| anyhow!("{}: not a valid record: {error}", path.display()))?,
            false => BTreeMap::new(),
        };
        Ok(Self { path: Some(path), common, entries, written: Instant::now() })
    }

    /// The key of a measurement of these tokens under these sets.
    pub fn key(&self, tokens: &[u32], sets: &FactorSets, what: &str) -> String {
        let mut hash = self.common.clone();
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hash.update(format!("{sets:?} {what}"));
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The value of a key and the seconds that it took, measured now if it was not before.
    pub fn measured(&mut self, key: String, measure: impl FnOnce() -> Result<f64>) -> Result<(f64, f64)> {
        let entry = self.entry(key, || Ok((measure()?, None)))?;
        Ok((entry.value, entry.seconds))
    }

    /// As [`Record::measured`], of whether a passkey was retrieved, and its loss.
    pub fn recalled(
        &mut self,
        key: String,
        measure: impl FnOnce() -> Result<(f64, bool)>,
    ) -> Result<(f64, bool)> {
        let entry = self.entry(key, || measure().map(|(loss, correct)| (loss, Some(correct))))?;
        Ok((entry.value, entry.correct.unwrap_or(false)))
    }

    fn entry(&mut self, key: String, measure: impl FnOnce() -> Result<(f64, Option<bool>)>) -> Result<Entry> {
        if let Some(entry) = self.entries.get(&key) {
            return Ok(*entry);
        }
        let started = Instant::now();
        let (value, correct) = measure()?;
        let entry = Entry { value, seconds: started.elapsed().as_secs_f64(), correct };
        // JSON has no NaN and no infinities; such a value is measured again.
        if value.is_finite() {
            self.entries.insert(key, entry);
        }
        if self.written.elapsed() >= INTERVAL {
            self.save()?;
        }
        Ok(entry)
    }

    /// Writes the file.
    pub fn save(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            files::write_atomically(path, &serde_json::to_string(&self.entries)?)?;
        }
        self.written = Instant::now();
        Ok(())
    }
}

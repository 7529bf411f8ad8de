//! A hash of all that an evaluation depends on.

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::{Samples, Task};
use crate::model::{Origin, Place};
use crate::target::Purpose;

impl Task<'_> {
    /// A hash of all that an evaluation depends on: the model's files, the samples, the target, on a GPU the type.
    pub fn fingerprint(&self, model: &Origin) -> Result<String> {
        let mut hash = Sha256::new();
        model.add_to(&mut hash)?;
        match &self.samples {
            Samples::Text { windows, last } => {
                windows.iter().copied().flatten().for_each(|token| hash.update(token.to_le_bytes()));
                if let Some(last) = last {
                    hash.update(format!("the last {last}"));
                }
            }
            Samples::Passkeys(prompts) => {
                prompts
                    .iter()
                    .flat_map(|prompt| &prompt.tokens)
                    .for_each(|token| hash.update(token.to_le_bytes()));
                hash.update("passkeys");
            }
        }
        hash.update(self.target.length().to_le_bytes());
        if *self.target.purpose() != Purpose::Extend {
            hash.update(format!("{:?}", self.target.purpose()));
        }
        add_place(&mut hash, self.model.place());
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Adds a GPU's type: 16-bit weights give other values. The GPU's name does not matter.
pub(crate) fn add_place(hash: &mut Sha256, place: &Place) {
    if place.is_gpu() {
        hash.update(format!("{:?} on a GPU", place.dtype));
    }
}

//! Sequences of the training length, made of documents.

use std::fmt;
use std::ops::Range;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::head::Targets;

/// The flag `--packing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// Tokens see only those of their own document, whose positions start at 0
    Documents,
    /// One document after the other, as if all were one
    Stream,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Documents => "documents",
            Self::Stream => "stream",
        })
    }
}

/// A sequence of documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    tokens: Vec<u32>,
    /// Where each document starts, from 0, rising.
    starts: Vec<usize>,
}

impl Pack {
    /// A sequence of one document.
    pub fn one(tokens: Vec<u32>) -> Self {
        Self { tokens, starts: vec![0] }
    }

    /// Documents one after the other, those without a token left out.
    pub fn of(documents: &[&[u32]]) -> Self {
        let (mut tokens, mut starts) = (Vec::new(), Vec::new());
        for document in documents.iter().filter(|document| !document.is_empty()) {
            starts.push(tokens.len());
            tokens.extend_from_slice(document);
        }
        Self { tokens, starts }
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The rows of each document.
    pub fn documents(&self) -> Vec<Range<usize>> {
        let ends = self.starts.iter().skip(1).copied().chain([self.tokens.len()]);
        self.starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
    }

    /// What follows each token. The last of a document is followed by none.
    pub(super) fn targets(&self) -> Targets {
        let mut tokens = self.tokens.get(1..).unwrap_or_default().to_vec();
        tokens.push(0);
        let mut counted = vec![1.0; self.tokens.len()];
        for document in self.documents() {
            counted[document.end - 1] = 0.0;
        }
        Targets { tokens, counted }
    }
}

/// Sequences of one length over documents, epoch after epoch in another order. The sequence of a number is always the same, so
/// the number is all that a checkpoint keeps.
pub struct Windows<'a> {
    documents: &'a [Vec<u32>],
    length: usize,
    packing: Packing,
    seed: u64,
    /// Tokens of all documents.
    total: usize,
}

impl<'a> Windows<'a> {
    /// Sequences of `length` tokens.
    ///
    /// # Errors
    /// The documents are too short for one.
    pub fn new(documents: &'a [Vec<u32>], length: usize, packing: Packing, seed: u64) -> Result<Self> {
        ensure!(length >= 2, "--length: {length} is not valid; expected at least 2");
        let total = documents.iter().map(Vec::len).sum();
        ensure!(
            total >= length,
            "--length: {length} is not valid; expected at most {total}, the tokens of all texts"
        );
        Ok(Self { documents, length, packing, seed, total })
    }

    /// What the sequences are made of.
    pub fn documents(&self) -> &[Vec<u32>] {
        self.documents
    }

    /// How they are made.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// The seed of their order.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Sequences of an epoch.
    pub fn count(&self) -> usize {
        self.total / self.length
    }

    /// A sequence. In every epoch the documents follow each other in another order; what one cuts off the next goes on with,
    /// as a document of its own.
    pub fn get(&self, number: u64) -> Pack {
        let (epoch, index) = (number / self.count() as u64, (number % self.count() as u64) as usize);
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(epoch);
        let mut documents: Vec<&[u32]> = self.documents.iter().map(Vec::as_slice).collect();
        documents.shuffle(&mut random);
        let mut windows: Vec<usize> = (0..self.count()).collect();
        windows.shuffle(&mut random);
        // What is left over is before the first and after the last.
        let first = random.random_range(0..=self.total - self.count() * self.length);
        let wanted = first + windows[index] * self.length..first + (windows[index] + 1) * self.length;

        let mut start = 0;
        let pieces: Vec<&[u32]> = documents
            .into_iter()
            .map(|document| {
                let here = start;
                start += document.len();
                let within = |place: usize| place.clamp(here, start) - here;
                &document[within(wanted.start)..within(wanted.end)]
            })
            .collect();
        let pack = Pack::of(&pieces);
        match self.packing {
            Packing::Documents => pack,
            Packing::Stream => Pack::one(pack.tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Vec<Vec<u32>> {
        [(0, 30), (100, 7), (200, 1), (300, 55), (400, 11)]
            .into_iter()
            .map(|(first, length)| (first..first + length).collect())
            .collect()
    }

    #[test]
    fn a_document_ends_without_a_target() {
        let pack = Pack::of(&[&[1, 2, 3], &[], &[4], &[5, 6]]);
        assert_eq!(pack.documents(), [0..3, 3..4, 4..6]);
        let targets = pack.targets();
        assert_eq!(targets.tokens, [2, 3, 4, 5, 6, 0]);
        assert_eq!(targets.counted, [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn an_epoch_has_every_token_once_but_for_a_remainder() {
        let documents = documents();
        let windows = Windows::new(&documents, 10, Packing::Documents, 3).unwrap();
        assert_eq!(windows.count(), 10);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let packs: Vec<Pack> = (epoch * 10..epoch * 10 + 10).map(|number| windows.get(number)).collect();
            let mut tokens: Vec<u32> = packs.iter().flat_map(|pack| pack.tokens.clone()).collect();
            orders.push(tokens.clone());
            assert!(packs.iter().all(|pack| pack.tokens.len() == 10));
            tokens.sort_unstable();
            tokens.dedup();
            assert_eq!(tokens.len(), 100);
        }
        orders.dedup();
        assert_eq!(orders.len(), 3, "the epochs have the same order");
    }

    #[test]
    fn no_document_of_a_pack_is_made_of_two() {
        let documents = documents();
        let windows = Windows::new(&documents, 10, Packing::Documents, 3).unwrap();
        for number in 0..20 {
            let pack = windows.get(number);
            for rows in pack.documents() {
                let tokens = &pack.tokens[rows];
                assert!(tokens.windows(2).all(|pair| pair[1] == pair[0] + 1), "{tokens:?}");
            }
            assert_eq!(pack, windows.get(number));
        }
    }

    #[test]
    fn a_stream_is_one_document_of_the_same_tokens() {
        let documents = documents();
        let [packed, stream] = [Packing::Documents, Packing::Stream]
            .map(|packing| Windows::new(&documents, 25, packing, 5).unwrap());
        for number in 0..8 {
            let one = stream.get(number);
            assert_eq!((one.starts.as_slice(), &one.tokens), ([0].as_slice(), &packed.get(number).tokens));
        }
    }

    #[test]
    fn texts_that_are_too_short_are_named_with_both_lengths() {
        let message = |length| {
            Windows::new(&documents(), length, Packing::Stream, 0).err().map(|error| error.to_string())
        };
        let expected = "--length: 105 is not valid; expected at most 104, the tokens of all texts";
        assert_eq!(message(105).as_deref(), Some(expected));
        assert_eq!(message(1).as_deref(), Some("--length: 1 is not valid; expected at least 2"));
        assert_eq!(message(104), None);
    }
}

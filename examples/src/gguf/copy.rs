//! A GGUF file copied with other metadata and tensors; all else stays, byte for byte.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::types;
use super::{Entry, Header, MAGIC, TensorInfo};
use crate::{files, interrupt};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// What a copy has that its original has not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Metadata to set: in its place if it is there, else at the end.
    pub entries: Vec<Entry>,
    /// Names of metadata to leave out.
    pub removed_entries: Vec<String>,
    /// Tensors of one dimension to add at the end, instead of those of the same name.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// Names of tensors to leave out.
    pub removed_tensors: Vec<String>,
}

/// Writes the file of `header` with `changes` to `target`, which is replaced only once all is written. `progress` is told
/// how many bytes of how many are written.
///
/// # Errors
/// Tensors that lie beyond the end of the original, or whose type has no known size; a file that can't be read or written;
/// Ctrl-C. Nothing half written stays.
pub fn copy(
    header: &Header,
    source: &mut File,
    changes: &Changes,
    target: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    let plan = Plan::new(header, changes)?;
    files::replace(target, |file| {
        let mut out = BufWriter::with_capacity(CHUNK, file);
        plan.write(source, &mut out, &mut progress)?;
        Ok(out.flush()?)
    })
}

/// Where the data of a tensor comes from.
enum Data<'a> {
    /// These bytes of the original.
    Copied {
        start: u64,
        bytes: u64,
    },
    New(&'a [f32]),
}

/// The new file, laid out.
struct Plan<'a> {
    head: Vec<u8>,
    data: Vec<Data<'a>>,
    alignment: u64,
}

impl<'a> Plan<'a> {
    fn new(header: &Header, changes: &'a Changes) -> Result<Self> {
        let dropped = |info: &TensorInfo| {
            let added = changes.tensors.iter().map(|(name, _)| name);
            changes.removed_tensors.iter().chain(added).any(|name| *name == info.name)
        };
        let (mut infos, mut data) = (Vec::new(), Vec::new());
        let mut offset = 0u64;
        let mut place = |info: TensorInfo, bytes: u64| {
            infos.push(TensorInfo { offset, ..info });
            offset += bytes.next_multiple_of(header.alignment);
        };
        for info in header.tensors.iter().filter(|info| !dropped(info)) {
            let (start, bytes) = header.span(info)?;
            place(info.clone(), bytes);
            data.push(Data::Copied { start, bytes });
        }
        for (name, floats) in &changes.tensors {
            let dims = vec![floats.len() as u64];
            place(
                TensorInfo { name: name.clone(), dims, kind: types::F32, offset: 0 },
                4 * floats.len() as u64,
            );
            data.push(Data::New(floats));
        }
        let mut entries: Vec<Entry> = header
            .entries
            .iter()
            .filter(|entry| !changes.removed_entries.contains(&entry.key))
            .cloned()
            .collect();
        for changed in &changes.entries {
            match entries.iter_mut().find(|entry| entry.key == changed.key) {
                Some(entry) => *entry = changed.clone(),
                None => entries.push(changed.clone()),
            }
        }
        let head = head(header, &entries, &infos);
        Ok(Self { head, data, alignment: header.alignment })
    }

    fn write(
        &self,
        source: &mut File,
        out: &mut impl Write,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        let total =
            self.head.len() as u64 + self.data.iter().map(|data| self.padded(data.bytes())).sum::<u64>();
        out.write_all(&self.head)?;
        let mut done = self.head.len() as u64;
        let mut source = BufReader::with_capacity(CHUNK, source);
        let mut chunk = vec![0; CHUNK];
        for data in &self.data {
            match data {
                Data::New(floats) => {
                    floats.iter().try_for_each(|float| out.write_all(&float.to_le_bytes()))?;
                }
                Data::Copied { start, bytes } => {
                    source.seek(SeekFrom::Start(*start)).context("the original can't be read")?;
                    let mut left = *bytes;
                    while left > 0 {
                        interrupt::check()?;
                        let part = &mut chunk[..left.min(CHUNK as u64) as usize];
                        source.read_exact(part).context("the original can't be read")?;
                        out.write_all(part)?;
                        left -= part.len() as u64;
                        progress(done + bytes - left, total);
                    }
                }
            }
            let padding = self.padded(data.bytes()) - data.bytes();
            out.write_all(&vec![0; padding as usize])?;
            done += self.padded(data.bytes());
            progress(done, total);
        }
        if done != total {
            bail!("{done} bytes were written; expected {total}");
        }
        Ok(())
    }

    fn padded(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.alignment)
    }
}

impl Data<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Self::Copied { bytes, .. } => *bytes,
            Self::New(floats) => 4 * floats.len() as u64,
        }
    }
}

/// The bytes before the data.
fn head(header: &Header, entries: &[Entry], infos: &[TensorInfo]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut head = MAGIC.to_vec();
    head.extend(header.version.to_le_bytes());
    head.extend((infos.len() as u64).to_le_bytes());
    head.extend((entries.len() as u64).to_le_bytes());
    for entry in entries {
        head.extend(string(&entry.key));
        head.extend(entry.kind.to_le_bytes());
        head.extend(&entry.bytes);
    }
    for info in infos {
        head.extend(string(&info.name));
        head.extend((info.dims.len() as u32).to_le_bytes());
        info.dims.iter().for_each(|dim| head.extend(dim.to_le_bytes()));
        head.extend(info.kind.to_le_bytes());
        head.extend(info.offset.to_le_bytes());
    }
    head.resize((head.len() as u64).next_multiple_of(header.alignment) as usize, 0);
    head
}

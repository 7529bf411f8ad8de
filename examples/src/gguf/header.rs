//! The header of a GGUF file: metadata, whose bytes are kept as they are, and the list of tensors.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::MAGIC;
use super::types::{self, value};

/// Arrays of arrays are legal, but no writer makes them this deep.
const MAX_DEPTH: usize = 4;

/// The header of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// 2 or 3, which differ in nothing that is read here.
    pub version: u32,
    /// The metadata, in the order of the file.
    pub entries: Vec<Entry>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Every tensor begins at a multiple of this, in bytes after [`data_start`](Self::data_start).
    pub alignment: u64,
    /// Where the tensors' data begins, in bytes.
    pub data_start: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// A metadata entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name, as in `llama.context_length`.
    pub key: String,
    /// The number of its type.
    pub(super) kind: u32,
    /// Its value as it lies in the file.
    pub(super) bytes: Vec<u8>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Its name, as in `blk.0.attn_q.weight`.
    pub name: String,
    /// Its dimensions, the fastest first.
    pub dims: Vec<u64>,
    /// The number of its type.
    pub(super) kind: u32,
    /// Its first byte after the start of the data.
    pub(super) offset: u64,
}

impl Header {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// A file that can't be read, is no GGUF file, ends within its header, or has a version, type or count that no GGUF
    /// file has. Where tensors lie is not looked at.
    pub fn open(path: &Path) -> Result<(Self, File)> {
        let shown = || format!("{}", path.display());
        let file = File::open(path).with_context(|| format!("{}: can't be read", path.display()))?;
        let file_bytes = file.metadata().with_context(shown)?.len();
        let mut source = Source { reader: BufReader::new(file), at: 0, total: file_bytes };
        let header = Self::read(&mut source).with_context(shown)?;
        Ok((header, source.reader.into_inner()))
    }

    fn read(source: &mut Source) -> Result<Self> {
        ensure!(source.total >= 4 && source.take(4, "the magic")? == MAGIC, "not a GGUF file");
        let version = source.u32("the version")?;
        ensure!(matches!(version, 2 | 3), "GGUF version {version} is not supported; expected 2 or 3");
        let (tensor_count, entry_count) =
            (source.u64("the number of tensors")?, source.u64("the number of metadata entries")?);
        // The smallest entry has 13 bytes, the smallest tensor 25: larger counts can't be meant.
        for (what, count) in [("metadata entries", entry_count), ("tensors", tensor_count)] {
            ensure!(
                count <= source.total / 13,
                "{count} {what} is not valid; the file has only {} bytes; is it cut off?",
                source.total
            );
        }
        let entries = (0..entry_count).map(|_| Entry::read(source)).collect::<Result<Vec<_>>>()?;
        let tensors = (0..tensor_count).map(|_| TensorInfo::read(source)).collect::<Result<Vec<_>>>()?;
        let mut header =
            Self { version, entries, tensors, alignment: 32, data_start: 0, file_bytes: source.total };
        if let Some(alignment) = header.whole("general.alignment")? {
            ensure!(
                alignment.is_power_of_two() && alignment <= 1 << 20,
                "general.alignment: {alignment} is not valid; expected a power of two up to 2^20"
            );
            header.alignment = alignment;
        }
        header.data_start = source.at.next_multiple_of(header.alignment);
        Ok(header)
    }

    /// The metadata entry of this name.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A whole number from 0, if the entry is there.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let number = match entry.kind {
            value::U8 | value::U16 | value::U32 | value::U64 => Some(entry.unsigned()),
            value::I8 => i64::from(entry.unsigned() as i8).try_into().ok(),
            value::I16 => i64::from(entry.unsigned() as i16).try_into().ok(),
            value::I32 => i64::from(entry.unsigned() as i32).try_into().ok(),
            value::I64 => (entry.unsigned() as i64).try_into().ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| anyhow!("{key}: not a whole number from 0"))
    }

    /// A whole number from 0 that has to be there.
    pub fn required(&self, key: &str) -> Result<u64> {
        self.whole(key)?.ok_or_else(|| anyhow!("{key}: missing"))
    }

    /// A floating-point number, if the entry is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        match entry.kind {
            value::F32 => Ok(Some(f64::from(f32::from_bits(entry.unsigned() as u32)))),
            value::F64 => Ok(Some(f64::from_bits(entry.unsigned()))),
            _ => bail!("{key}: not a floating-point number"),
        }
    }

    /// A string, if the entry is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        // The first eight bytes are the length.
        match entry.kind {
            value::STRING => {
                std::str::from_utf8(&entry.bytes[8..]).map(Some).with_context(|| format!("{key}: not UTF-8"))
            }
            _ => bail!("{key}: not a string"),
        }
    }

    /// The model's architecture, which is the first part of the names of its metadata.
    pub fn architecture(&self) -> Result<&str> {
        self.text("general.architecture")?.ok_or_else(|| anyhow!("general.architecture: missing"))
    }

    /// The bytes of a tensor within the file: its first one and their number.
    ///
    /// # Errors
    /// A type whose size is not known, an offset that is not aligned, or data beyond the end of the file.
    pub fn span(&self, tensor: &TensorInfo) -> Result<(u64, u64)> {
        let bytes = tensor.bytes().with_context(|| tensor.name.clone())?;
        ensure!(
            tensor.offset.is_multiple_of(self.alignment),
            "{}: offset {} is not valid; expected a multiple of {}",
            tensor.name,
            tensor.offset,
            self.alignment
        );
        let start = self.data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= self.file_bytes);
        let (Some(start), Some(_)) = (start, end) else {
            bail!(
                "{}: its {bytes} bytes from {} on are beyond the end of the file, which has {} bytes; is it cut off?",
                tensor.name,
                self.data_start.saturating_add(tensor.offset),
                self.file_bytes
            );
        };
        Ok((start, bytes))
    }

    /// The values of a tensor of 32-bit floats with one dimension.
    ///
    /// # Errors
    /// A tensor that is missing, of another type or length, or beyond the end of the file.
    pub fn floats(&self, file: &mut File, name: &str, length: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name).ok_or_else(|| anyhow!("{name}: missing"))?;
        ensure!(
            tensor.dims == [length as u64],
            "{name}: shape {:?} is not valid; expected [{length}] by the configuration",
            tensor.dims
        );
        ensure!(tensor.kind == types::F32, "{name}: type {} is not supported; expected f32", tensor.kind);
        let (start, bytes) = self.span(tensor)?;
        let mut data = vec![0; bytes as usize];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut data))
            .with_context(|| name.to_owned())?;
        Ok(data.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
    }
}

impl Entry {
    /// A number of 32 bits.
    pub fn u32(key: &str, number: u32) -> Self {
        Self { key: key.to_owned(), kind: value::U32, bytes: number.to_le_bytes().to_vec() }
    }

    /// A floating-point number of 32 bits.
    pub fn f32(key: &str, number: f32) -> Self {
        Self { key: key.to_owned(), kind: value::F32, bytes: number.to_le_bytes().to_vec() }
    }

    /// A string.
    pub fn text(key: &str, text: &str) -> Self {
        let length = (text.len() as u64).to_le_bytes();
        Self { key: key.to_owned(), kind: value::STRING, bytes: [&length, text.as_bytes()].concat() }
    }

    fn read(source: &mut Source) -> Result<Self> {
        let key = source.string("the name of a metadata entry")?;
        let kind = source.u32(&key)?;
        let mut bytes = Vec::new();
        source.value(kind, &key, 0, &mut bytes)?;
        Ok(Self { key, kind, bytes })
    }

    /// The bits of a number of up to 64.
    fn unsigned(&self) -> u64 {
        let mut bits = [0; 8];
        let count = self.bytes.len().min(8);
        bits[..count].copy_from_slice(&self.bytes[..count]);
        u64::from_le_bytes(bits)
    }
}

impl TensorInfo {
    fn read(source: &mut Source) -> Result<Self> {
        let name = source.string("the name of a tensor")?;
        let count = source.u32(&name)?;
        ensure!((1..=4).contains(&count), "{name}: {count} dimensions is not valid; expected 1 to 4");
        let dims = (0..count).map(|_| source.u64(&name)).collect::<Result<_>>()?;
        let kind = source.u32(&name)?;
        let offset = source.u64(&name)?;
        Ok(Self { name, dims, kind, offset })
    }

    fn bytes(&self) -> Result<u64> {
        let (elements, bytes) = types::block(self.kind)?;
        let first = self.dims.first().copied().unwrap_or(0);
        ensure!(
            first.is_multiple_of(elements),
            "{first} elements a row is not valid; expected a multiple of {elements}, the block of type {}",
            self.kind
        );
        let rest =
            self.dims.iter().skip(1).try_fold(first / elements, |product, &dim| product.checked_mul(dim));
        let all = rest.and_then(|blocks| blocks.checked_mul(bytes));
        all.ok_or_else(|| anyhow!("shape {:?} is not valid; it has more bytes than any file", self.dims))
    }
}

/// A file that is read from its beginning.
struct Source {
    reader: BufReader<File>,
    at: u64,
    total: u64,
}

impl Source {
    /// The next bytes, which belong to `what`.
    fn take(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        ensure!(
            count <= self.total - self.at,
            "cut off: {what} needs {count} bytes from byte {} on, and the file has {}",
            self.at,
            self.total
        );
        let mut bytes = vec![0; count as usize];
        self.reader.read_exact(&mut bytes).with_context(|| what.to_owned())?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        bytes.try_into().map_err(|_| anyhow!("{what}: too few bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        String::from_utf8(self.take(length, what)?).map_err(|_| anyhow!("{what}: not UTF-8"))
    }

    /// Appends the bytes of a value of this type.
    fn value(&mut self, kind: u32, key: &str, depth: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if let Some(count) = value::bytes(kind) {
            bytes.extend(self.take(count, key)?);
            return Ok(());
        }
        match kind {
            value::STRING => {
                let length: [u8; 8] = self.array(key)?;
                bytes.extend(length);
                bytes.extend(self.take(u64::from_le_bytes(length), key)?);
            }
            value::ARRAY => {
                ensure!(depth < MAX_DEPTH, "{key}: lists nested deeper than {MAX_DEPTH} are not supported");
                let inner: [u8; 4] = self.array(key)?;
                let count: [u8; 8] = self.array(key)?;
                bytes.extend(inner.iter().chain(&count));
                let (inner, count) = (u32::from_le_bytes(inner), u64::from_le_bytes(count));
                match value::bytes(inner) {
                    Some(size) => bytes.extend(self.take(count.saturating_mul(size), key)?),
                    None => {
                        for _ in 0..count {
                            self.value(inner, key, depth + 1, bytes)?;
                        }
                    }
                }
            }
            other => bail!("{key}: type {other} is not one of GGUF's metadata types"),
        }
        Ok(())
    }
}

//! Reading and writing files, with the path in every error, and nothing half written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// Larger texts and configurations are refused rather than loaded.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Reads a UTF-8 file of at most 1 GiB.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).with_context(|| format!("{}: can't be read", path.display()))?.len();
    ensure!(
        bytes <= MAX_TEXT_BYTES,
        "{}: {bytes} bytes are too many; expected at most {MAX_TEXT_BYTES}",
        path.display()
    );
    let bytes = fs::read(path).with_context(|| format!("{}: can't be read", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{}: not UTF-8 text", path.display()))
}

/// Adds a file's bytes to a hash.
pub fn add_to(hash: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("{}: can't be read", path.display()))?;
    io::copy(&mut file, &mut HashWriter(hash))
        .with_context(|| format!("{}: can't be read", path.display()))?;
    Ok(())
}

/// Lets `io::copy` feed a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Replaces `path` by a file with `contents`, or leaves it as it was: the new file is written aside, flushed to disk,
/// and then renamed.
pub fn write_atomically(path: &Path, contents: &str) -> Result<()> {
    replace(path, |file| Ok(file.write_all(contents.as_bytes())?))
}

/// As [`write_atomically`], with what `write` writes. If it fails, nothing of it stays.
pub fn replace(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    let written: Result<()> = (|| {
        let mut file = File::create(aside)?;
        write(&mut file)?;
        file.sync_all()?;
        drop(file);
        Ok(fs::rename(aside, path)?)
    })();
    if written.is_err() {
        // What was written aside is useless, and may be what filled the disk.
        let _ = fs::remove_file(aside);
    }
    written.with_context(|| format!("{}: can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.json");
        write_atomically(&path, "old").unwrap();
        write_atomically(&path, "newer").unwrap();
        assert_eq!(read_text(&path).unwrap(), "newer");
        // A full disk, as far as the file written aside is concerned.
        #[cfg(target_os = "linux")]
        {
            std::os::unix::fs::symlink("/dev/full", dir.path().join("checkpoint.json.new")).unwrap();
            let message = format!("{:#}", write_atomically(&path, "newest").unwrap_err());
            assert!(message.contains("checkpoint.json: can't be written: No space left"), "{message}");
            assert_eq!(read_text(&path).unwrap(), "newer");
        }
    }

    #[test]
    fn files_that_are_missing_or_no_text_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.txt");
        assert!(format!("{:#}", read_text(&path).unwrap_err()).contains("text.txt: can't be read"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(format!("{:#}", read_text(&path).unwrap_err()).contains("text.txt: not UTF-8 text"));
    }
}

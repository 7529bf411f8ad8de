//! Images that travel in the package, for machines without a compiler: `images/NAME.fatbin`, and `images/SHA256`, the hash of what
//! they were made of. They are taken only where that is the hash of the sources that are here.
//!
//! `scripts/package-images` makes them. They have no line numbers, which are more than half of an image.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The folder, of the package's root.
pub const FOLDER: &str = "images";
const HASH: &str = "SHA256";

/// The image of each family, or why there are none.
pub fn find(root: &Path, families: &[&'static str]) -> Result<Vec<(&'static str, PathBuf)>, String> {
    let folder = root.join(FOLDER);
    let recorded = fs::read_to_string(folder.join(HASH)).map_err(|_| format!("{FOLDER}/ has no {HASH}"))?;
    let present = hash(root).map_err(|error| format!("cuda/ can't be read: {error}"))?;
    if recorded.trim() != present {
        return Err(format!(
            "{FOLDER}/ was made of other sources: its hash is {}, theirs {present}",
            recorded.trim()
        ));
    }
    let image = |family: &&'static str| {
        let path = folder.join(format!("{family}.fatbin"));
        match path.is_file() {
            true => Ok((*family, path)),
            false => Err(format!("{FOLDER}/ lacks {family}.fatbin")),
        }
    };
    families.iter().map(image).collect()
}

/// Copies images into the folder, with the hash of the sources.
pub fn write(root: &Path, images: &[(&str, PathBuf)]) -> io::Result<()> {
    let folder = root.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir(&folder)?;
    for (family, image) in images {
        fs::copy(image, folder.join(format!("{family}.fatbin")))?;
    }
    fs::write(folder.join(HASH), hash(root)? + "\n")
}

/// SHA-256 of the kernels' sources and of the compiler's flags: of each file its name, its length and what it holds, by name.
pub fn hash(root: &Path) -> io::Result<String> {
    let mut files = vec![PathBuf::from("build/nvcc.rs")];
    collect(root, Path::new("cuda"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let bytes = fs::read(root.join(&file))?;
        // With the same separator everywhere.
        let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
        hash.update(format!("{}\n{}\n", parts.join("/"), bytes.len()));
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds the files below a folder of the root.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

//! Images that travel in the package are those of the sources beside them, or none.

#[path = "../build/packaged.rs"]
mod packaged;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const FAMILIES: [&str; 2] = ["rotary", "decode"];

/// A package with two sources and a header, and images of them.
fn package() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("build/nvcc.rs", "flags");
    write("cuda/rotary.cu", "rotary");
    write("cuda/decode.cu", "decode");
    write("cuda/include/tile.cuh", "tile");
    let images = FAMILIES.map(|family| {
        write(&format!("out/{family}.fatbin"), &format!("image of {family}"));
        (family, dir.path().join(format!("out/{family}.fatbin")))
    });
    packaged::write(dir.path(), &images).unwrap();
    dir
}

fn found(root: &Path) -> Result<Vec<(&'static str, PathBuf)>, String> {
    packaged::find(root, &FAMILIES)
}

#[test]
fn images_of_the_present_sources_are_found() {
    let dir = package();
    let images = found(dir.path()).unwrap();
    assert_eq!(images.iter().map(|(family, _)| *family).collect::<Vec<_>>(), FAMILIES);
    for (family, path) in images {
        assert_eq!(fs::read_to_string(path).unwrap(), format!("image of {family}"));
    }
    // Writing them again leaves nothing of before.
    fs::write(dir.path().join("images/stale.fatbin"), "").unwrap();
    packaged::write(dir.path(), &[("rotary", dir.path().join("out/rotary.fatbin"))]).unwrap();
    assert!(!dir.path().join("images/stale.fatbin").exists());
    assert_eq!(found(dir.path()).unwrap_err(), "images/ lacks decode.fatbin");
}

#[test]
fn images_of_other_sources_are_refused() {
    let changes: [fn(&Path); 4] = [
        |root| fs::write(root.join("cuda/rotary.cu"), "changed").unwrap(),
        |root| fs::write(root.join("cuda/include/more.cuh"), "").unwrap(),
        |root| fs::write(root.join("build/nvcc.rs"), "other flags").unwrap(),
        |root| fs::rename(root.join("cuda/rotary.cu"), root.join("cuda/turned.cu")).unwrap(),
    ];
    for change in changes {
        let dir = package();
        let before = packaged::hash(dir.path()).unwrap();
        change(dir.path());
        let after = packaged::hash(dir.path()).unwrap();
        let message = found(dir.path()).unwrap_err();
        assert_eq!(
            message,
            format!("images/ was made of other sources: its hash is {before}, theirs {after}")
        );
    }
}

#[test]
fn a_package_without_images_says_so() {
    let dir = package();
    fs::remove_dir_all(dir.path().join("images")).unwrap();
    assert_eq!(found(dir.path()).unwrap_err(), "images/ has no SHA256");
}

#[test]
fn the_hash_is_of_names_lengths_and_contents() {
    // Made by: printf 'build/nvcc.rs\n5\nflagscuda/decode.cu\n6\ndecodecuda/include/tile.cuh\n4\ntilecuda/rotary.cu\n6\nrotary' | sha256sum
    let expected = "46248d0904dc8ea4dabd6cf43a82fb49b34bdff9467e5e4791ac990282d61a3d";
    assert_eq!(packaged::hash(package().path()).unwrap(), expected);
}

//! `scripts/install-library` itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::{LIBDIR, fail, installed, package, succeed};

/// The script, building in the profile and the folder of this test.
pub fn install() -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).and_then(Path::file_name).unwrap().to_str().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut command = Command::new(package().join("../scripts/install-library"));
    command.env("CARGO_TARGET_DIR", target).env("CARGO_NET_OFFLINE", "true").env_remove("DESTDIR");
    command.args(["--profile", if folder == "debug" { "dev" } else { folder }]);
    command
}

/// All files below a folder, by their paths from it.
fn below(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut rest = vec![folder.to_owned()];
    while let Some(next) = rest.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                rest.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn expected(libdir: &str) -> BTreeSet<String> {
    let libraries = [
        "liblongrope.a",
        "liblongrope.so",
        "liblongrope.so.0.1",
        "liblongrope.so.0.1.0",
        "pkgconfig/longrope.pc",
        "cmake/longrope/longrope-config.cmake",
        "cmake/longrope/longrope-config-version.cmake",
    ];
    let others =
        ["include/longrope.h", "share/doc/longrope/LICENSE-MIT", "share/doc/longrope/LICENSE-APACHE"];
    let libraries = libraries.iter().map(|name| format!("{libdir}/{name}"));
    libraries.chain(others.map(str::to_owned)).collect()
}

pub fn files() {
    let prefix = installed().prefix();
    assert_eq!(below(&prefix), expected(LIBDIR));
    for name in ["pkgconfig/longrope.pc", "cmake/longrope/longrope-config.cmake"] {
        let text = std::fs::read_to_string(installed().libraries().join(name)).unwrap();
        assert!(!text.contains("installed/deep") && !text.contains('@'), "{text}");
    }
    // Links name files beside them.
    for (link, file) in
        [("liblongrope.so", "liblongrope.so.0.1"), ("liblongrope.so.0.1", "liblongrope.so.0.1.0")]
    {
        let found = std::fs::read_link(installed().libraries().join(link)).unwrap();
        assert_eq!(found.to_str(), Some(file));
    }
}

pub fn destdir() {
    let root = tempfile::tempdir().unwrap();
    let said = succeed(install().env("DESTDIR", root.path()).args(["--prefix", "/usr", "--libdir", "lib/"]));
    assert_eq!(below(&root.path().join("usr")), expected("lib"));
    assert!(said.contains("installed longrope 0.1.0 into "), "{said}");
    // Again, over itself.
    succeed(install().env("DESTDIR", root.path()).args(["--prefix", "/usr", "--libdir", "lib/"]));
    assert_eq!(below(&root.path().join("usr")), expected("lib"));
}

pub fn wrong_arguments() {
    let elsewhere = tempfile::tempdir().unwrap();
    let prefix = elsewhere.path().join("prefix").to_str().unwrap().to_owned();
    let file = elsewhere.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (arguments, expected) in [
        (vec![], "--prefix: missing; expected the folder to install into"),
        (vec!["--prefix"], "--prefix: no value; expected one after it"),
        (vec!["--prefix", ""], "--prefix: no value; expected one after it"),
        (
            vec!["--prefix", &prefix, "--verbose"],
            "--verbose: no such option; there are --prefix, --libdir and",
        ),
        (
            vec!["--prefix", &prefix, "--libdir", "/lib"],
            "--libdir: /lib is not valid; expected a folder inside",
        ),
        (vec!["--prefix", &prefix, "--libdir", "../lib"], "--libdir: ../lib is not valid; expected a folder"),
        (vec!["--prefix", file.to_str().unwrap()], "can't be made"),
    ] {
        let message = fail(install().args(&arguments));
        assert!(
            message.contains(&format!("install-library: {expected}")) || message.contains(expected),
            "{message}"
        );
    }
    assert!(!Path::new(&prefix).exists(), "nothing was begun");
    let message = fail(install().args(["--prefix", &prefix, "--profile", "none"]));
    assert!(message.contains("install-library: the build failed"), "{message}");
}

//! The symbols of the library, and what it links.

use std::collections::BTreeSet;
use std::process::Command;

use crate::header;
use crate::library::{Language, built, package, stdout, succeed};

/// The committed list: what a release promises.
fn listed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(package().join("symbols.txt")).unwrap();
    let listed: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(listed.is_sorted(), "symbols.txt is sorted");
    listed.into_iter().collect()
}

#[test]
fn the_library_exports_the_listed_symbols_and_nothing_else() {
    let table = stdout(Command::new("nm").args(["-D", "--defined-only"]).arg(&built().shared));
    let exported: BTreeSet<String> =
        table.lines().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect();
    assert_eq!(exported, listed());
}

#[test]
fn the_archive_has_the_listed_symbols() {
    let table = succeed(Command::new("nm").args(["--defined-only", "--extern-only"]).arg(&built().archive));
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let ours = table.lines().filter_map(|line| line.split_whitespace().last());
    let ours: BTreeSet<String> =
        ours.filter(|name| name.starts_with("longrope_")).map(str::to_owned).collect();
    assert_eq!(ours, listed());
}

#[test]
fn the_header_declares_the_listed_symbols_and_no_others() {
    assert_eq!(header::functions(), listed());
}

#[test]
fn the_library_has_its_soname_and_links_no_cuda() {
    let dynamic = stdout(Command::new("readelf").arg("-d").arg(&built().shared));
    assert!(dynamic.contains("(SONAME)") && dynamic.contains("[liblongrope.so.0.1]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "its threads keep their code: {dynamic}");
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(!needed.is_empty(), "{dynamic}");
    for line in needed {
        let name = line.split_once('[').unwrap().1;
        let known = ["libc.", "libm.", "libgcc_s.", "libdl.", "libpthread.", "librt.", "ld-linux"];
        assert!(known.iter().any(|known| name.starts_with(known)), "{line}");
    }
}

#[test]
fn the_header_compiles_alone_and_twice_in_every_language() {
    for language in [Language::C99, Language::C11, Language::Cpp17] {
        let folder = tempfile::tempdir().unwrap();
        let extension = if language == Language::Cpp17 { "cpp" } else { "c" };
        let source = folder.path().join(format!("header.{extension}"));
        std::fs::write(
            &source,
            "#include \"longrope.h\"\n#include \"longrope.h\"\nint main(void) { return 0; }\n",
        )
        .unwrap();
        stdout(language.compiler().arg("-fsyntax-only").arg(source));
    }
}

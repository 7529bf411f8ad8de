//! The library as it is installed: moved to another folder, found by CMake and by pkg-config, and linked in both ways.
//!
//! Without CMake, or without pkg-config, the tests that need it show as ignored; `LONGROPE_REQUIRE_CMAKE=1` makes that an
//! error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use tempfile::TempDir;

#[path = "../c_abi/expected.rs"]
mod expected;
#[path = "../c_abi/reason.rs"]
mod reason;
mod script;

/// A folder with the library, which was installed elsewhere and then moved. `lib/` is named as Debian names it.
struct Installed {
    folder: TempDir,
}

const LIBDIR: &str = "lib/x86_64-linux-gnu";

impl Installed {
    fn prefix(&self) -> PathBuf {
        self.folder.path().join("moved here")
    }

    fn libraries(&self) -> PathBuf {
        self.prefix().join(LIBDIR)
    }
}

/// Installs once for all tests.
fn installed() -> &'static Installed {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("installed/deep/here");
        let mut command = script::install();
        command.arg("--prefix").arg(&first).args(["--libdir", LIBDIR]);
        succeed(&mut command);
        let installed = Installed { folder };
        std::fs::rename(first, installed.prefix()).unwrap();
        installed
    })
}

/// What a command that must succeed prints.
#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a command that must fail complains.
#[track_caller]
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(!output.status.success(), "{command:?} succeeded");
    // CMake breaks its lines.
    String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cmake(project: &Path, build: &Path) -> Command {
    let mut command = Command::new("cmake");
    command.arg("-S").arg(project).arg("-B").arg(build).arg("-Wno-dev");
    command.arg(format!("-DCMAKE_PREFIX_PATH={}", installed().prefix().display()));
    command.arg(format!("-DCMAKE_LIBRARY_ARCHITECTURE={}", "x86_64-linux-gnu"));
    command
}

/// Builds an example's own project, with the shared library and with the archive, and hands what it prints to `check`.
fn example(folder: &str, programs: &[&str], check: impl Fn(&str)) {
    for (shared, links) in [("ON", true), ("OFF", false)] {
        let build = tempfile::tempdir().unwrap();
        let project = package().join("examples").join(folder);
        succeed(cmake(&project, build.path()).arg(format!("-DBUILD_SHARED_LIBS={shared}")));
        succeed(Command::new("cmake").arg("--build").arg(build.path()));
        for program in programs {
            let program = build.path().join(program);
            let dynamic = succeed(Command::new("readelf").arg("-d").arg(&program));
            assert_eq!(dynamic.contains("[liblongrope.so.0.1]"), links, "{dynamic}");
            check(&succeed(&mut Command::new(program)));
        }
    }
}

fn rotary_example() {
    example("rotary", &["rotary", "rotary_cpp"], |text| {
        reason::check_gpu(&expected::check(text, expected::rotated()), 1e-6);
    });
}

fn attention_example() {
    example("attention", &["attention"], |text| {
        reason::check_gpu(&expected::check(text, expected::attended()), expected::BF16_ATTENTION);
    });
}

fn decode_example() {
    example("decode", &["decode"], |text| {
        reason::check_gpu(&expected::check(text, expected::decoded()), expected::BF16_DECODING);
    });
}

fn config_example() {
    example("config", &["config"], expected::check_config);
}

/// Configures a project of one line.
fn find(line: &str) -> (TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("cmake_minimum_required(VERSION 3.16)\nproject(test LANGUAGES C)\n{line}\n");
    std::fs::write(folder.path().join("CMakeLists.txt"), text).unwrap();
    let command = cmake(folder.path(), &folder.path().join("build"));
    (folder, command)
}

fn versions() {
    for good in
        ["", "0.1", "0.1.0", "0.1 EXACT", "0.1.0 EXACT COMPONENTS static", "0.1 COMPONENTS shared static"]
    {
        let (_folder, mut command) = find(&format!("find_package(longrope {good} REQUIRED)"));
        succeed(&mut command);
    }
    for bad in ["0.2", "0.0.9", "0.1.1", "1.0", "1"] {
        let (_folder, mut command) = find(&format!("find_package(longrope {bad} REQUIRED)"));
        let message = fail(&mut command);
        assert!(message.contains("longrope-config.cmake, version: 0.1.0"), "{message}");
    }
}

fn components() {
    let (_folder, mut command) = find("find_package(longrope REQUIRED COMPONENTS kernels)");
    let message = fail(&mut command);
    assert!(message.contains("longrope has no component kernels; there are shared and static"), "{message}");
    // What a program links follows the component, before BUILD_SHARED_LIBS.
    for (line, expected) in [
        ("find_package(longrope REQUIRED)", "longrope::shared"),
        ("set(BUILD_SHARED_LIBS OFF)\nfind_package(longrope REQUIRED)", "longrope::static"),
        ("set(BUILD_SHARED_LIBS ON)\nfind_package(longrope REQUIRED COMPONENTS static)", "longrope::static"),
        ("set(BUILD_SHARED_LIBS OFF)\nfind_package(longrope REQUIRED COMPONENTS shared)", "longrope::shared"),
        ("find_package(longrope)\nfind_package(longrope)", "longrope::shared"),
    ] {
        let ask = "get_target_property(found longrope::longrope INTERFACE_LINK_LIBRARIES)\nmessage(\"takes ${found}\")";
        let (_folder, mut command) = find(&format!("{line}\n{ask}"));
        let output = command.output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains(&format!("takes {expected}")), "{line}: {complaint}");
    }
}

fn pkg_config() {
    let libraries = installed().libraries();
    let flags = |arguments: &[&str]| -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.args(arguments).arg("longrope").env("PKG_CONFIG_PATH", libraries.join("pkgconfig"));
        let text = succeed(&mut command);
        // The folder has a space in its name, which pkg-config escapes.
        text.trim().replace("\\ ", "\0").split_whitespace().map(|word| word.replace('\0', " ")).collect()
    };
    assert_eq!(flags(&["--modversion"]), ["0.1.0"]);
    let source = package().join("examples/config/config.c");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let mut compile = Command::new("cc");
    compile.arg(&source).arg("-o").arg(&program).args(flags(&["--cflags", "--libs"]));
    succeed(&mut compile);
    expected::check_config(&succeed(Command::new(&program).env("LD_LIBRARY_PATH", &libraries)));
    // With the archive, whose needs are listed apart. A linker takes the shared library where it finds both.
    let link: Vec<String> = flags(&["--cflags", "--libs", "--static"])
        .into_iter()
        .map(|flag| if flag == "-llongrope" { "-l:liblongrope.a".to_owned() } else { flag })
        .collect();
    let mut compile = Command::new("cc");
    succeed(compile.arg(&source).arg("-o").arg(&program).args(link));
    expected::check_config(&succeed(&mut Command::new(&program)));
}

/// Whether a program that tests need is there.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    let required = std::env::var("LONGROPE_REQUIRE_CMAKE").is_ok_and(|value| value == "1");
    assert!(found || !required, "LONGROPE_REQUIRE_CMAKE=1, but {program} is not there");
    found
}

fn main() {
    let (has_cmake, has_pkg_config) = (has("cmake"), has("pkg-config"));
    let trial = |name: &str, is_able: bool, test: fn()| {
        let run = move || -> Result<(), Failed> {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(!is_able)
    };
    let trials = vec![
        trial("the_rotary_example_is_built_from_an_installed_library", has_cmake, rotary_example),
        trial("the_attention_example_is_built_from_an_installed_library", has_cmake, attention_example),
        trial("the_decode_example_is_built_from_an_installed_library", has_cmake, decode_example),
        trial("the_config_example_is_built_from_an_installed_library", has_cmake, config_example),
        trial("cmake_finds_the_versions_that_the_soname_promises", has_cmake, versions),
        trial("cmake_links_the_component_that_was_asked_for", has_cmake, components),
        trial("pkg_config_knows_what_both_forms_need", has_pkg_config, pkg_config),
        trial("what_is_installed_is_complete_and_holds_no_path", true, script::files),
        trial("wrong_arguments_of_the_script_are_named", true, script::wrong_arguments),
        trial("a_packager_may_install_below_another_root", true, script::destdir),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

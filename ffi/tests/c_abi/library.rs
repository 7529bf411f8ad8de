//! The library as cargo builds it, and C programs made with it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The files of the library.
pub struct Built {
    pub shared: PathBuf,
    pub archive: PathBuf,
}

/// The folder of this package.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the library in the profile and the folder of this test. A library for C is nothing that cargo builds for a test of
/// its own accord.
pub fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        // TARGET/PROFILE/deps/TEST
        let test = std::env::current_exe().unwrap();
        let folder = test.ancestors().nth(2).and_then(Path::file_name).unwrap().to_str().unwrap();
        let profile = if folder == "debug" { "dev" } else { folder };
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        let output = Command::new(cargo)
            // As scripts/install-library does, so that neither makes the other build anew.
            .args([
                "rustc",
                "--offline",
                "--message-format=json-render-diagnostics",
                "--package=longrope-ffi",
            ])
            .args(["--lib", "--profile", profile, "--target-dir"])
            .arg(target)
            .args(["--", "--print", "native-static-libs"])
            .current_dir(package())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let files: Vec<PathBuf> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|message| message["reason"] == "compiler-artifact")
            .filter(|message| message["manifest_path"] == package().join("Cargo.toml").to_str().unwrap())
            .flat_map(|message| message["filenames"].as_array().unwrap().clone())
            .map(|file| PathBuf::from(file.as_str().unwrap()))
            .collect();
        let of_type = |extension: &str| {
            let file = files.iter().find(|file| file.extension().is_some_and(|found| found == extension));
            file.unwrap_or_else(|| panic!("no .{extension} among {files:?}")).clone()
        };
        Built { shared: of_type(std::env::consts::DLL_EXTENSION), archive: of_type("a") }
    })
}

/// A language, as a compiler is asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    C99,
    C11,
    Cpp17,
}

impl Language {
    /// The compiler, with every warning an error.
    pub fn compiler(self) -> Command {
        let (variable, default, standard) = match self {
            Self::C99 => ("CC", "cc", "-std=c99"),
            Self::C11 => ("CC", "cc", "-std=c11"),
            Self::Cpp17 => ("CXX", "c++", "-std=c++17"),
        };
        let compiler = std::env::var_os(variable).unwrap_or_else(|| default.into());
        let mut command = Command::new(compiler);
        command.args([standard, "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"]);
        command.arg("-I").arg(package().join("include"));
        command
    }
}

/// How a program takes the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    Static,
}

/// Runs a command that must succeed.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// What a command that must succeed prints. It must not complain.
#[track_caller]
pub fn stdout(command: &mut Command) -> String {
    let output = succeed(command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A compiled program, in a folder with the library as it would be installed.
pub struct Program {
    folder: TempDir,
}

impl Program {
    /// Compiles a source of this package.
    #[track_caller]
    pub fn new(language: Language, source: &str, link: Link) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let built = built();
        let mut compiler = language.compiler();
        compiler.arg(package().join(source)).arg("-o").arg(folder.path().join("program"));
        match link {
            Link::Shared => {
                std::fs::copy(&built.shared, folder.path().join("liblongrope.so.0.1")).unwrap();
                std::os::unix::fs::symlink("liblongrope.so.0.1", folder.path().join("liblongrope.so"))
                    .unwrap();
                compiler.arg("-L").arg(folder.path()).arg("-llongrope");
            }
            Link::Static => {
                compiler.arg(&built.archive).arg("-lpthread");
            }
        }
        succeed(compiler.args(["-ldl", "-lm"]));
        Self { folder }
    }

    /// Runs it with the libraries of `drivers` before those of the machine.
    pub fn command(&self, drivers: Option<&Path>) -> Command {
        let mut command = Command::new(self.folder.path().join("program"));
        let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = [self.folder.path()].into_iter().chain(drivers).map(Path::to_path_buf);
        let folders =
            folders.chain(std::env::split_paths(&inherited).filter(|path| !path.as_os_str().is_empty()));
        let folders: OsString = std::env::join_paths(folders).unwrap();
        command.env("LD_LIBRARY_PATH", folders);
        command
    }
}

//! Programs in C on a driver that remembers what each thread launched, and which CUDA context is current to it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::library::{Language, built, package, stdout, succeed};

/// A compiled program, the library, and that driver, in one folder.
pub struct Recorded {
    folder: TempDir,
}

impl Recorded {
    /// Compiles sources of this folder.
    #[track_caller]
    pub fn new(sources: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tests = package().join("tests/c_abi");
        let at = |name: &str| folder.path().join(name);
        let mut driver = Language::C11.compiler();
        driver.args(["-shared", "-fPIC", "-I"]).arg(package().join("../cuda/include"));
        driver.args(["recording_driver.c", "recording_capture.c"].map(|source| tests.join(source)));
        driver.arg("-o").arg(at("libcuda.so.1")).arg("-lpthread");
        succeed(&mut driver);
        std::os::unix::fs::symlink("libcuda.so.1", at("libcuda.so")).unwrap();
        std::fs::copy(&built().shared, at("liblongrope.so.0.1")).unwrap();
        std::os::unix::fs::symlink("liblongrope.so.0.1", at("liblongrope.so")).unwrap();

        let mut compiler = Language::C99.compiler();
        compiler.args(sources.iter().map(|source| tests.join(source))).arg(tests.join("recording.c"));
        compiler.arg(kernel_parameters(folder.path()));
        compiler.arg("-o").arg(at("program")).arg("-L").arg(folder.path());
        succeed(compiler.args(["-llongrope", "-lpthread", "-ldl", "-lm"]));
        Self { folder }
    }

    /// Runs it; what it prints. It must end well and not complain.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.folder.path().join("program"));
        command.env("LD_LIBRARY_PATH", self.folder.path()).args(arguments);
        stdout(&mut command)
    }
}

/// What reads the kernels' parameters, compiled: their header has names that are the library's as well.
fn kernel_parameters(folder: &Path) -> std::path::PathBuf {
    let object = folder.join("launch_params.o");
    let mut compiler = Language::C11.compiler();
    compiler.arg("-c").arg(package().join("tests/c_abi/launch_params.c"));
    succeed(compiler.arg("-I").arg(package().join("../cuda/include")).arg("-o").arg(&object));
    object
}

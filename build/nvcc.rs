//! Finding and running the CUDA compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Machine code for Ampere and Hopper, and PTX that the driver compiles for what is newer, all of the same source.
const PORTABLE: &str = "arch=compute_80,code=[sm_80,sm_90,compute_80]";
/// For families that use what only Hopper has: nothing else runs them.
const HOPPER: &str = "arch=compute_90a,code=sm_90a";
/// As the portable one, but Hopper's machine code is of what the source has for it (`dependent_launch.cuh`).
const OVERLAPPING: [&str; 2] = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90,code=sm_90"];

/// The targets of a family, which go by its name.
fn targets(source: &Path) -> &'static [&'static str] {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    match name {
        name if name.contains("sm90") => &[HOPPER],
        name if name.starts_with("decode") || name == "cache" => &OVERLAPPING,
        _ => &[PORTABLE],
    }
}

/// The compiler, or where it was looked for. Panics if `NVCC` names none: who sets it does not want a build without.
pub fn find(root: &Path) -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC") {
        let nvcc = PathBuf::from(nvcc);
        assert!(nvcc.is_file(), "NVCC: {nvcc:?} is no file; expected the path of nvcc");
        return Ok(nvcc);
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let paths = env::var_os("PATH").unwrap_or_default();
    let folders = homes
        .map(|home| home.join("bin"))
        .chain(env::split_paths(&paths))
        .chain([PathBuf::from("/usr/local/cuda/bin"), root.join(".cuda/bin")]);
    let found = folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    found.ok_or_else(|| {
        "nvcc was not found by NVCC, CUDA_HOME, CUDA_PATH or PATH, nor in /usr/local/cuda or .cuda \
         (scripts/install-cuda puts it there)"
            .to_owned()
    })
}

/// Compiles a source to a fat binary, with line numbers or without, and returns the compiler's report.
pub fn compile(nvcc: &Path, source: &Path, image: &Path, line_info: bool) -> Result<String, String> {
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-std=c++17", "-O3", "--compress-mode=size", "-Xptxas=-v"]);
    command.args(line_info.then_some("-lineinfo"));
    for target in targets(source) {
        command.args(["-gencode", target]);
    }
    command.arg(source).arg("-o").arg(image);
    let output = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{} failed on {}:\n{report}", nvcc.display(), source.display()));
    }
    let report_file = image.with_extension("ptxas.txt");
    fs::write(&report_file, &report).map_err(|error| format!("{}: {error}", report_file.display()))?;
    Ok(report)
}

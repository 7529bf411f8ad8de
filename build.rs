//! Compiles each `cuda/*.cu` to a fat binary and has it embedded; builds without them where there is no compiler.
//!
//! In this order: images that `LONGROPE_IMAGE_DIR` names; nvcc from `NVCC`, `CUDA_HOME` or `CUDA_PATH`, `PATH`, the usual
//! folder, or `.cuda/` where `scripts/install-cuda` puts it; images that travel in the package, if they are of its sources; none.
//! Without images every launch returns a clear error. `LONGROPE_REQUIRE_CUDA=1` makes that an error of the build, and so is an
//! `NVCC` that names no file, where nvcc is looked for. The GPUs of the building machine are never looked at.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/packaged.rs"]
mod packaged;
#[path = "build/ptxas.rs"]
mod ptxas;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

/// The families of kernels: `cuda/NAME.cu` each.
const FAMILIES: [&str; 42] = [
    "rotary",
    "cache",
    "attention_sm80_d64",
    "attention_sm80_d96",
    "attention_sm80_d128",
    "attention_sm80_d256",
    "attention_sm90_d64",
    "attention_sm90_d128",
    "attention_sm90_d128_long",
    "attention_sm90_d256",
    "merge",
    "decode_d64",
    "decode_d96",
    "decode_d128",
    "decode_d256",
    "decode_rotating_d64",
    "decode_rotating_d96",
    "decode_rotating_d128",
    "decode_rotating_d256",
    "decode_sm90_d64",
    "decode_sm90_d96",
    "decode_sm90_d128",
    "decode_sm90_d256",
    "decode_rotating_sm90_d64",
    "decode_rotating_sm90_d96",
    "decode_rotating_sm90_d128",
    "decode_rotating_sm90_d256",
    "decode_merge",
    "attention_cached_d64",
    "attention_cached_d96",
    "attention_cached_d128",
    "attention_cached_d256",
    "split_merge",
    "attention_backward_sm80_d64",
    "attention_backward_sm80_d96",
    "attention_backward_sm80_d128",
    "attention_backward_sm80_d256",
    "attention_backward_sm90_d64",
    "attention_backward_sm90_d128",
    "attention_backward_sm90_fast_d64",
    "attention_backward_sm90_fast_d128",
    "attention_delta",
];

fn main() {
    for variable in [
        "LONGROPE_IMAGE_DIR",
        "LONGROPE_PACKAGE_IMAGES",
        "LONGROPE_REQUIRE_CUDA",
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rustc-check-cfg=cfg(no_device_code)");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    // Of what is not there cargo would say each time that it has changed.
    if root.join(packaged::FOLDER).exists() {
        println!("cargo::rerun-if-changed={}", packaged::FOLDER);
    }
    match images(&root, &out) {
        Ok(images) => write_table(&out, &images),
        Err(reason) => {
            let required = env::var("LONGROPE_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "LONGROPE_REQUIRE_CUDA=1, but {reason}");
            if env::var_os("DOCS_RS").is_none() {
                println!("cargo::warning=built without device code: {reason}; launches will return an error");
            }
            println!("cargo::rustc-cfg=no_device_code");
            write_table(&out, &[]);
        }
    }
}

/// The image of each family, or why there are none.
fn images(root: &Path, out: &Path) -> Result<Vec<(&'static str, PathBuf)>, String> {
    if let Some(folder) = env::var_os("LONGROPE_IMAGE_DIR") {
        let folder = PathBuf::from(folder);
        return FAMILIES
            .iter()
            .map(|family| {
                let image = folder.join(format!("{family}.fatbin"));
                println!("cargo::rerun-if-changed={}", image.display());
                match image.is_file() {
                    true => Ok((*family, image)),
                    false => panic!("LONGROPE_IMAGE_DIR: {} is not there", image.display()),
                }
            })
            .collect();
    }
    if env::var_os("DOCS_RS").is_some() || !root.join("cuda").is_dir() {
        return Err("device code is not built for documentation".to_owned());
    }
    let nvcc = match nvcc::find(root) {
        Ok(nvcc) => nvcc,
        Err(reason) => {
            return packaged::find(root, &FAMILIES).map_err(|packaged| format!("{reason}, and {packaged}"));
        }
    };
    // What scripts/package-images asks for.
    let packages = env::var("LONGROPE_PACKAGE_IMAGES").is_ok_and(|value| value == "1");
    // The assembler runs on one core, so the families are compiled side by side, as many as cargo says.
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize).max(1);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(FAMILIES.len()) {
            scope.spawn(|| {
                while let Some(family) = FAMILIES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let image = out.join(format!("{family}.fatbin"));
                    let report =
                        nvcc::compile(&nvcc, &root.join(format!("cuda/{family}.cu")), &image, !packages)
                            .unwrap_or_else(|error| panic!("{error}"));
                    let problems = ptxas::problems(&report);
                    assert!(problems.is_empty(), "cuda/{family}.cu:\n{}", problems.join("\n"));
                }
            });
        }
    });
    let images: Vec<_> =
        FAMILIES.iter().map(|family| (*family, out.join(format!("{family}.fatbin")))).collect();
    if packages {
        packaged::write(root, &images)
            .map_err(|error| format!("{}/ can't be written: {error}", packaged::FOLDER))?;
    }
    Ok(images)
}

/// Writes the table that `src/device/image.rs` includes.
fn write_table(out: &Path, images: &[(&str, PathBuf)]) {
    let mut table = "&[\n".to_owned();
    for (family, image) in images {
        let image = image.display().to_string();
        table += &format!("    ({family:?}, &Aligned(*include_bytes!({image:?})).0),\n");
    }
    table += "]\n";
    fs::write(out.join("images.rs"), table).expect("OUT_DIR can be written");
}

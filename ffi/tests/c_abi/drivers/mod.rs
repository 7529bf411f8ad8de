//! Machines of all kinds, by drivers that are not there, too old, broken, or made up.
//!
//! A program finds the driver by the dynamic loader, so a folder with another `libcuda.so.1` is another machine, whatever the
//! one at hand has.

mod attention;
mod cache;

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::abi::Status;
use crate::api::api;
use crate::library::{Language, Link, Program, package, stdout, succeed};

/// What a made-up driver is like.
#[derive(Debug, Clone, Copy)]
struct Driver {
    version: u32,
    capability: (u32, u32),
    has_current_context: bool,
    lacks_functions: bool,
}

/// A driver that will do.
const GOOD: Driver =
    Driver { version: 13_000, capability: (9, 0), has_current_context: true, lacks_functions: false };

/// A machine with this driver.
fn driver(driver: Driver) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(compiler);
    command.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]);
    let (major, minor) = driver.capability;
    let current = i32::from(driver.has_current_context);
    command.arg(format!("-DVERSION={}", driver.version)).arg(format!("-DCURRENT={current}"));
    command.args([format!("-DMAJOR={major}"), format!("-DMINOR={minor}")]);
    if driver.lacks_functions {
        command.arg("-DSILENT_AFTER_VERSION");
    }
    command.arg("-I").arg(package().join("../cuda/include"));
    command.arg(package().join("tests/c_abi/fake_driver.c"));
    succeed(command.arg("-o").arg(folder.path().join("libcuda.so.1")));
    std::os::unix::fs::symlink("libcuda.so.1", folder.path().join("libcuda.so")).unwrap();
    folder
}

/// A machine whose driver can't be loaded: under every name that is looked for there is a file that is no library.
fn no_driver() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let endings = ["", ".1", ".9", ".10", ".11", ".12", ".13"];
    for (stem, ending) in ["cuda", "nvcuda"].iter().flat_map(|stem| endings.map(|ending| (stem, ending))) {
        let name = format!("lib{stem}.so{ending}");
        std::fs::write(folder.path().join(name), "not a library, but long enough to be looked at as one")
            .unwrap();
    }
    folder
}

/// The number of a status, where the library has kernels; without them there is nothing to look for a driver for.
fn expected(status: Status, message: &str) -> (Status, String) {
    // SAFETY: no arguments.
    match unsafe { (api().has_device_code)() } {
        0 => (Status::NoDeviceCode, "this build has no device code".to_owned()),
        _ => (status, message.to_owned()),
    }
}

/// Runs the examples on a machine, which must say why it has no GPU.
#[track_caller]
fn explained(machine: &Path, status: Status, message: &str) {
    let (status, message) = expected(status, message);
    for (language, source) in [
        (Language::C99, "examples/rotary/rotary.c"),
        (Language::Cpp17, "examples/rotary/rotary.cpp"),
        (Language::C99, "examples/attention/attention.c"),
    ] {
        let program = Program::new(language, source, Link::Shared);
        let text = stdout(&mut program.command(Some(machine)));
        let gpu = text.lines().last().unwrap().strip_prefix("gpu: ").unwrap();
        assert!(gpu.starts_with(&message), "{gpu:?} does not start with {message:?}");
        assert!(gpu.ends_with(&format!("(status {})", status as i32)), "{gpu}");
    }
}

#[test]
fn without_a_driver_the_message_says_which_to_install() {
    explained(
        no_driver().path(),
        Status::NoDriver,
        "no NVIDIA driver: libcuda can't be loaded. Install a driver of",
    );
}

#[test]
fn an_old_driver_is_named_with_both_versions() {
    let machine = driver(Driver { version: 12_080, ..GOOD });
    let message = "the NVIDIA driver supports CUDA 12.8, and the device code needs CUDA 13.0: install a driver of version 580";
    explained(machine.path(), Status::OldDriver, message);
}

#[test]
fn an_old_gpu_is_named_with_both_capabilities() {
    let machine = driver(Driver { capability: (7, 5), ..GOOD });
    explained(
        machine.path(),
        Status::OldDevice,
        "device 0 has compute capability 7.5, and the kernels need 8.0",
    );
}

#[test]
fn a_panic_is_caught_and_not_printed() {
    // The binding of the driver panics where a function is missing. `explained` sees that nothing is printed.
    let machine = driver(Driver { lacks_functions: true, ..GOOD });
    explained(machine.path(), Status::Internal, "a fault of the library at ");
}

/// What a program that launches prints on a machine.
fn launch(source: &str, machine: &Path) -> String {
    let program = Program::new(Language::C99, source, Link::Shared);
    stdout(&mut program.command(Some(machine)))
}

#[test]
fn a_launch_is_one_call_of_the_driver_with_what_the_descriptor_says() {
    let source = "tests/c_abi/launch.c";
    let text = launch(source, driver(GOOD).path());
    // SAFETY: no arguments.
    if unsafe { (api().has_device_code)() } == 0 {
        assert!(text.contains("create: 4 this build has no device code"), "{text}");
        return;
    }
    // Without a current context there is none to load the code into.
    let without = launch(source, driver(Driver { has_current_context: false, ..GOOD }).path());
    assert_eq!(without, text.replace("driver: cuKernelGetFunction\n", ""));

    // 2^64 / 2 pi, its half, quarter and eighth.
    let steps = |first: &str| format!("28be60db9391054a 145f306dc9c882a5 {first}");
    let (quarter, key_strides) = ("0a2f9836e4e44153", "30 6 6 1");
    let sets = format!("steps {} gains 1 1.25 1.5 original 4096 first 4", steps(quarter));
    let from = format!("steps {} gains 1 1.25 3 original 4096 first 0", steps(quarter));
    let keys = |tensor: u32| {
        format!(
            "driver:   tensor {tensor}: 0x30000 to 0x30000, 1 heads\ndriver:   from {key_strides}\n\
             driver:   to {key_strides}"
        )
    };
    let shape = "batch 2 length 5 head_dim 6 pairs 2";
    let plain = |choice: u32| {
        format!(
            "driver: cuLaunchKernel longrope_rotary_b on stream (nil)\n{}\ndriver:   {shape} backward 0 parity 0\n\
             driver:   positions 0 (nil) -3 choices {choice} (nil) status (nil)\ndriver:   sets {sets}\nrun: 0",
            keys(0)
        )
    };
    let expected = format!(
        "sets: 0\n\
         from: 0\n\
         no such device: 7 device 1: no such GPU; this machine has 1\n\
         driver: cuLibraryLoadData an image\n\
         driver: cuKernelGetFunction\n\
         create: 0\n\
         driver: cuLaunchKernel longrope_rotary_b on stream 0x77\n\
         driver:   tensor 0: 0x10000 to 0x20000, 3 heads\n\
         driver:   from 90 18 6 1\n\
         driver:   to 90 6 30 1\n\
         {}\n\
         driver:   {shape} backward 1 parity 0\n\
         driver:   positions 4 0x1000 0 choices 3 0x2000 status 0x3000\n\
         driver:   sets {sets}\n\
         run: 0\n\
         {}\n\
         {}\n\
         driver: cuLaunchKernel longrope_rerotate on stream 0x78\n\
         {}\n\
         driver:   {shape} backward 0 parity 0\n\
         driver:   positions 0 (nil) -3 choices 1 (nil) status (nil)\n\
         driver:   sets {sets}\n\
         driver:   from {from}\n\
         driver:   shift -1000 from choices 2 0x4000\n\
         rerotate: 0\n\
         failing: 9 cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS (700)\n\
         empty: 0\n\
         driver: cuLibraryUnload the last image\n",
        keys(1),
        plain(0),
        plain(1),
        keys(0),
    );
    assert_eq!(text, expected);
}

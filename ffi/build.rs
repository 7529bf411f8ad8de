//! Gives the shared library its name for the dynamic linker.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        let [major, minor] = ["CARGO_PKG_VERSION_MAJOR", "CARGO_PKG_VERSION_MINOR"]
            .map(|name| env::var(name).expect("cargo says the version"));
        // What keeps the interface: before 1.0.0 the patch releases of a minor version, then every release of a major one.
        let series = if major == "0" { format!("0.{minor}") } else { major };
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblongrope.so.{series}");
        // The CPU form has threads of its own, which must not lose their code when a plugin is closed.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}

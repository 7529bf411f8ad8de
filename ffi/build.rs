//! Gives the shared library its name for the dynamic linker.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,liblongrope.so.0");
        // The CPU form has threads of its own, which must not lose their code when a plugin is closed.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}

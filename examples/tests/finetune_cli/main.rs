//! The program `finetune`, run as a user runs it, on the bundled model.

mod command;
mod default_run;
mod exports;
#[cfg(unix)]
mod interrupted;
mod wrong_input;

#[path = "../shared/paths.rs"]
mod paths;
#[path = "../tiny_gguf/mod.rs"]
mod tiny_gguf;

//! The program `search`, run as a user runs it, on the bundled model.

mod command;
mod default_run;
mod flags;
#[cfg(unix)]
mod interrupted;
mod output_errors;
mod purposes;
mod resume_errors;
mod table;
mod wrong_arguments;
mod wrong_models;

#[path = "../tiny_gguf/mod.rs"]
mod tiny_gguf;

//! The program `convert` and what it is made of: factors through every format, what is lost, and what is refused.

mod command;
mod gguf;
mod losses;
mod schedule;
mod wrong_input;

#[path = "../shared/paths.rs"]
mod paths;
#[path = "../tiny_gguf/mod.rs"]
mod tiny_gguf;

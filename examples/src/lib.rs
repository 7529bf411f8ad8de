//! What the drivers share: a Llama on candle, texts, perplexity, the search run, tables and plots.

pub mod arguments;
pub mod choices;
pub mod convergence;
pub mod convert;
pub mod corpus;
pub mod evaluation;
pub mod exit;
pub mod files;
pub mod gguf;
pub mod interrupt;
pub mod memory;
pub mod methods;
pub mod model;
pub mod passkey;
pub mod perplexity;
pub mod plot;
pub mod progress;
pub mod report;
pub mod search_run;
pub mod tabulate;
pub mod target;
pub mod text;
pub mod training;

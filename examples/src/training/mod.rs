//! Fine-tuning: a Llama with gradients that are made again block by block, so that a long sequence fits one device; AdamW, full
//! or LoRA; packed documents; checkpoints that a run resumes from bit for bit; export for transformers.

mod adamw;
mod block;
mod checkpoint;
mod curve;
mod documents;
mod export;
mod factors;
#[cfg(test)]
mod gradient_tests;
mod head;
mod learning_rate;
mod linear;
mod llama;
mod packing;
mod parameters;
mod pass;
mod report;
mod run;
#[cfg(test)]
mod run_tests;
mod safetensors;
mod settings;
mod utilisation;

pub use adamw::AdamW;
pub use checkpoint::{Checkpoints, Done, Record};
pub use curve::{curve_csv, curve_svg};
pub use documents::documents;
pub use export::{adapter, merged, read_adapter};
pub use factors::Factors;
pub use learning_rate::LearningRate;
pub use llama::{Lora, Method, TrainableLlama};
pub use packing::{Pack, Packing, Windows};
pub use parameters::{Gradients, Parameter};
pub use pass::{Loss, loss, loss_and_gradients};
pub use report::{Place, Report};
pub use run::{Recipe, Run};
pub use settings::{Settings, settings};
pub use utilisation::{flops, peak};

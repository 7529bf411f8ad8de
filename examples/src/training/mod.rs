//! Fine-tuning: a Llama with gradients that are made again block by block, so that a long sequence fits one device; AdamW, full
//! or LoRA; packed documents; checkpoints that a run resumes from bit for bit; export for transformers.

mod adamw;
mod block;
#[cfg(test)]
mod gradient_tests;
mod head;
mod learning_rate;
mod linear;
mod llama;
mod packing;
mod parameters;
mod pass;

pub use adamw::AdamW;
pub use learning_rate::LearningRate;
pub use llama::{Lora, Method, Projection, TrainableLlama};
pub use packing::{Pack, Packing, Windows};
pub use parameters::{Gradients, Parameter};
pub use pass::{Loss, loss, loss_and_gradients};

//! How it runs without a GPU: rotary embedding and attention in f32, blockwise and threaded.
//!
//! The operations take the same descriptors as the kernels and mean the same. They run on the current rayon thread
//! pool, need a few tiles of memory a thread, and give the same bits for the same inputs whatever the number of threads.
//!
//! ```
//! use longrope::cpu::{self, Tensor, TensorMut};
//! use longrope::descriptor::{Attention, Layout};
//!
//! // One sequence of 5 tokens, 4 query heads sharing 2 key heads, head dimension 8.
//! let (q, k) = (Layout::bshd(1, 5, 4, 8), Layout::bshd(1, 5, 2, 8));
//! let (queries, keys, values) = (vec![0.5; 160], vec![0.25; 80], vec![2.0; 80]);
//! let mut out = vec![0.0; 160];
//! cpu::attention(
//!     &Attention::causal(),
//!     Tensor::new(&queries, q),
//!     Tensor::new(&keys, k),
//!     Tensor::new(&values, k),
//!     TensorMut::new(&mut out, q),
//!     None,
//! )?;
//! assert!(out.iter().all(|x| (x - 2.0f32).abs() < 1e-6)); // equal values: any average of them
//! # Ok::<(), longrope::Error>(())
//! ```

mod attention;
mod attention_backward;
mod exponential;
mod rotary;
mod tensor;
mod tile;

pub use attention::attention;
pub use attention_backward::{AttentionGradients, attention_backward, attention_delta};
pub use rotary::{rotary, rotary_in_place};
pub use tensor::{Tensor, TensorMut};

//! Operations on streams and memory of the crate `cust`. Without a GPU they show as ignored; with `LONGROPE_REQUIRE_GPU=1` that
//! is a failure.

use std::sync::Arc;

use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use libtest_mimic::{Arguments, Failed, Trial};
use longrope::cpu::{self, Tensor, TensorMut};
use longrope::cust::{stream, tensor, tensor_mut};
use longrope::descriptor::{self, Choices, Direction, Layout, Pairing, Positions};
use longrope::device::{Context, Dtype};
use longrope::ops::{
    Attention, AttentionTensors, DeviceChoices, DevicePositions, Rotary, RotaryTensor, Workspace,
};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

/// What every test needs.
struct Gpu {
    context: Context,
    stream: Stream,
    // The last to be dropped.
    cuda: cust::context::Context,
}

// SAFETY: the tests run one at a time, on a thread that makes the context current first.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// A name, and what it does on a GPU.
type Test = (&'static str, fn(&Gpu));

/// Errors in their debugging form: the display of one of cust's asks the driver, and panics if that has no answer.
fn open() -> Result<Gpu, String> {
    let cuda = cust::quick_init().map_err(|error| format!("{error:?}"))?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).map_err(|error| format!("{error:?}"))?;
    let context = Context::new(0).map_err(|error| format!("{error:?}"))?;
    Ok(Gpu { context, stream, cuda })
}

/// Numbers from -1 to 1 that bf16 holds exactly.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| (i * step % 33) as f32 / 16.0 - 1.0).collect()
}

/// Elements of a contiguous tensor.
fn count(layout: &Layout) -> usize {
    layout.batch() * layout.length() * layout.heads() * layout.head_dim()
}

fn rotary(gpu: &Gpu) {
    let frequencies: Vec<f64> = (0..64).map(|i| 1e4f64.powf(-f64::from(i) / 64.0)).collect();
    let sets = FactorSets::uniform(FactorSet::exact(&frequencies, 1.25).unwrap());
    let layout = Layout::bshd(2, 33, 3, 128);
    let mut expected = numbers(count(&layout), 7);
    let mut memory = DeviceBuffer::from_slice(&[vec![9.0; 5], expected.clone()].concat()).unwrap();
    let (pairing, direction) = (Pairing::HalfSplit, Direction::Forward);
    let (positions, choices) = (Positions::Offset(1_000_000), Choices::All(SetChoice::Short));
    let exact = descriptor::Rotary { sets: &sets, pairing, direction, positions, choices };
    cpu::rotary_in_place(&exact, TensorMut::new(&mut expected, layout)).unwrap();
    let rotary = Rotary {
        sets: &sets,
        pairing,
        direction,
        positions: DevicePositions::Offset(1_000_000),
        choices: DeviceChoices::All(SetChoice::Short),
        status: None,
    };
    let on_device = RotaryTensor::in_place(tensor_mut(&mut memory, Dtype::F32, 5, layout).unwrap());
    // SAFETY: the tensor lies within the memory, by its check; nothing else uses it before the stream is done.
    unsafe { rotary.run(&gpu.context, &[on_device], stream(&gpu.stream)) }.unwrap();
    gpu.stream.synchronize().unwrap();
    let found = memory.as_host_vec().unwrap();
    assert_eq!(found[..5], [9.0; 5], "what lies before the tensor is left alone");
    for (found, expected) in found[5..].iter().zip(expected) {
        // Twice the bound of docs/numerics.md, as both are off: the gain, and the longest pair of numbers.
        assert!((found - expected).abs() <= 2.0 * 2.4e-7 * 1.25 * 2f32.sqrt(), "{found} is not {expected}");
    }
}

fn attention(gpu: &Gpu) {
    let (queries, keys) = (Layout::bshd(1, 70, 4, 64), Layout::bshd(1, 70, 2, 64));
    let (q, k, v) = (numbers(count(&queries), 5), numbers(count(&keys), 7), numbers(count(&keys), 11));
    let mut expected = vec![0.0; q.len()];
    let tensors = (Tensor::new(&q, queries), Tensor::new(&k, keys), Tensor::new(&v, keys));
    let out = TensorMut::new(&mut expected, queries);
    cpu::attention(&descriptor::Attention::causal(), tensors.0, tensors.1, tensors.2, out, None).unwrap();
    // The upper half of a number that bf16 holds.
    let bf16 = |x: &[f32]| {
        let bits: Vec<u16> = x.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        DeviceBuffer::from_slice(&bits).unwrap()
    };
    let (q, k, v) = (bf16(&q), bf16(&k), bf16(&v));
    let mut out = DeviceBuffer::from_slice(&vec![f32::NAN; expected.len()]).unwrap();
    let attention = Attention::new(descriptor::Attention::causal());
    let tensors = AttentionTensors {
        q: tensor(&q, Dtype::Bf16, 0, queries).unwrap(),
        k: tensor(&k, Dtype::Bf16, 0, keys).unwrap(),
        v: tensor(&v, Dtype::Bf16, 0, keys).unwrap(),
        out: tensor_mut(&mut out, Dtype::F32, 0, queries).unwrap(),
        lse: None,
    };
    let bytes = attention.workspace_size(&tensors).unwrap();
    let scratch = DeviceBuffer::from_slice(&vec![0xffu8; bytes.max(16)]).unwrap();
    let address = scratch.as_device_ptr().as_raw();
    let workspace = Workspace { address, bytes };
    // SAFETY: the tensors lie within their memory, by their checks; nothing else uses it before the stream is done.
    unsafe { attention.run(&gpu.context, &tensors, workspace, stream(&gpu.stream)) }.unwrap();
    gpu.stream.synchronize().unwrap();
    for (found, expected) in out.as_host_vec().unwrap().iter().zip(expected) {
        // Weights are rounded to bf16, and values are at most 1.
        assert!((found - expected).abs() <= 2f32.powi(-8), "{found} is not {expected}");
    }
    drop(scratch);
}

fn wrong_memory(_: &Gpu) {
    let mut memory = DeviceBuffer::from_slice(&[0u16; 64]).unwrap();
    let layout = Layout::bshd(1, 2, 4, 8);
    assert!(tensor(&memory, Dtype::F16, 0, layout).is_ok());
    let message = |found: Result<_, longrope::Error>| found.unwrap_err().to_string();
    let found = message(tensor(&memory, Dtype::F32, 0, layout));
    assert_eq!(found, "dtype: F32 in elements of 2 bytes is not valid; expected elements of 4 bytes");
    assert!(message(tensor(&memory, Dtype::F16, 1, layout)).starts_with("memory: "));
    let twice = Layout::strided([1, 2, 4, 8], [64, 0, 8, 1]);
    assert!(tensor(&memory, Dtype::F16, 0, twice).is_ok());
    assert!(message(tensor_mut(&mut memory, Dtype::F16, 0, twice)).starts_with("layout: "));
}

fn main() {
    let required = std::env::var("LONGROPE_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let (gpu, missing) = match open() {
        Ok(gpu) => (Some(Arc::new(gpu)), String::new()),
        Err(reason) => (None, reason),
    };
    let tests: [Test; 3] = [
        ("a_rotation_of_a_buffer_is_that_of_the_cpu", rotary),
        ("attention_over_buffers_is_that_of_the_cpu", attention),
        ("memory_that_does_not_fit_is_named", wrong_memory),
    ];
    let trials = tests.map(|(name, test)| {
        let (gpu, missing) = (gpu.clone(), missing.clone());
        let ignored = gpu.is_none() && !required;
        let run = move || {
            let gpu = gpu.ok_or(Failed::from(missing))?;
            cust::context::CurrentContext::set_current(&gpu.cuda).map_err(|error| format!("{error:?}"))?;
            test(&gpu);
            Ok(())
        };
        Trial::test(format!("linking::cust::{name}"), run).with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.into()).exit();
}

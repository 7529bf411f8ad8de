//! What the GPU benches share: the GPU, and how ours and a peer are timed on it.

mod measure;
#[allow(dead_code, reason = "not every family is compared with reading")]
pub mod read;

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags_enum, CUstreamCaptureMode_enum};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use longrope::device::{Context, DeviceError, Dtype, Stream};

pub use measure::{Case, Measurements, Peer, Unit};

/// A GPU with this crate's kernels, and a stream on it.
pub struct Gpu {
    pub cuda: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub kernels: Context,
}

/// Runs a family's bench: `cases` on device 0. On a machine without a GPU it says so on stderr, and that is all.
pub fn run(family: &'static str, cases: impl FnOnce(&Gpu, &mut Measurements<'_>)) {
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(reason) => return eprintln!("{family}: not measured: {reason}"),
    };
    let mut measurements = Measurements::new(family, &gpu);
    cases(&gpu, &mut measurements);
    measurements.finish();
}

impl Gpu {
    fn open() -> Result<Self, DeviceError> {
        // cudarc panics where there is no driver, so a first context tells whether there is one.
        drop(Context::new(0)?);
        let cuda = CudaContext::new(0).expect("the context of device 0");
        // As the tests do: the kernels of every GPU alone.
        let is_portable = std::env::var("LONGROPE_TEST_PORTABLE").is_ok_and(|value| value == "1");
        let kernels = if is_portable { Context::portable(0)? } else { Context::new(0)? };
        let stream = cuda.new_stream().expect("a stream");
        Ok(Self { cuda, stream, kernels })
    }

    pub fn raw_stream(&self) -> Stream {
        Stream::from_raw(self.stream.cu_stream().cast())
    }

    pub fn address<T>(&self, memory: &CudaSlice<T>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    pub fn zeros(&self, bytes: usize) -> CudaSlice<u8> {
        self.stream.alloc_zeros::<u8>(bytes).expect("device memory")
    }

    /// Elements spread evenly over -1 to 1: zeros would run faster. They repeat after some megabytes.
    pub fn random(&self, dtype: Dtype, elements: usize) -> CudaSlice<u8> {
        let block: Vec<u8> = (0..1u32 << 20)
            .flat_map(|i| {
                let x = i.wrapping_mul(2_654_435_761) as f32 / 2f32.powi(31) - 1.0;
                let bits = match dtype {
                    Dtype::F32 => x.to_bits(),
                    Dtype::F16 => u32::from(f16::from_f32(x).to_bits()),
                    Dtype::Bf16 => u32::from(bf16::from_f32(x).to_bits()),
                };
                bits.to_le_bytes().into_iter().take(dtype.size())
            })
            .collect();
        let mut memory = self.zeros(elements * dtype.size());
        let bytes = memory.len();
        for start in (0..bytes).step_by(block.len()) {
            let end = bytes.min(start + block.len());
            let part = &mut memory.slice_mut(start..end);
            self.stream.memcpy_htod(&block[..end - start], part).expect("a copy");
        }
        memory
    }

    /// A graph of what `work` launches on the stream.
    pub fn capture(&self, work: impl FnOnce()) -> CudaGraph {
        self.stream.synchronize().expect("an idle stream");
        let mode = CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).expect("a capture");
        work();
        let flags = CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        self.stream.end_capture(flags).expect("a graph").expect("a graph with nodes")
    }
}

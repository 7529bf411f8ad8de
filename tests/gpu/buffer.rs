//! Device memory for tests: buffers with guards around them, filled with poison.

use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use longrope::device::{Context, DeviceTensor, Dtype, Stream};
use longrope::reference::Format;

use crate::random;

/// A GPU with this crate's kernels.
pub struct Gpu {
    pub kernels: Context,
    pub cuda: Arc<CudaContext>,
    /// A stream that does not wait for the legacy default one, nor it for this.
    pub stream: Arc<CudaStream>,
    /// The kernels of every GPU alone, once they were asked for.
    portable: OnceLock<Context>,
}

impl Gpu {
    pub fn open() -> Result<Self, String> {
        // cudarc panics where there is no driver, so a first context tells whether there is one.
        drop(Context::new(0).map_err(|error| error.to_string())?);
        let cuda = CudaContext::new(0).map_err(|error| error.to_string())?;
        let load = if is_portable() { Context::portable } else { Context::new };
        let kernels = load(0).map_err(|error| error.to_string())?;
        let stream = cuda.new_stream().map_err(|error| error.to_string())?;
        Ok(Self { kernels, cuda, stream, portable: OnceLock::new() })
    }

    /// For what chooses its kernel by the GPU: all that there are to choose from.
    pub fn contexts(&self) -> Vec<&Context> {
        let mut contexts = vec![&self.kernels];
        if !runs_portable_kernels() {
            contexts.push(self.portable.get_or_init(|| Context::portable(0).unwrap()));
        }
        contexts
    }

    pub fn raw_stream(&self) -> Stream {
        raw(&self.stream)
    }

    pub fn upload<T: cudarc::driver::DeviceRepr>(&self, values: &[T]) -> CudaSlice<T> {
        // A slice of no elements has no address.
        assert!(!values.is_empty());
        self.stream.clone_htod(values).unwrap()
    }

    pub fn download<T: cudarc::driver::DeviceRepr>(&self, slice: &CudaSlice<T>) -> Vec<T> {
        self.stream.clone_dtoh(slice).unwrap()
    }

    pub fn address<T>(&self, slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(&self.stream).0
    }
}

/// Whether the tests are to run on the kernels of every GPU, rather than on those made for this one.
pub fn is_portable() -> bool {
    std::env::var("LONGROPE_TEST_PORTABLE").is_ok_and(|value| value == "1")
}

/// Whether all that runs are the kernels of every GPU: asked for, or because the driver takes PTX alone, which Hopper's have not.
pub fn runs_portable_kernels() -> bool {
    is_portable() || std::env::var("CUDA_FORCE_PTX_JIT").is_ok_and(|value| value == "1")
}

pub fn raw(stream: &CudaStream) -> Stream {
    Stream::from_raw(stream.cu_stream().cast())
}

/// The oracle's format of a type.
pub fn format(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::Bf16 => Format::Bf16,
    }
}

/// Elements of a type as bytes.
pub fn encode(dtype: Dtype, bits: u32, bytes: &mut [u8]) {
    bytes.copy_from_slice(&bits.to_le_bytes()[..dtype.size()]);
}

pub fn decode(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

/// Bytes before and after a buffer that must stay as they were. A multiple of 16 keeps the alignment.
const GUARD: usize = 64;
/// What memory holds that nobody wrote: as an element of any type, a NaN.
const POISON: u8 = 0xff;

/// A tensor on the GPU.
pub struct Buffer {
    bytes: CudaSlice<u8>,
    pub tensor: DeviceTensor,
    shape: [usize; 4],
    offset: usize,
}

impl Buffer {
    /// A tensor of `shape` in `order`, filled with `values` (bits, row-major) or poison. `shift` elements move it off its
    /// alignment.
    pub fn new(
        gpu: &Gpu,
        dtype: Dtype,
        order: random::Order,
        shape: [usize; 4],
        shift: usize,
        values: Option<&[u32]>,
    ) -> Self {
        let (layout, first, elements) = random::place(order, shape);
        let (size, offset) = (dtype.size(), first + shift);
        let mut host = vec![POISON; 2 * GUARD + (elements + shift) * size];
        for (i, at) in values.iter().flat_map(|values| values.iter()).zip(random::indices(shape)) {
            let index = GUARD + random::index(&layout, offset, at) * size;
            encode(dtype, *i, &mut host[index..index + size]);
        }
        let bytes = gpu.upload(&host);
        let address = gpu.address(&bytes) + (GUARD + offset * size) as u64;
        Self { bytes, tensor: DeviceTensor { address, dtype, layout }, shape, offset }
    }

    /// The tensor's elements as bits, row-major. Panics if anything else than the tensor was written.
    pub fn read(&self, gpu: &Gpu) -> Vec<u32> {
        let mut host = gpu.download(&self.bytes);
        let (layout, size) = (self.tensor.layout, self.tensor.dtype.size());
        let indices: Vec<usize> = random::indices(self.shape)
            .map(|at| GUARD + random::index(&layout, self.offset, at) * size)
            .collect();
        let values = indices.iter().map(|&index| decode(&host[index..index + size])).collect();
        for index in indices {
            host[index..index + size].fill(POISON);
        }
        assert!(host.iter().all(|byte| *byte == POISON), "memory outside the tensor was written");
        values
    }

    /// Whether every element still holds poison.
    pub fn is_untouched(&self, gpu: &Gpu) -> bool {
        gpu.download(&self.bytes).iter().all(|byte| *byte == POISON)
    }
}

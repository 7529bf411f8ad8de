//! A kernel that only reads: what the device's memory gives.

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use cudarc::driver::{CudaFunction, CudaSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::compile_ptx;

use super::Gpu;

/// Loads that a thread has under way, and sums, lest they be taken out; a store that hardly ever comes uses the sum.
const READ: &str = r#"
extern "C" __global__ void __launch_bounds__(256) read(const uint4 *data, unsigned long long count, unsigned *sink) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned sum = 0;
    for (unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; first < count;
         first += 8 * step) {
        uint4 loaded[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const unsigned long long at = first + i * step;
            loaded[i] = at < count ? data[at] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += loaded[i].x + loaded[i].y + loaded[i].z + loaded[i].w;
    }
    if (sum == 0x9e3779b9u) *sink = sum;
}
"#;
const READ_THREADS: u32 = 256;
/// Blocks a multiprocessor, some of them after others: those that come by faster memory then read more.
const READ_BLOCKS_EACH: u32 = 32;

/// The kernel, compiled by NVRTC, whose library has to be there beside the driver.
pub struct Reader {
    function: CudaFunction,
    blocks: u32,
    /// A word to write to. Its address is kept, since asking for it puts an event on the stream.
    _memory: CudaSlice<u32>,
    sink: u64,
}

impl Reader {
    pub fn new(gpu: &Gpu) -> Self {
        let module = gpu.cuda.load_module(compile_ptx(READ).expect("a kernel")).expect("a module");
        let multiprocessors = gpu.cuda.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).expect("a count");
        let memory = gpu.stream.alloc_zeros(1).expect("device memory");
        Self {
            function: module.load_function("read").expect("a kernel"),
            blocks: multiprocessors as u32 * READ_BLOCKS_EACH,
            sink: gpu.address(&memory),
            _memory: memory,
        }
    }

    /// Reads so many bytes from an address in memory that is large enough.
    pub fn read(&self, gpu: &Gpu, address: u64, bytes: usize) {
        let count = (bytes / 16) as u64;
        let (grid_dim, block_dim) = ((self.blocks, 1, 1), (READ_THREADS, 1, 1));
        let mut launch = gpu.stream.launch_builder(&self.function);
        launch.arg(&address).arg(&count).arg(&self.sink);
        // SAFETY: the arguments are those of the kernel, and the memory is as large as the caller says.
        unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }
            .expect("a launch");
    }
}

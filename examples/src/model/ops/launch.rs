//! Launches of `kernels.cu` on candle's stream: what all share, and those of operations without gradients.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, bail};
use half::{bf16, f16};

/// Threads of a block, as the kernels' shared memory expects.
pub(super) const THREADS: u32 = 256;

/// A tensor on a GPU.
pub(super) type Input<'a> = (&'a CudaStorage, &'a Layout);

/// The kernels as PTX.
///
/// # Errors
/// What the compiler says.
pub fn ptx() -> Result<&'static str> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compiled = PTX.get_or_init(|| {
        let options = CompileOptions { arch: Some("compute_80"), ..CompileOptions::default() };
        let compiled = compile_ptx_with_opts(include_str!("kernels.cu"), options);
        compiled.map(|ptx| ptx.to_src()).map_err(|error| format!("kernels.cu: {error}"))
    });
    compiled.as_deref().map_err(|error| Error::Msg(error.clone()))
}

/// A 16-bit type that the kernels know.
pub(super) trait Element: CudaDType + DeviceRepr + 'static {
    const NAME: &'static str;
}

impl Element for f16 {
    const NAME: &'static str = "f16";
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
}

/// The instance for a type and for rows of `width` elements, all of whose tensors start where `starts` says.
pub(super) fn kernel<T: Element>(
    device: &CudaDevice,
    name: &str,
    width: usize,
    starts: &[&Layout],
) -> Result<CudaFunction> {
    // candle's allocations are aligned to 256 bytes.
    let aligned = |elements: usize| elements.is_multiple_of(8);
    let lanes = match aligned(width) && starts.iter().all(|layout| aligned(layout.start_offset())) {
        true => 8,
        false => 1,
    };
    let name = format!("{name}_{}_{lanes}", T::NAME);
    Ok(device.get_or_load_custom_func(&name, "longrope-llama", ptx()?)?.into_cuda_function())
}

/// Counts as the kernels take them: a block a row, and widths in 32 bits.
pub(super) fn grid(op: &str, rows: usize, width: usize) -> Result<(u32, u32)> {
    match (i32::try_from(rows), i32::try_from(width)) {
        (Ok(rows), Ok(width)) => Ok((rows as u32, width as u32)),
        _ => bail!("{op}: {rows} rows of {width} are not valid; expected fewer than 2^31 of each"),
    }
}

pub(super) fn config(blocks: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

/// Memory that a kernel fills. CUDA has none of no bytes.
pub(super) fn allocate<T: DeviceRepr>(device: &CudaDevice, elements: usize) -> Result<CudaSlice<T>> {
    // SAFETY: whoever asks launches a kernel that writes every element, or has a tensor without any.
    unsafe { device.alloc::<T>(elements.max(1)) }
}

/// Calls a function with the type of a 16-bit storage.
macro_rules! by_type {
    ($op:literal, $storage:expr, $function:ident($($argument:expr),*)) => {
        match $storage.dtype() {
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            other => bail!(concat!($op, ": type {:?} is not valid on a GPU; expected BF16 or F16"), other),
        }
    };
}

pub(super) use by_type;

/// The elements of an input, from its first on.
pub(super) fn elements<'a, T: CudaDType>(input: &Input<'a>) -> Result<CudaView<'a, T>> {
    Ok(input.0.as_cuda_slice::<T>()?.slice(input.1.start_offset()..))
}

/// See [`super::gated_silu`].
pub fn gated_silu(storage: &CudaStorage, layout: &Layout, rows: usize, inner: usize) -> Result<CudaStorage> {
    by_type!("gated-silu", storage, gated_silu_of(storage, layout, rows, inner))
}

fn gated_silu_of<T: Element>(
    storage: &CudaStorage,
    layout: &Layout,
    rows: usize,
    inner: usize,
) -> Result<CudaStorage> {
    let device = storage.device();
    let out = allocate::<T>(device, rows * inner)?;
    let (blocks, width) = grid("gated-silu", rows, inner)?;
    if rows * inner > 0 {
        let packed = storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..);
        let kernel = kernel::<T>(device, "gated_silu", inner, &[layout])?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&packed).arg(&out).arg(&width);
        // SAFETY: the arguments are those of the kernel; the caller checked that the tensor is contiguous and has these sizes.
        unsafe { builder.launch(config(blocks)) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// See [`super::add_norm`]: the sum, then what is normed.
pub fn add_norm(inputs: [Input<'_>; 3], rows: usize, width: usize, epsilon: f32) -> Result<CudaStorage> {
    by_type!("add-norm", inputs[0].0, add_norm_of(inputs, rows, width, epsilon))
}

fn add_norm_of<T: Element>(
    [x, y, weight]: [Input<'_>; 3],
    rows: usize,
    width: usize,
    epsilon: f32,
) -> Result<CudaStorage> {
    let device = x.0.device();
    let out = allocate::<T>(device, 2 * rows * width)?;
    let (row_count, row_width) = grid("add-norm", rows, width)?;
    if rows * width > 0 {
        let kernel = kernel::<T>(device, "add_norm", width, &[x.1, y.1, weight.1])?;
        let (sum, normed) = (out.slice(..rows * width), out.slice(rows * width..));
        let x = x.0.as_cuda_slice::<T>()?.slice(x.1.start_offset()..);
        let y = y.0.as_cuda_slice::<T>()?.slice(y.1.start_offset()..);
        let weight = weight.0.as_cuda_slice::<T>()?.slice(weight.1.start_offset()..);
        let count = u64::from(row_count);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&x).arg(&y).arg(&weight).arg(&sum).arg(&normed).arg(&count).arg(&row_width).arg(&epsilon);
        // SAFETY: as above; `out` holds both results.
        unsafe { builder.launch(config(row_count.div_ceil(THREADS / 32))) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// See [`super::cross_entropy`].
pub fn cross_entropy(
    logits: Input<'_>,
    targets: Input<'_>,
    rows: usize,
    vocabulary: usize,
) -> Result<CudaStorage> {
    by_type!("cross-entropy", logits.0, cross_entropy_of(logits, targets, rows, vocabulary))
}

fn cross_entropy_of<T: Element>(
    logits: Input<'_>,
    targets: Input<'_>,
    rows: usize,
    vocabulary: usize,
) -> Result<CudaStorage> {
    let device = logits.0.device();
    let out = allocate::<f64>(device, rows)?;
    let (blocks, width) = grid("cross-entropy", rows, vocabulary)?;
    if rows > 0 {
        let kernel = kernel::<T>(device, "cross_entropy", vocabulary, &[logits.1])?;
        let logits = logits.0.as_cuda_slice::<T>()?.slice(logits.1.start_offset()..);
        let targets = targets.0.as_cuda_slice::<u32>()?.slice(targets.1.start_offset()..);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&logits).arg(&targets).arg(&out).arg(&width);
        // SAFETY: as above; each row has a target, and the kernel checks its value.
        unsafe { builder.launch(config(blocks)) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

//! The kernels on tensors in candle's CUDA storage, launched on candle's own stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, DeviceLocation, Layout as CandleLayout, Result};
use half::{bf16, f16};
use longrope::descriptor::Attention;
use longrope::device::{Context, DeviceTensor, Dtype, Stream};
use longrope::ops::{
    self, AttentionBackwardTensors, AttentionTensors, CacheChoices, CacheRotary, DeviceChoices,
    DevicePositions, RotaryTensor, Workspace,
};

use crate::cpu::wrong_dtype;
use crate::error;
use crate::layout::{contiguous, layout};
use crate::rotary::Rotary;

/// An input of an operation: its name in errors, and the tensor.
pub(crate) type Input<'a> = (&'static str, &'a CudaStorage, &'a CandleLayout);

/// The kernels for a device, loaded when they are first asked for and kept for the life of the program.
fn kernels(device: &CudaDevice) -> Result<Arc<Context>> {
    static LOADED: Mutex<Option<HashMap<usize, Arc<Context>>>> = Mutex::new(None);
    let DeviceLocation::Cuda { gpu_id } = device.location() else {
        candle_core::bail!("{:?} is no CUDA device", device.location())
    };
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(kernels) = loaded.get(&gpu_id) {
        return Ok(kernels.clone());
    }
    let kernels = Context::new(gpu_id as i32).map_err(|reason| error(reason.into()))?;
    Ok(loaded.entry(gpu_id).or_insert(Arc::new(kernels)).clone())
}

/// An element type that the kernels know.
trait Element: CudaDType + DeviceRepr + 'static {
    const DTYPE: Dtype;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

/// Rotates one tensor, or two in one launch; the results lie one after the other.
pub(crate) fn rotary(rotary: &Rotary, inputs: &[Input<'_>]) -> Result<CudaStorage> {
    let (name, storage, _) = inputs[0];
    match storage.dtype() {
        DType::F32 => rotate::<f32>(rotary, inputs),
        DType::F16 => rotate::<f16>(rotary, inputs),
        DType::BF16 => rotate::<bf16>(rotary, inputs),
        other => Err(wrong_dtype(name, other)),
    }
}

fn rotate<T: Element>(rotary: &Rotary, inputs: &[Input<'_>]) -> Result<CudaStorage> {
    let launch = Launch::new(inputs[0].1.device())?;
    let sizes: Vec<usize> = inputs.iter().map(|(_, _, layout)| layout.shape().elem_count()).collect();
    let out = launch.allocate::<T>(sizes.iter().sum())?;
    let (first, written) = out.device_ptr(&launch.stream);
    let (mut tensors, mut read, mut address) = (Vec::new(), Vec::new(), first);
    for ((name, storage, candle), size) in inputs.iter().zip(sizes) {
        let (input, guard) = launch.input::<T>(name, storage, candle)?;
        let output = DeviceTensor { address, dtype: T::DTYPE, layout: contiguous(input.layout.shape()) };
        tensors.push(RotaryTensor { input, output });
        read.push(guard);
        address += (size * size_of::<T>()) as u64;
    }
    let rotation = ops::Rotary {
        sets: &rotary.sets,
        pairing: rotary.pairing,
        direction: rotary.direction,
        positions: DevicePositions::Offset(rotary.offset),
        choices: DeviceChoices::All(rotary.choice),
        status: None,
    };
    // SAFETY: the inputs are candle's, checked to lie in their storages; the output was allocated for these shapes. Both live
    // in the context of the stream, and are freed on it, after this launch.
    unsafe { rotation.run(&launch.kernels, &tensors, launch.raw()) }.map_err(error)?;
    drop((read, written));
    Ok(CudaStorage::wrap_cuda_slice(out, launch.device.clone()))
}

/// A number for each row of queries, contiguous `[batch, length, heads]`.
pub(crate) type Rows = CudaSlice<f32>;

/// Attention of the first input over the second and third, and its log-sum-exp.
pub(crate) fn attention(attention: &Attention, inputs: [Input<'_>; 3]) -> Result<(CudaStorage, Rows)> {
    match inputs[0].1.dtype() {
        DType::F16 => attend::<f16>(attention, inputs),
        DType::BF16 => attend::<bf16>(attention, inputs),
        other => Err(not_for_a_gpu(inputs[0].0, other)),
    }
}

/// Gradients by q, k and v, one after the other, from these, the output, and its gradient. With `rotary`, those by q and k are of
/// what these were before it rotated them from the positions of `attention`.
pub(crate) fn attention_backward(
    attention: &Attention,
    rotary: Option<&Rotary>,
    lse: &Rows,
    inputs: [Input<'_>; 5],
) -> Result<CudaStorage> {
    match inputs[0].1.dtype() {
        DType::F16 => differentiate::<f16>(attention, rotary, lse, inputs),
        DType::BF16 => differentiate::<bf16>(attention, rotary, lse, inputs),
        other => Err(not_for_a_gpu(inputs[0].0, other)),
    }
}

fn not_for_a_gpu(name: &str, dtype: DType) -> candle_core::Error {
    error(longrope::Error::argument(name, format!("type {dtype:?} on a GPU"), "F16 or BF16"))
}

fn attend<T: Element>(attention: &Attention, inputs: [Input<'_>; 3]) -> Result<(CudaStorage, Rows)> {
    let launch = Launch::new(inputs[0].1.device())?;
    let out = launch.allocate::<T>(inputs[0].2.shape().elem_count())?;
    let (address, written) = out.device_ptr(&launch.stream);
    let [(q, q_read), (k, k_read), (v, v_read)] = {
        let [q, k, v] = inputs.map(|(name, storage, candle)| launch.input::<T>(name, storage, candle));
        [q?, k?, v?]
    };
    let out_tensor = DeviceTensor { address, dtype: T::DTYPE, layout: contiguous(q.layout.shape()) };
    let lse = launch.allocate::<f32>(out_tensor.layout.shape()[..3].iter().product())?;
    let (lse_tensor, lse_written) = launch.rows(&lse, &q);
    let tensors = AttentionTensors { q, k, v, out: out_tensor, lse: Some(lse_tensor) };
    let operation = ops::Attention::new(*attention);
    let bytes = operation.workspace_size(&tensors).map_err(error)?;
    launch.with_workspace(bytes, |workspace| {
        // SAFETY: as in `rotate`; the workspace is freed on the stream too, after this launch.
        unsafe { operation.run(&launch.kernels, &tensors, workspace, launch.raw()) }.map_err(error)
    })?;
    drop((q_read, k_read, v_read, written, lse_written));
    Ok((CudaStorage::wrap_cuda_slice(out, launch.device.clone()), lse))
}

fn differentiate<T: Element>(
    attention: &Attention,
    rotary: Option<&Rotary>,
    lse: &Rows,
    inputs: [Input<'_>; 5],
) -> Result<CudaStorage> {
    let launch = Launch::new(inputs[0].1.device())?;
    let sizes = [0, 1, 2].map(|i: usize| inputs[i].2.shape().elem_count());
    let gradients = launch.allocate::<T>(sizes.iter().sum())?;
    let (first, written) = gradients.device_ptr(&launch.stream);
    let [(q, q_read), (k, k_read), (v, v_read), (out, out_read), (d_out, d_out_read)] = {
        let [q, k, v, out, d_out] =
            inputs.map(|(name, storage, candle)| launch.input::<T>(name, storage, candle));
        [q?, k?, v?, out?, d_out?]
    };
    let (lse, lse_read) = launch.rows(lse, &q);
    let gradient = |of: &DeviceTensor, before: usize| DeviceTensor {
        address: first + (before * size_of::<T>()) as u64,
        dtype: T::DTYPE,
        layout: contiguous(of.layout.shape()),
    };
    let tensors = AttentionBackwardTensors {
        q,
        k,
        v,
        out: Some(out),
        lse,
        delta: None,
        d_out,
        dq: gradient(&q, 0),
        dk: gradient(&k, sizes[0]),
        dv: gradient(&v, sizes[0] + sizes[1]),
    };
    let rotary = rotary.map(|rotary| CacheRotary {
        sets: &rotary.sets,
        pairing: rotary.pairing,
        choices: CacheChoices::All(rotary.choice),
    });
    let operation = ops::AttentionBackward { rotary, ..ops::AttentionBackward::new(*attention) };
    let bytes = operation.workspace_size(&tensors).map_err(error)?;
    launch.with_workspace(bytes, |workspace| {
        // SAFETY: as in `rotate`.
        unsafe { operation.run(&launch.kernels, &tensors, workspace, launch.raw()) }.map_err(error)
    })?;
    drop((q_read, k_read, v_read, out_read, d_out_read, lse_read, written));
    Ok(CudaStorage::wrap_cuda_slice(gradients, launch.device.clone()))
}

/// What a launch on a device needs. The device's context is current from here on.
struct Launch {
    device: CudaDevice,
    stream: Arc<candle_core::cuda_backend::cudarc::driver::CudaStream>,
    kernels: Arc<Context>,
}

/// Tells candle, when dropped, that a buffer's use is on the stream.
type Guard<'a> = candle_core::cuda_backend::cudarc::driver::SyncOnDrop<'a>;

impl Launch {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        // candle's stream may be the per-thread one, which belongs to whatever context is current.
        stream.context().bind_to_thread().w()?;
        Ok(Self { device: device.clone(), kernels: kernels(device)?, stream })
    }

    fn raw(&self) -> Stream {
        Stream::from_raw(self.stream.cu_stream().cast::<c_void>())
    }

    /// Runs a launch with a workspace of so many bytes.
    fn with_workspace(&self, bytes: usize, run: impl FnOnce(Workspace) -> Result<()>) -> Result<()> {
        if bytes == 0 {
            return run(Workspace::NONE);
        }
        // SAFETY: what a workspace holds before a launch does not matter.
        let memory = unsafe { self.device.alloc::<u8>(bytes) }?;
        let (address, _used) = memory.device_ptr(&self.stream);
        run(Workspace { address, bytes })
    }

    /// Numbers of the rows of queries.
    fn rows<'a>(&'a self, rows: &'a Rows, q: &DeviceTensor) -> (DeviceTensor, Guard<'a>) {
        let [batch, length, heads, _] = q.layout.shape();
        let (address, guard) = rows.device_ptr(&self.stream);
        (DeviceTensor { address, dtype: Dtype::F32, layout: contiguous([batch, length, heads, 1]) }, guard)
    }

    /// Memory for that many elements, not initialised.
    fn allocate<T: Element>(&self, elements: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the kernels write every element of an output. CUDA has no memory of no bytes.
        unsafe { self.device.alloc::<T>(elements.max(1)) }
    }

    /// The tensor at its address. candle's own checks keep a layout within its storage.
    fn input<'a, T: Element>(
        &'a self,
        name: &str,
        storage: &'a CudaStorage,
        candle: &CandleLayout,
    ) -> Result<(DeviceTensor, Guard<'a>)> {
        let (start, guard) = storage.as_cuda_slice::<T>()?.device_ptr(&self.stream);
        let address = start + (candle.start_offset() * size_of::<T>()) as u64;
        Ok((DeviceTensor { address, dtype: T::DTYPE, layout: layout(name, candle)? }, guard))
    }
}

//! Launches of those operations of `kernels.cu` that have gradients, and of these.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, DType, Result, bail};
use half::{bf16, f16};

use super::launch::{Element, Input, THREADS, allocate, by_type, config, elements, grid, kernel};

/// Rows of a block of the gradient by a norm's weight, as in the kernel.
const WEIGHT_ROWS: usize = 64;

/// See [`super::silu_product`].
pub fn silu_product(inputs: [Input<'_>; 2], rows: usize, inner: usize) -> Result<CudaStorage> {
    by_type!("silu-product", inputs[0].0, silu_product_of(inputs, rows, inner))
}

fn silu_product_of<T: Element>([gate, up]: [Input<'_>; 2], rows: usize, inner: usize) -> Result<CudaStorage> {
    let device = gate.0.device();
    let out = allocate::<T>(device, rows * inner)?;
    let (blocks, width) = grid("silu-product", rows, inner)?;
    if rows * inner > 0 {
        let kernel = kernel::<T>(device, "silu_product", inner, &[gate.1, up.1])?;
        let (gate, up) = (elements::<T>(&gate)?, elements::<T>(&up)?);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&gate).arg(&up).arg(&out).arg(&width);
        // SAFETY: the arguments are those of the kernel; the caller checked that the tensors are contiguous and have these sizes.
        unsafe { builder.launch(config(blocks)) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Its gradients by gate, then by up, of these and of that of the product.
pub fn silu_product_gradient(inputs: [Input<'_>; 3], rows: usize, inner: usize) -> Result<CudaStorage> {
    by_type!("silu-product", inputs[0].0, silu_product_gradient_of(inputs, rows, inner))
}

fn silu_product_gradient_of<T: Element>(
    [gate, up, d_out]: [Input<'_>; 3],
    rows: usize,
    inner: usize,
) -> Result<CudaStorage> {
    let device = gate.0.device();
    let out = allocate::<T>(device, 2 * rows * inner)?;
    let (blocks, width) = grid("silu-product", rows, inner)?;
    if rows * inner > 0 {
        let kernel = kernel::<T>(device, "silu_product_gradient", inner, &[gate.1, up.1, d_out.1])?;
        let (gate, up, d_out) = (elements::<T>(&gate)?, elements::<T>(&up)?, elements::<T>(&d_out)?);
        let (by_gate, by_up) = (out.slice(..rows * inner), out.slice(rows * inner..));
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&gate).arg(&up).arg(&d_out).arg(&by_gate).arg(&by_up).arg(&width);
        // SAFETY: as above; `out` holds both results.
        unsafe { builder.launch(config(blocks)) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// See [`super::rms_norm`]; with a third input, the gradient of the result, that by x.
pub fn rms_norm(
    inputs: [Input<'_>; 2],
    d_out: Option<Input<'_>>,
    rows: usize,
    width: usize,
    epsilon: f32,
) -> Result<CudaStorage> {
    by_type!("rms-norm", inputs[0].0, rms_norm_of(inputs, d_out, rows, width, epsilon))
}

fn rms_norm_of<T: Element>(
    [x, weight]: [Input<'_>; 2],
    d_out: Option<Input<'_>>,
    rows: usize,
    width: usize,
    epsilon: f32,
) -> Result<CudaStorage> {
    let device = x.0.device();
    let out = allocate::<T>(device, rows * width)?;
    let (row_count, row_width) = grid("rms-norm", rows, width)?;
    if rows * width > 0 {
        let mut layouts = vec![x.1, weight.1];
        layouts.extend(d_out.map(|d_out| d_out.1));
        let name = if d_out.is_some() { "rms_norm_gradient" } else { "rms_norm" };
        let kernel = kernel::<T>(device, name, width, &layouts)?;
        let (x, weight) = (elements::<T>(&x)?, elements::<T>(&weight)?);
        let d_out = d_out.map(|d_out| elements::<T>(&d_out)).transpose()?;
        let count = u64::from(row_count);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&x).arg(&weight);
        if let Some(d_out) = &d_out {
            builder.arg(d_out);
        }
        builder.arg(&out).arg(&count).arg(&row_width).arg(&epsilon);
        // SAFETY: as above.
        unsafe { builder.launch(config(row_count.div_ceil(THREADS / 32))) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// The gradient by the weight, in parts `[parts, width]` in f32, and how many parts these are.
pub fn rms_norm_weight_gradient(
    inputs: [Input<'_>; 2],
    rows: usize,
    width: usize,
    epsilon: f32,
) -> Result<(CudaStorage, usize)> {
    by_type!("rms-norm", inputs[0].0, rms_norm_weight_gradient_of(inputs, rows, width, epsilon))
}

fn rms_norm_weight_gradient_of<T: Element>(
    [x, d_out]: [Input<'_>; 2],
    rows: usize,
    width: usize,
    epsilon: f32,
) -> Result<(CudaStorage, usize)> {
    let device = x.0.device();
    let parts = rows.div_ceil(WEIGHT_ROWS);
    let out = allocate::<f32>(device, parts * width)?;
    let (row_count, row_width) = grid("rms-norm", rows, width)?;
    if rows * width > 0 {
        let kernel = kernel::<T>(device, "rms_norm_weight_gradient", width, &[x.1, d_out.1])?;
        let (x, d_out) = (elements::<T>(&x)?, elements::<T>(&d_out)?);
        let count = u64::from(row_count);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&x).arg(&d_out).arg(&out).arg(&count).arg(&row_width).arg(&epsilon);
        // SAFETY: as above; every block writes a part.
        unsafe { builder.launch(config(parts as u32)) }.w()?;
    }
    Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), parts))
}

/// See [`super::cross_entropy_gradient`].
pub fn cross_entropy_gradient(inputs: [Input<'_>; 3], rows: usize, vocabulary: usize) -> Result<CudaStorage> {
    by_type!("cross-entropy", inputs[0].0, cross_entropy_gradient_of(inputs, rows, vocabulary))
}

fn cross_entropy_gradient_of<T: Element>(
    [logits, targets, counted]: [Input<'_>; 3],
    rows: usize,
    vocabulary: usize,
) -> Result<CudaStorage> {
    let device = logits.0.device();
    let out = allocate::<T>(device, rows * vocabulary)?;
    let (blocks, width) = grid("cross-entropy", rows, vocabulary)?;
    if rows > 0 {
        let kernel = kernel::<T>(device, "cross_entropy_gradient", vocabulary, &[logits.1])?;
        let (logits, targets, counted) =
            (elements::<T>(&logits)?, elements::<u32>(&targets)?, elements::<f32>(&counted)?);
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&kernel);
        builder.arg(&logits).arg(&targets).arg(&counted).arg(&out).arg(&width);
        // SAFETY: as above; each row has a target and a count.
        unsafe { builder.launch(config(blocks)) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

//! Where a model runs, and in which type.

use std::fmt;

use anyhow::{Result, anyhow, ensure};
use candle_core::{DType, Device};
use clap::ValueEnum;

/// The flag `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// The flag `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// 32 bits: on the CPU.
    F32,
    /// IEEE half precision: on a GPU.
    F16,
    /// The upper half of an f32: on a GPU.
    Bf16,
}

/// Where a model runs, and the type of its weights and activations.
#[derive(Debug, Clone)]
pub struct Place {
    /// candle's device.
    pub device: Device,
    /// f32 on the CPU; f16 or bf16 on a GPU.
    pub dtype: DType,
    /// The GPU's name, or why there is none.
    note: String,
}

impl Place {
    /// The CPU, in f32.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32, note: String::new() }
    }

    /// The place that flags ask for. Without any: the GPU in bf16 where this build can use one, else the CPU in f32.
    ///
    /// # Errors
    /// There is no GPU where one is asked for, or the type is not one for the device.
    pub fn choose(device: Option<DeviceKind>, dtype: Option<WeightType>) -> Result<Self> {
        let mut place = match device {
            Some(DeviceKind::Cpu) => Self::cpu(),
            Some(DeviceKind::Cuda) => cuda()?,
            None => cuda().unwrap_or_else(|reason| Self { note: format!("{reason:#}"), ..Self::cpu() }),
        };
        let (name, allowed): (_, &[WeightType]) = match place.is_gpu() {
            true => ("a GPU", &[WeightType::Bf16, WeightType::F16]),
            false => ("the CPU", &[WeightType::F32]),
        };
        if let Some(dtype) = dtype {
            ensure!(
                allowed.contains(&dtype),
                "--dtype: {dtype} is not valid on {name}; expected {}",
                allowed.iter().map(WeightType::to_string).collect::<Vec<_>>().join(" or ")
            );
            place.dtype = dtype.into();
        }
        Ok(place)
    }

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    /// Bytes that are free on the GPU, if it is one and tells.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Ok(device) = self.device.as_cuda_device() {
            let (free, _) = device.cuda_stream().context().mem_get_info().ok()?;
            return Some(free as u64);
        }
        None
    }

    /// A line on the most memory that was taken of the GPU since `before` was free, if it is one: candle's pool keeps what it took.
    pub fn memory_line(&self, before: Option<u64>) -> String {
        self.memory_taken(before).map_or_else(String::new, |bytes| {
            let gib = bytes as f64 / f64::from(1 << 30);
            format!("memory of the GPU, at most: {gib:.1} GiB\n")
        })
    }

    /// Bytes of it, of those that were free before.
    pub fn memory_taken(&self, before: Option<u64>) -> Option<u64> {
        before.zip(self.free_memory()).map(|(before, now)| before.saturating_sub(now))
    }

    /// Bytes of a weight.
    pub fn weight_bytes(&self) -> u64 {
        self.dtype.size_in_bytes() as u64
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        match (self.is_gpu(), self.note.as_str()) {
            (true, name) => write!(f, "on {name} in {dtype}"),
            (false, "") => write!(f, "on the CPU in {dtype}"),
            (false, reason) => write!(f, "on the CPU in {dtype} (no GPU: {reason})"),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl From<WeightType> for DType {
    fn from(dtype: WeightType) -> Self {
        match dtype {
            WeightType::F32 => Self::F32,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::BF16,
        }
    }
}

/// The first GPU, in bf16.
#[cfg(feature = "cuda")]
fn cuda() -> Result<Place> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    // Asks for all that can be missing, with a message for each; candle would panic where there is no driver.
    longrope::device::Context::new(0)?;
    let device = Device::new_cuda(0)?;
    let context = device.as_cuda_device()?.cuda_stream().context().clone();
    let name = context.name().map_err(|error| anyhow!("the GPU's name: {error}"))?;
    // Without this, memory that is free at a synchronisation goes back to the system, and each evaluation fetches it anew.
    // SAFETY: the device is the context's, and its default pool lives as long as it; the attribute is a u64.
    let kept = unsafe {
        result::device::get_default_mem_pool(context.cu_device()).and_then(|pool| {
            let mut bytes = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut bytes).cast()).result()
        })
    };
    kept.map_err(|error| anyhow!("the memory pool of {name}: {error}"))?;
    Ok(Place { device, dtype: DType::BF16, note: name })
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Place> {
    Err(anyhow!("built without the feature cuda"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_in_f32_and_says_so() {
        let place = Place::choose(Some(DeviceKind::Cpu), None).unwrap();
        assert_eq!((place.dtype, place.to_string().as_str()), (DType::F32, "on the CPU in f32"));
        let message = Place::choose(Some(DeviceKind::Cpu), Some(WeightType::Bf16)).unwrap_err().to_string();
        assert_eq!(message, "--dtype: bf16 is not valid on the CPU; expected f32");
        assert!(Place::choose(Some(DeviceKind::Cpu), Some(WeightType::F32)).is_ok());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_takes_the_cpu_unless_told_otherwise() {
        let place = Place::choose(None, None).unwrap();
        assert_eq!(place.to_string(), "on the CPU in f32 (no GPU: built without the feature cuda)");
        let message = Place::choose(Some(DeviceKind::Cuda), None).unwrap_err().to_string();
        assert_eq!(message, "built without the feature cuda");
    }
}

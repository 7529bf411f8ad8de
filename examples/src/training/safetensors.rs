//! Writing the safetensors format a tensor at a time: what is written need not fit memory twice.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use anyhow::{Result, bail};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use serde_json::{Map, Value, json};

/// Writes named tensors in the order given. `metadata` are strings that readers show or ask for.
pub fn write(out: impl Write, metadata: &BTreeMap<&str, String>, tensors: &[(String, Tensor)]) -> Result<()> {
    let (mut header, mut offset) = (Map::new(), 0);
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            other => bail!("{name}: type {other:?} is not valid; expected F32, BF16 or F16"),
        };
        let end = offset + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let entry = json!({ "dtype": dtype, "shape": tensor.dims(), "data_offsets": [offset, end] });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // So that the first tensor is aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in tensors {
        write_values(&mut out, tensor)?;
    }
    Ok(out.flush()?)
}

/// Writes the elements in row-major order, little-endian.
fn write_values(out: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, count) = (layout.start_offset(), tensor.elem_count());
    macro_rules! all {
        ($values:expr) => {
            for value in &$values[start..start + count] {
                out.write_all(&value.to_le_bytes())?;
            }
        };
    }
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => all!(values),
        Storage::Cpu(CpuStorage::BF16(values)) => all!(values),
        Storage::Cpu(CpuStorage::F16(values)) => all!(values),
        _ => bail!("type {:?} is not valid; expected F32, BF16 or F16", tensor.dtype()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::safetensors::load_buffer;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let x = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        let tensors = [
            // Not contiguous, and not from the start of its memory.
            ("z".to_owned(), x.t().unwrap().narrow(0, 1, 2).unwrap()),
            ("a".to_owned(), x.to_dtype(DType::BF16).unwrap()),
            ("m".to_owned(), x.get(1).unwrap().to_dtype(DType::F16).unwrap()),
        ];
        let mut bytes = Vec::new();
        write(&mut bytes, &BTreeMap::from([("format", "pt".to_owned())]), &tensors).unwrap();
        let found = load_buffer(&bytes, &Device::Cpu).unwrap();
        assert_eq!(found.len(), 3);
        for (name, tensor) in &tensors {
            assert_eq!((found[name].dims(), found[name].dtype()), (tensor.dims(), tensor.dtype()));
            let values = |x: &Tensor| -> Vec<f32> {
                x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            assert_eq!(values(&found[name]), values(tensor));
        }
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(r#""__metadata__":{"format":"pt"}"#), "{text}");
    }

    #[test]
    fn a_type_without_a_name_is_refused() {
        let x = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
        let message = write(Vec::new(), &BTreeMap::new(), &[("x".to_owned(), x)]).unwrap_err().to_string();
        assert_eq!(message, "x: type U32 is not valid; expected F32, BF16 or F16");
    }
}

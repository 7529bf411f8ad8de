//! Every way to be wrong about delta, which the gradients of an attention subtract: its status, and a message that names the argument.

use std::ptr::{null, null_mut};

use crate::abi::{Dtype, Status, Tensor};
use crate::api::{api, message, status};
use crate::attention_errors::tensor;

use Status::{InvalidArgument as Invalid, Unsupported};

fn answer(found: i32) -> (Status, String) {
    (status(found), if found == 0 { String::new() } else { message() })
}

/// The tensors of a delta that is right, and what it is asked.
fn ask_delta(change: impl FnOnce(&mut [Tensor; 3]), dtype: Dtype) -> [(Status, String); 2] {
    let rows = tensor([2, 5, 4, 16], dtype);
    let mut tensors = [rows, rows, tensor([2, 5, 4, 1], Dtype::F32)];
    change(&mut tensors);
    let [out, d_out, delta] = &tensors;
    // SAFETY: the tests give what is right on a GPU, or refused.
    unsafe {
        let supported = answer((api().attention_delta_supported)(out, d_out, delta));
        let cpu = match supported.0 {
            Status::Ok => (Status::Ok, String::new()),
            _ => answer((api().attention_delta_cpu)(out, d_out, delta)),
        };
        [supported, cpu]
    }
}

#[test]
fn what_is_wrong_with_delta_is_named() {
    assert_eq!(ask_delta(|_| {}, Dtype::F16)[0], (Status::Ok, String::new()));
    assert_eq!(ask_delta(|[out, ..]| out.dtype = 1, Dtype::F16)[0], (Status::Ok, String::new()));
    type Change = fn(&mut [Tensor; 3]);
    let wrong: [(Change, &str); 9] = [
        (
            |[out, ..]| out.shape[1] = 9,
            "out: shape [2, 9, 4, 16] is not valid; expected [2, 5, 4, 16], as d_out",
        ),
        (
            |[out, ..]| out.dtype = Dtype::Bf16 as i32,
            "out.dtype: Bf16 is not valid; expected F16, as d_out, or F32",
        ),
        (|[out, ..]| out.data = null_mut(), "out: a null address is not valid"),
        (|[_, d_out, _]| d_out.data = null_mut(), "d_out: a null address is not valid"),
        (|[_, d_out, _]| d_out.dtype = 0, "d_out.dtype: 0 is not valid; expected LONGROPE_DTYPE_"),
        (|[_, d_out, _]| d_out.shape[2] = -4, "d_out.shape[2]: -4 is not valid; expected 0 or more"),
        (
            |[.., delta]| delta.shape[3] = 16,
            "delta: shape [2, 5, 4, 16] is not valid; expected [2, 5, 4, 1], a number",
        ),
        (|[.., delta]| delta.dtype = Dtype::F16 as i32, "delta.dtype: F16 is not valid; expected F32"),
        (|[.., delta]| delta.stride = [20, 4, 0, 1], "delta: shape [2, 5, 4, 1] with strides [20, 4, 0, 1]"),
    ];
    for (change, start) in wrong {
        for (found, message) in ask_delta(change, Dtype::F16) {
            assert_eq!(found, Invalid, "{message}");
            assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
        }
    }
    let f32 = ask_delta(|[_, d_out, _]| d_out.shape[1] = 0, Dtype::F32);
    assert!(f32[0].1.starts_with("out: shape [2, 5, 4, 16] is not valid"), "{f32:?}");
    let too_many = ask_delta(|tensors| tensors.iter_mut().for_each(|t| t.shape[1] = 1 << 40), Dtype::F16);
    let [supported, cpu] = too_many;
    assert_eq!(supported.0, Unsupported);
    assert!(supported.1.ends_with("expected fewer than 2^34 rows"), "{}", supported.1);
    let expected = "d_out.dtype: F16 is not supported; expected F32, which is what the CPU form takes";
    assert_eq!(cpu, (Unsupported, expected.to_owned()));
    // NULL, and no context.
    let rows = tensor([2, 5, 4, 16], Dtype::F16);
    let delta = tensor([2, 5, 4, 1], Dtype::F32);
    let nothing = null();
    for (out, d_out, delta, name) in [
        (nothing, &raw const rows, &raw const delta, "out"),
        (&raw const rows, nothing, &raw const delta, "d_out"),
        (&raw const rows, &raw const rows, nothing, "delta"),
    ] {
        let expected = (Invalid, format!("{name}: NULL is not valid; expected a pointer to the tensor"));
        // SAFETY: pointers are null or right; nothing runs.
        unsafe {
            assert_eq!(answer((api().attention_delta_supported)(out, d_out, delta)), expected);
            assert_eq!(answer((api().attention_delta_cpu)(out, d_out, delta)), expected);
            let run = answer((api().attention_delta_run)(null(), out, d_out, delta, null_mut()));
            assert!(run.1.starts_with("context: NULL is not valid; expected a context made by"), "{}", run.1);
        }
    }
}

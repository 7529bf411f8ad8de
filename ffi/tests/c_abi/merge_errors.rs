//! Every way to be wrong about a merge: its status, and a message that names the argument as C does.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use crate::abi::{Dtype, MergeParts, Status, Tensor};
use crate::api::{self, NONE, api, message, status};

/// An address that is aligned for everything, and is never read.
const SOMEWHERE: *mut c_void = std::ptr::without_provenance_mut(0x1000);

struct Merge {
    parts: MergeParts,
    out: Tensor,
    lse: Tensor,
}

/// A merge that is right, of three parts.
fn right() -> Merge {
    let out = api::tensor(SOMEWHERE.cast(), [2, 5, 3, 8]);
    let lse = api::tensor(SOMEWHERE.cast(), [2, 5, 3, 1]);
    let parts = MergeParts { out, lse, count: 3, out_stride: 240, lse_stride: 30 };
    Merge { parts, out: Tensor { dtype: Dtype::Bf16 as i32, ..out }, lse }
}

fn answer(found: i32) -> (Status, String) {
    (status(found), if found == 0 { String::new() } else { message() })
}

fn ask(parts: *const MergeParts, out: *const Tensor, lse: *const Tensor) -> (Status, String) {
    let mut bytes = usize::MAX;
    // SAFETY: the tests give pointers that are null or right.
    let (supported, size) = unsafe {
        let supported = answer((api().merge_supported)(parts, out, lse));
        (supported, answer((api().merge_workspace_size)(parts, out, lse, &mut bytes)))
    };
    assert_eq!(supported, size);
    assert_eq!(bytes, if supported.0 == Status::Ok { 0 } else { usize::MAX });
    supported
}

#[track_caller]
fn changed(change: impl FnOnce(&mut Merge), expected: Status, start: &str) {
    let mut merge = right();
    assert_eq!(ask(&merge.parts, &merge.out, &merge.lse), (Status::Ok, String::new()));
    change(&mut merge);
    let (found, message) = ask(&merge.parts, &merge.out, &merge.lse);
    assert_eq!(found, expected, "{message}");
    assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
}

use Status::{InvalidArgument as Invalid, Unsupported};

type Field = fn(&mut Merge) -> &mut Tensor;

const FIELDS: [(&str, Field, usize); 4] = [
    ("parts.out", |merge| &mut merge.parts.out, 4),
    ("parts.lse", |merge| &mut merge.parts.lse, 4),
    ("out", |merge| &mut merge.out, 2),
    ("lse", |merge| &mut merge.lse, 4),
];

#[test]
fn null_pointers_are_named() {
    let Merge { parts, out, lse } = right();
    let null_parts = "parts: NULL is not valid; expected a pointer to the struct";
    assert_eq!(ask(null(), &out, &lse), (Invalid, null_parts.to_owned()));
    let null_out = "out: NULL is not valid; expected a pointer to the tensor";
    assert_eq!(ask(&parts, null(), &lse), (Invalid, null_out.to_owned()));
    // SAFETY: pointers are null or right; nothing runs without a context.
    unsafe {
        let bytes = answer((api().merge_workspace_size)(&parts, &out, &lse, null_mut()));
        assert_eq!(bytes, (Invalid, "bytes: NULL is not valid; expected where to put the size".to_owned()));
        let run = answer((api().merge_run)(null(), &parts, &out, &lse, null_mut()));
        assert!(run.1.starts_with("context: NULL is not valid; expected a context made by"), "{}", run.1);
    }
    // No log-sum-exp, said in both ways.
    assert_eq!(ask(&parts, &out, null()), (Status::Ok, String::new()));
    assert_eq!(ask(&parts, &out, &NONE), (Status::Ok, String::new()));
    for (name, field, size) in FIELDS {
        changed(
            |merge| field(merge).data = null_mut(),
            Invalid,
            &format!("{name}: a null address is not valid; expected the address of an element"),
        );
        changed(
            |merge| field(merge).data = SOMEWHERE.wrapping_byte_add(size / 2),
            Invalid,
            &format!("{name}: address {:#x} is not valid; expected a multiple of {size}", 0x1000 + size / 2),
        );
        changed(
            |merge| field(merge).dtype = 9,
            Invalid,
            &format!("{name}.dtype: 9 is not valid; expected LONGROPE_DTYPE_F32 (1) or"),
        );
    }
}

#[test]
fn what_does_not_fit_is_named() {
    changed(|merge| merge.parts.count = -1, Invalid, "parts.count: -1 is not valid; expected 0 or more");
    changed(
        |merge| merge.out.shape[1] = 6,
        Invalid,
        "parts.out: shape [2, 5, 3, 8] is not valid; expected [2, 6, 3, 8], by the shape of out",
    );
    for (name, field, _) in [FIELDS[1], FIELDS[3]] {
        changed(
            |merge| field(merge).shape[3] = 8,
            Invalid,
            &format!("{name}: shape [2, 5, 3, 8] is not valid; expected [2, 5, 3, 1], by the shape of out"),
        );
    }
    for (name, field, _) in [FIELDS[0], FIELDS[1], FIELDS[3]] {
        changed(
            |merge| field(merge).dtype = Dtype::F16 as i32,
            Invalid,
            &format!("{name}.dtype: F16 is not valid; expected F32"),
        );
    }
    changed(|merge| merge.out.shape[2] = -3, Invalid, "out.shape[2]: -3 is not valid; expected 0 or more");
    for (name, field, _) in [FIELDS[2], FIELDS[3]] {
        changed(
            |merge| field(merge).stride = [120, 0, 8, 1],
            Invalid,
            &format!("{name}: shape [2, 5, 3, {}] with strides", if name == "out" { 8 } else { 1 }),
        );
    }
    let heads = |merge: &mut Merge| {
        FIELDS.iter().for_each(|(_, field, _)| field(merge).shape[2] = (1 << 20) + 1);
    };
    changed(
        heads,
        Unsupported,
        "out: shape [2, 5, 1048577, 8] is not supported; expected at most 2^20 heads",
    );
    let rows = |merge: &mut Merge| {
        FIELDS.iter().for_each(|(_, field, _)| field(merge).shape[1] = 1 << 34);
    };
    changed(
        rows,
        Unsupported,
        "out: shape [2, 17179869184, 3, 8] is not supported; expected fewer than 2^34 rows",
    );
}

#[test]
fn without_parts_no_address_is_needed() {
    let Merge { mut parts, out, lse } = right();
    parts.count = 0;
    (parts.out.data, parts.lse.data) = (null_mut(), null_mut());
    assert_eq!(ask(&parts, &out, &lse), (Status::Ok, String::new()));
}

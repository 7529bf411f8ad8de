//! What can be asked of an attention beside: an earlier result to merge with, queries to rotate, a limit of multiprocessors.

use std::ffi::c_void;

use crate::abi::{AttentionDesc, AttentionTensors, CacheRotaryDesc, Choices, Dtype, Status, Tensor};
use crate::api::{self, NONE, Sets, api, frequencies};
use crate::attention_errors::{SOMEWHERE, ask, ask_cpu, ask_size, not_offered, refused, tensor, tensors};
use crate::recording::Recorded;

use Status::{InvalidArgument as Invalid, Unsupported};

/// An earlier result that is right for [`tensors`].
fn carry(desc: &mut AttentionDesc) {
    desc.carry_out = tensor([1, 5, 4, 16], Dtype::F32);
    desc.carry_lse = tensor([1, 5, 4, 1], Dtype::F32);
}

/// Factor sets of so many pairs.
pub fn sets(pairs: usize, angles: i32) -> Sets {
    let values: Vec<f64> = (0..pairs).map(|i| 1.0 / (1.0 + i as f64)).collect();
    let mut frequencies = frequencies(&values);
    frequencies.angles = angles;
    Sets::from_frequencies(&frequencies).unwrap()
}

pub fn rotary(sets: &Sets) -> CacheRotaryDesc {
    CacheRotaryDesc {
        struct_size: size_of::<CacheRotaryDesc>() as u32,
        pairing: 0,
        choice_kind: Choices::ByLength as i32,
        flags: 0,
        sets: sets.0,
        choice_length: 0,
        choices: std::ptr::null(),
    }
}

/// An attention that is right, with some of the options.
fn right(change: impl FnOnce(&mut AttentionDesc, &mut AttentionTensors)) {
    let (mut desc, mut tensors) = (api::attention(), tensors(Dtype::Bf16));
    change(&mut desc, &mut tensors);
    assert_eq!(ask(&desc, &tensors), (Status::Ok, String::new()));
    assert_eq!(ask_size(&desc, &tensors).0, (Status::Ok, String::new()));
}

#[test]
fn an_earlier_result_is_whole_and_fits() {
    right(|desc, _| carry(desc));
    // It may be what is written, which then is f32; and its strides are its own.
    right(|desc, tensors| {
        tensors.out.dtype = Dtype::F32 as i32;
        (desc.carry_out, desc.carry_lse) = (tensors.out, tensors.lse);
    });
    right(|desc, _| {
        carry(desc);
        desc.carry_out.stride = [320, 16, 80, 1];
        desc.carry_lse.stride = [20, 1, 5, 1];
    });
    let wrong = |change: &dyn Fn(&mut AttentionDesc), start: &str| {
        refused(
            |desc, _| {
                carry(desc);
                change(desc);
            },
            start,
        );
    };
    wrong(&|desc| desc.carry_lse = NONE, "desc.carry_lse: none is not valid; expected that of carry_out");
    wrong(&|desc| desc.carry_out = NONE, "desc.carry_out: none is not valid; expected that of carry_lse");
    for dim in 0..4 {
        let mut shape = [1, 5, 4, 16];
        shape[dim] = 9;
        wrong(
            &|desc| desc.carry_out.shape = shape,
            &format!("desc.carry_out: shape {shape:?} is not valid; expected [1, 5, 4, 16], as q"),
        );
        let mut shape = [1, 5, 4, 1];
        shape[dim] = 9;
        wrong(
            &|desc| desc.carry_lse.shape = shape,
            &format!(
                "desc.carry_lse: shape {shape:?} is not valid; expected [1, 5, 4, 1], a number for each row"
            ),
        );
    }
    wrong(
        &|desc| desc.carry_out.shape[1] = -5,
        "desc.carry_out.shape[1]: -5 is not valid; expected 0 or more",
    );
    wrong(
        &|desc| desc.carry_out.dtype = Dtype::F16 as i32,
        "desc.carry_out.dtype: F16 is not valid; expected TYPE",
    );
    wrong(
        &|desc| desc.carry_lse.dtype = Dtype::F16 as i32,
        "desc.carry_lse.dtype: F16 is not valid; expected TYPE",
    );
    wrong(&|desc| desc.carry_out.dtype = 4, "desc.carry_out.dtype: 4 is not valid; expected LONGROPE_DTYPE_");
    for (name, field) in [
        ("carry_out", (|desc| &mut desc.carry_out) as fn(&mut AttentionDesc) -> &mut Tensor),
        ("carry_lse", |desc| &mut desc.carry_lse),
    ] {
        wrong(
            &|desc| field(desc).data = std::ptr::null_mut(),
            &format!("desc.{name}: a null address is not valid; expected the address of an element"),
        );
        wrong(
            &|desc| field(desc).data = SOMEWHERE.wrapping_byte_add(2),
            &format!("desc.{name}: address 0x1002 is not valid; expected a multiple of 4"),
        );
    }
}

#[test]
fn the_rotation_of_queries_is_one_that_the_kernel_has() {
    let (eight, seven, three, too_many) = (sets(8, 0), sets(7, 0), sets(3, 0), sets(9, 0));
    let (parity, rounded) = (sets(8, 1), sets(8, 2));
    for (sets, pairing) in [(&eight, 0), (&eight, 1), (&rounded, 0)] {
        let rotary = CacheRotaryDesc { pairing, ..rotary(sets) };
        right(|desc, _| desc.query_rotary = &rotary);
    }
    let by_index =
        CacheRotaryDesc { choice_kind: Choices::ByIndex as i32, choices: SOMEWHERE, ..rotary(&eight) };
    right(|desc, _| desc.query_rotary = &by_index);
    for (sets, message) in [
        (&seven, "7 pairs is not supported; expected an even number of pairs"),
        (&three, "3 pairs is not supported; expected an even number of pairs"),
        (&parity, "angles in parity mode is not supported; expected exact angles"),
    ] {
        let rotary = rotary(sets);
        not_offered(|desc, _| desc.query_rotary = &rotary, &format!("desc.query_rotary.sets: {message}"));
    }
    let null = || std::ptr::null::<c_void>();
    let wrong = [
        (CacheRotaryDesc { sets: null().cast(), ..rotary(&eight) }, "sets: NULL is not valid; expected"),
        (rotary(&too_many), "sets: 9 pairs is not valid; expected 1 to 8, half of the head dimension"),
        (CacheRotaryDesc { struct_size: 39, ..rotary(&eight) }, "struct_size: 39 is not valid; expected"),
        (
            CacheRotaryDesc { pairing: 2, ..rotary(&eight) },
            "pairing: 2 is not valid; expected LONGROPE_PAIRING_",
        ),
        (CacheRotaryDesc { flags: 1, ..rotary(&eight) }, "flags: 1 is not valid; expected 0"),
        (
            CacheRotaryDesc { choice_kind: 5, ..rotary(&eight) },
            "choice_kind: 5 is not valid; expected LONGROPE_",
        ),
        (
            CacheRotaryDesc { choices: SOMEWHERE, ..rotary(&eight) },
            "choices: a value is not valid; expected zero",
        ),
        (CacheRotaryDesc { choices: null(), ..by_index }, "choices: a null address is not valid; expected"),
        (
            CacheRotaryDesc { choices: SOMEWHERE.wrapping_byte_add(2), ..by_index },
            "choices: address 0x1002 is not valid; expected a multiple of 4",
        ),
    ];
    for (rotary, message) in wrong {
        refused(|desc, _| desc.query_rotary = &rotary, &format!("desc.query_rotary.{message}"));
    }
}

#[test]
fn a_limit_of_multiprocessors_is_a_number_of_them() {
    for most in [1, 7, i32::MAX] {
        right(|desc, _| desc.max_multiprocessors = most);
    }
    for most in [-1, i32::MIN] {
        refused(
            |desc, _| desc.max_multiprocessors = most,
            &format!("desc.max_multiprocessors: {most} is not valid; expected 0 or more"),
        );
    }
    refused(|desc, _| desc.reserved = 1, "desc.reserved: a value is not valid; expected zero");
}

#[test]
fn what_one_kernel_alone_does_is_refused_for_tensors_that_it_does_not_take() {
    let eight = sets(8, 0);
    let rotary = rotary(&eight);
    type Change = fn(&mut AttentionDesc, &mut AttentionTensors);
    let not_taken: [Change; 3] = [
        |desc, _| desc.scale = -0.5,
        // Rows that are not at multiples of 16 bytes.
        |_, tensors| tensors.k.stride = [2 * 7 * 17, 17, 7 * 17, 1],
        |_, tensors| tensors.out.stride = [5 * 4 * 17, 4 * 17, 17, 1],
    ];
    let expected =
        "is not supported; expected none, since Hopper's kernel is not there or does not take these tensors";
    for change in not_taken {
        // Without the options they are taken, and an earlier result is merged with by any kernel.
        right(|desc, tensors| {
            change(desc, tensors);
            carry(desc);
        });
        not_offered(
            |desc, tensors| {
                change(desc, tensors);
                desc.max_multiprocessors = 7;
            },
            &format!("desc.max_multiprocessors: 7 {expected}"),
        );
        not_offered(
            |desc, tensors| {
                change(desc, tensors);
                desc.query_rotary = &rotary;
            },
            &format!("desc.query_rotary: a rotation {expected}"),
        );
    }
    // An earlier result that is not at multiples of 16 bytes has no place beside them either.
    not_offered(
        |desc, _| {
            carry(desc);
            desc.carry_out.stride = [5 * 4 * 17, 4 * 17, 17, 1];
            desc.max_multiprocessors = 7;
        },
        &format!("desc.max_multiprocessors: 7 {expected}"),
    );
}

#[test]
fn the_cpu_form_takes_no_earlier_result_and_rotates_no_query() {
    let eight = sets(8, 0);
    let rotary = rotary(&eight);
    let expected = "one is not supported; expected none, since the CPU form takes none";
    let mut desc = api::attention();
    carry(&mut desc);
    let carried = (Unsupported, format!("desc.carry_out: {expected}"));
    assert_eq!(ask_cpu(&desc, &tensors(Dtype::F32)), carried);
    let desc = AttentionDesc { query_rotary: &rotary, ..api::attention() };
    let rotated = (Unsupported, format!("desc.query_rotary: {expected}"));
    assert_eq!(ask_cpu(&desc, &tensors(Dtype::F32)), rotated);
    // What is wrong comes before what is not offered.
    let desc = AttentionDesc { window: -1, ..desc };
    assert_eq!(ask_cpu(&desc, &tensors(Dtype::F32)).0, Invalid);
}

#[test]
fn the_cpu_form_has_no_multiprocessors_to_leave() {
    let values: Vec<f32> = (0..8).map(|i| i as f32 / 8.0).collect();
    let results = [0, 3].map(|most| {
        let (mut q, mut out) = (values.clone(), [0.0f32; 8]);
        let row = api::tensor(q.as_mut_ptr(), [1, 2, 1, 4]);
        let out_tensor = api::tensor(out.as_mut_ptr(), [1, 2, 1, 4]);
        let tensors = AttentionTensors { q: row, k: row, v: row, out: out_tensor, lse: NONE };
        let desc = AttentionDesc { max_multiprocessors: most, ..api::attention() };
        // SAFETY: the tensors are these variables.
        assert_eq!(unsafe { (api().attention_cpu)(&desc, &tensors) }, 0);
        out
    });
    assert_eq!(results[0], results[1]);
    assert_ne!(results[0], [0.0; 8]);
}

#[test]
fn the_kernel_is_told_of_the_options() {
    let text = Recorded::new(&["attention_options.c"]).run(&[]);
    // SAFETY: no arguments.
    let end = if unsafe { (api().has_device_code)() } == 0 { "without kernels\n" } else { "done\n" };
    assert_eq!(text, end);
}

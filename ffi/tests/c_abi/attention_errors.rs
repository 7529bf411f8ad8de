//! Every way to be wrong about an attention: its status, and a message that names the argument as C does.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use crate::abi::{AttentionDesc, AttentionTensors, Dtype, Status, Tensor};
use crate::api::{self, NONE, api, message, status};

use Status::{InvalidArgument as Invalid, Unsupported};

/// An address that is aligned for everything, and is never read.
pub const SOMEWHERE: *mut c_void = std::ptr::without_provenance_mut(0x1000);

pub fn tensor(shape: [i64; 4], dtype: Dtype) -> Tensor {
    Tensor { dtype: dtype as i32, ..api::tensor(SOMEWHERE.cast(), shape) }
}

/// Tensors that are right: 4 query heads of 5 tokens over 2 key heads of 7.
pub fn tensors(dtype: Dtype) -> AttentionTensors {
    let (queries, keys) = (tensor([1, 5, 4, 16], dtype), tensor([1, 7, 2, 16], dtype));
    AttentionTensors { q: queries, k: keys, v: keys, out: queries, lse: tensor([1, 5, 4, 1], Dtype::F32) }
}

/// Sequences that are right.
fn packed(desc: &mut AttentionDesc) {
    desc.sequence_kind = 1;
    desc.sequences = 3;
    (desc.query_starts, desc.key_starts) = (SOMEWHERE, SOMEWHERE);
}

fn answer(found: i32) -> (Status, String) {
    (status(found), if found == 0 { String::new() } else { message() })
}

pub fn ask(desc: *const AttentionDesc, tensors: *const AttentionTensors) -> (Status, String) {
    // SAFETY: the tests give pointers that are null or right.
    answer(unsafe { (api().attention_supported)(desc, tensors) })
}

pub fn ask_size(desc: *const AttentionDesc, tensors: *const AttentionTensors) -> ((Status, String), usize) {
    let mut bytes = usize::MAX;
    // SAFETY: as above.
    (answer(unsafe { (api().attention_workspace_size)(desc, tensors, &mut bytes) }), bytes)
}

/// Only for what is refused: else it would read.
pub fn ask_cpu(desc: *const AttentionDesc, tensors: *const AttentionTensors) -> (Status, String) {
    // SAFETY: as above; nothing is read before the checks are through.
    answer(unsafe { (api().attention_cpu)(desc, tensors) })
}

/// An attention that is right but for one change: what is wrong with it is wrong on the GPU and on the CPU.
#[track_caller]
pub fn refused(change: impl Fn(&mut AttentionDesc, &mut AttentionTensors), start: &str) {
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let (mut desc, mut tensors) = (api::attention(), tensors(dtype));
        if dtype == Dtype::Bf16 {
            assert_eq!(ask(&desc, &tensors), (Status::Ok, String::new()));
        }
        change(&mut desc, &mut tensors);
        let (size, bytes) = ask_size(&desc, &tensors);
        assert_eq!(bytes, usize::MAX);
        for (found, message) in [ask(&desc, &tensors), size, ask_cpu(&desc, &tensors)] {
            assert_eq!(found, Invalid, "{message}");
            let message = message.replace("Bf16", "TYPE").replace("F32", "TYPE");
            assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
        }
    }
}

/// An attention for which there is no kernel.
#[track_caller]
pub fn not_offered(change: impl FnOnce(&mut AttentionDesc, &mut AttentionTensors), start: &str) {
    let (mut desc, mut tensors) = (api::attention(), tensors(Dtype::Bf16));
    change(&mut desc, &mut tensors);
    let (size, bytes) = ask_size(&desc, &tensors);
    assert_eq!(bytes, usize::MAX);
    for (found, message) in [ask(&desc, &tensors), size] {
        assert_eq!(found, Unsupported, "{message}");
        assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
    }
}

#[test]
fn null_pointers_are_named() {
    let (desc, right) = (api::attention(), tensors(Dtype::Bf16));
    let null_desc = (Invalid, "desc: NULL is not valid; expected a pointer to the struct".to_owned());
    let null_tensors = (Invalid, "tensors: NULL is not valid; expected a pointer to the struct".to_owned());
    assert_eq!(ask(null(), &right), null_desc);
    assert_eq!(ask(&desc, null()), null_tensors);
    assert_eq!(ask_size(null(), &right).0, null_desc);
    assert_eq!(ask_size(&desc, null()).0, null_tensors);
    assert_eq!(ask_cpu(null(), &right), null_desc);
    assert_eq!(ask_cpu(&desc, null()), null_tensors);
    // SAFETY: pointers are null or right; nothing runs without a context.
    unsafe {
        let bytes = answer((api().attention_workspace_size)(&desc, &right, null_mut()));
        assert_eq!(bytes, (Invalid, "bytes: NULL is not valid; expected where to put the size".to_owned()));
        let run = answer((api().attention_run)(null(), &desc, &right, null_mut(), 0, null_mut()));
        assert_eq!(run.0, Invalid);
        assert!(run.1.starts_with("context: NULL is not valid; expected a context made by"), "{}", run.1);
    }
    for (name, change) in FIELDS {
        refused(
            |_, tensors| change(tensors).data = null_mut(),
            &format!("tensors.{name}: a null address is not valid; expected the address of an element"),
        );
    }
}

type Field = fn(&mut AttentionTensors) -> &mut Tensor;

const FIELDS: [(&str, Field); 5] = [
    ("q", |tensors| &mut tensors.q),
    ("k", |tensors| &mut tensors.k),
    ("v", |tensors| &mut tensors.v),
    ("out", |tensors| &mut tensors.out),
    ("lse", |tensors| &mut tensors.lse),
];

#[test]
fn the_size_of_the_struct_is_checked() {
    // One that ends within a field is no sizeof.
    for size in [0, 4, 95, 97, 100, 108, 271] {
        let start =
            format!("desc.struct_size: {size} is not valid; expected the sizeof of the struct, at least 96");
        refused(|desc, _| desc.struct_size = size, &start);
    }
    // A longer one, of a later version, is read as far as it is known.
    #[repr(C)]
    struct Later {
        desc: AttentionDesc,
        unknown: [u64; 4],
    }
    let mut later = Later { desc: api::attention(), unknown: [u64::MAX; 4] };
    later.desc.struct_size = size_of::<Later>() as u32;
    assert_eq!(ask((&raw const later).cast(), &tensors(Dtype::F16)).0, Status::Ok);
    // The first one ended before the options; what a program has behind it is not looked at.
    let first = AttentionDesc {
        struct_size: 96,
        query_rotary: std::ptr::without_provenance(1),
        max_multiprocessors: -1,
        reserved: -1,
        carry_out: Tensor { dtype: -1, ..NONE },
        ..api::attention()
    };
    assert_eq!(ask(&first, &tensors(Dtype::F16)), (Status::Ok, String::new()));
}

#[test]
fn a_descriptor_out_of_range_is_named_by_its_field() {
    for causal in [-1, 2] {
        refused(
            |desc, _| desc.causal = causal,
            &format!("desc.causal: {causal} is not valid; expected 0 or 1"),
        );
    }
    refused(|desc, _| desc.flags = 1, "desc.flags: 1 is not valid; expected 0, since no flag is defined");
    refused(|desc, _| desc.scale = f32::NAN, "desc.scale: NaN is not valid; expected a finite number");
    refused(|desc, _| desc.scale = f32::INFINITY, "desc.scale: inf is not valid; expected a finite number");
    refused(|desc, _| desc.window = -1, "desc.window: -1 is not valid; expected 0 or more");
    refused(
        |desc, _| desc.query_offset = i64::MAX,
        "desc.query_offset: 9223372036854775807 is not valid; expected positions from -2^62 to 2^62",
    );
    refused(
        |desc, _| desc.key_offset = i64::MIN,
        "desc.key_offset: -9223372036854775808 is not valid; expected positions from -2^62 to 2^62",
    );
    refused(
        |desc, _| desc.sequence_kind = 2,
        "desc.sequence_kind: 2 is not valid; expected LONGROPE_SEQUENCES_DENSE (0) or LONGROPE_SEQUENCES_PACKED (1)",
    );
    refused(
        |desc, _| desc.query_offsets = SOMEWHERE.wrapping_byte_add(4).cast(),
        "desc.query_offsets: address 0x1004 is not valid; expected a multiple of 8",
    );
    refused(
        |desc, _| desc.status = SOMEWHERE.wrapping_byte_add(2).cast(),
        "desc.status: address 0x1002 is not valid; expected a multiple of 4",
    );
    // What is right in them.
    let right = AttentionDesc {
        causal: 1,
        scale: -0.25,
        window: i64::MAX,
        query_offset: -(1 << 62),
        key_offset: (1 << 62) - 7,
        query_offsets: SOMEWHERE.cast(),
        status: SOMEWHERE.cast(),
        ..api::attention()
    };
    assert_eq!(ask(&right, &tensors(Dtype::F16)), (Status::Ok, String::new()));
    assert_eq!(ask_size(&right, &tensors(Dtype::F16)), ((Status::Ok, String::new()), 0));
}

#[test]
fn sequences_have_the_fields_of_their_kind_and_no_others() {
    type Change = fn(&mut AttentionDesc);
    let unused: [(&str, Change); 5] = [
        ("index_bits", |desc| desc.index_bits = 32),
        ("sequences", |desc| desc.sequences = 1),
        ("query_starts", |desc| desc.query_starts = SOMEWHERE),
        ("key_starts", |desc| desc.key_starts = SOMEWHERE),
        ("max_query_length", |desc| desc.max_query_length = 1),
    ];
    for (name, change) in unused {
        refused(
            |desc, _| change(desc),
            &format!(
                "desc.{name}: a value is not valid; expected zero, since LONGROPE_SEQUENCES_DENSE does not read it"
            ),
        );
    }
    let wrong = |change: &dyn Fn(&mut AttentionDesc, &mut AttentionTensors), start: &str| {
        refused(
            |desc, tensors| {
                packed(desc);
                change(desc, tensors);
            },
            start,
        );
    };
    for bits in [-1, 16, 33] {
        let start = format!("desc.index_bits: {bits} is not valid; expected 32 (or 0) or 64");
        wrong(&|desc, _| desc.index_bits = bits, &start);
    }
    wrong(&|desc, _| desc.sequences = -1, "desc.sequences: -1 is not valid; expected 0 or more");
    wrong(
        &|desc, _| desc.max_query_length = -1,
        "desc.max_query_length: -1 is not valid; expected 0 or more",
    );
    wrong(&|desc, _| desc.query_starts = null(), "desc.query_starts: a null address is not valid");
    wrong(&|desc, _| desc.key_starts = null(), "desc.key_starts: a null address is not valid");
    for (bits, size) in [(0, 4), (32, 4), (64, 8)] {
        let odd = SOMEWHERE.wrapping_byte_add(size / 2);
        for (name, queries) in [("query_starts", true), ("key_starts", false)] {
            wrong(
                &|desc, _| {
                    desc.index_bits = bits;
                    *(if queries { &mut desc.query_starts } else { &mut desc.key_starts }) = odd;
                },
                &format!(
                    "desc.{name}: address {:#x} is not valid; expected a multiple of {size}",
                    0x1000 + size / 2
                ),
            );
        }
        let mut right = api::attention();
        packed(&mut right);
        (right.index_bits, right.max_query_length) = (bits, 4);
        assert_eq!(ask(&right, &tensors(Dtype::Bf16)), (Status::Ok, String::new()));
    }
    wrong(
        &|_, tensors| FIELDS.iter().for_each(|(_, field)| field(tensors).shape[0] = 2),
        "tensors.q.shape[0]: 2 is not valid; expected 1, since the sequences are packed",
    );
    // No sequence has no starts.
    let none = AttentionDesc { sequence_kind: 1, ..api::attention() };
    assert_eq!(ask(&none, &tensors(Dtype::Bf16)), (Status::Ok, String::new()));
}

#[test]
fn tensors_that_do_not_fit_are_named_by_field_and_dimension() {
    for (dim, of_k) in [1, 7, 2, 16].into_iter().enumerate() {
        refused(
            |_, tensors| tensors.v.shape[dim] = 9,
            &format!("tensors.v.shape[{dim}]: 9 is not valid; expected {of_k}, as k"),
        );
    }
    for (dim, of_q) in [1, 5, 4, 16].into_iter().enumerate() {
        refused(
            |_, tensors| tensors.out.shape[dim] = 9,
            &format!("tensors.out.shape[{dim}]: 9 is not valid; expected {of_q}, as q"),
        );
    }
    refused(
        |_, tensors| (tensors.k.shape[2], tensors.v.shape[2]) = (3, 3),
        "tensors.k.shape[2]: 3 is not valid; expected a divisor of the number of query heads (4)",
    );
    refused(|_, tensors| tensors.q.shape[3] = 0, "tensors.q.shape[3]: 0 is not valid; expected at least 1");
    refused(|_, tensors| tensors.k.shape[1] = -7, "tensors.k.shape[1]: -7 is not valid; expected 0 or more");
    refused(
        |_, tensors| tensors.lse.shape[3] = 2,
        "tensors.lse: shape [1, 5, 4, 2] is not valid; expected [1, 5, 4, 1], a number for each row of q",
    );
    for (name, field) in FIELDS {
        refused(
            |_, tensors| field(tensors).dtype = 4,
            &format!("tensors.{name}.dtype: 4 is not valid; expected LONGROPE_DTYPE_"),
        );
    }
    for (name, field) in [FIELDS[1], FIELDS[2]] {
        refused(
            |_, tensors| field(tensors).dtype = Dtype::F16 as i32,
            &format!("tensors.{name}.dtype: F16 is not valid; expected TYPE, as q"),
        );
    }
    refused(
        |_, tensors| tensors.out.dtype = Dtype::F16 as i32,
        "tensors.out.dtype: F16 is not valid; expected TYPE, as q, or TYPE",
    );
    refused(
        |_, tensors| tensors.lse.dtype = Dtype::F16 as i32,
        "tensors.lse.dtype: F16 is not valid; expected TYPE",
    );
    refused(
        |_, tensors| tensors.out.stride = [320, 64, 0, 1],
        "tensors.out: shape [1, 5, 4, 16] with strides [320, 64, 0, 1], where elements overlap is not valid",
    );
    // A log-sum-exp that was meant, but is not complete, is not taken for none.
    refused(
        |_, tensors| tensors.lse = Tensor { data: SOMEWHERE, ..NONE },
        "tensors.lse.dtype: 0 is not valid",
    );
    let without = AttentionTensors { lse: NONE, ..tensors(Dtype::Bf16) };
    assert_eq!(ask(&api::attention(), &without), (Status::Ok, String::new()));
}

#[test]
fn what_is_valid_and_not_offered_has_a_status_of_its_own() {
    let f32 = |tensors: &mut AttentionTensors| {
        FIELDS.iter().for_each(|(_, field)| field(tensors).dtype = Dtype::F32 as i32);
    };
    not_offered(|_, tensors| f32(tensors), "tensors.q.dtype: F32 is not supported; expected F16 or Bf16");
    for head_dim in [12, 264] {
        not_offered(
            |_, tensors| FIELDS[..4].iter().for_each(|(_, field)| field(tensors).shape[3] = head_dim),
            &format!("tensors.q.shape[3]: {head_dim} is not supported; expected a multiple of 8 up to 256"),
        );
    }
    let queries = [FIELDS[0], FIELDS[3], FIELDS[4]];
    not_offered(
        |_, tensors| queries.iter().for_each(|(_, field)| field(tensors).shape[2] = (1 << 20) + 2),
        "tensors.q.shape[2]: 1048578 is not supported; expected at most 2^20 heads",
    );
    not_offered(
        |_, tensors| queries.iter().for_each(|(_, field)| field(tensors).shape[1] = 1 << 36),
        "tensors: 1 sequences of up to 68719476736 queries and 4 heads is not supported; expected fewer than 2^31 blocks \
         of ",
    );
    not_offered(
        |desc, _| {
            packed(desc);
            desc.sequences = 1 << 31;
        },
        "desc.sequences: 2147483648 is not supported; expected fewer than 2^31 sequences",
    );
    // The other way round on the CPU: it takes f32.
    for (dtype, name) in [(Dtype::F16, "F16"), (Dtype::Bf16, "Bf16")] {
        let expected = format!(
            "tensors.q.dtype: {name} is not supported; expected F32, which is what the CPU form takes"
        );
        assert_eq!(ask_cpu(&api::attention(), &tensors(dtype)), (Unsupported, expected));
    }
}

#[test]
fn keys_too_many_for_a_copy_are_an_error_and_no_abort() {
    // Legal by strides of 0: all keys are one.
    let mut element = [1.0f32; 16];
    let at = element.as_mut_ptr();
    for length in [1 << 58, 1 << 62] {
        let row = api::tensor(at, [1, 1, 1, 16]);
        let keys = Tensor { stride: [0, 0, 0, 1], ..api::tensor(at, [1, length, 1, 16]) };
        let mut out = [7.0f32; 16];
        let out_tensor = api::tensor(out.as_mut_ptr(), [1, 1, 1, 16]);
        let tensors = AttentionTensors { q: row, k: keys, v: keys, out: out_tensor, lse: NONE };
        let desc = AttentionDesc { key_offset: -(1 << 62), ..api::attention() };
        // SAFETY: every element of the tensors is one of these variables.
        let (found, message) = answer(unsafe { (api().attention_cpu)(&desc, &tensors) });
        assert_eq!(found, Unsupported, "{message}");
        assert!(message.starts_with("tensors.k: "), "{message}");
        assert!(
            message.ends_with("expected what fits the memory of this machine a second time"),
            "{message}"
        );
        assert_eq!(out, [7.0; 16]);
    }
}

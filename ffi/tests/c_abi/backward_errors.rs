//! Every way to be wrong about the gradients of an attention: its status, and a message that names the argument as C does.

use std::ptr::{null, null_mut};

use crate::abi::{AttentionBackwardDesc, AttentionBackwardTensors, Dtype, Status, Tensor};
use crate::api::{self, NONE, api, message, status};
use crate::attention_errors::{SOMEWHERE, tensor};

use Status::{InvalidArgument as Invalid, Unsupported};

/// Tensors that are right: 4 query heads of 5 tokens over 2 key heads of 7. There is no delta.
pub fn tensors(dtype: Dtype) -> AttentionBackwardTensors {
    let (queries, keys) = (tensor([1, 5, 4, 16], dtype), tensor([1, 7, 2, 16], dtype));
    AttentionBackwardTensors {
        q: queries,
        k: keys,
        v: keys,
        out: queries,
        lse: tensor([1, 5, 4, 1], Dtype::F32),
        delta: NONE,
        d_out: queries,
        dq: queries,
        dk: keys,
        dv: keys,
    }
}

type Field = fn(&mut AttentionBackwardTensors) -> &mut Tensor;

/// Bytes of a workspace: delta of 20 rows, and what Hopper's kernels count in.
const DELTA: usize = 80;
const COUNTERS: usize = 128;

/// The last three are what is written.
const FIELDS: [(&str, Field); 9] = [
    ("q", |tensors| &mut tensors.q),
    ("k", |tensors| &mut tensors.k),
    ("v", |tensors| &mut tensors.v),
    ("out", |tensors| &mut tensors.out),
    ("lse", |tensors| &mut tensors.lse),
    ("d_out", |tensors| &mut tensors.d_out),
    ("dq", |tensors| &mut tensors.dq),
    ("dk", |tensors| &mut tensors.dk),
    ("dv", |tensors| &mut tensors.dv),
];

fn answer(found: i32) -> (Status, String) {
    (status(found), if found == 0 { String::new() } else { message() })
}

type Desc = AttentionBackwardDesc;
type Tensors = AttentionBackwardTensors;

fn ask(desc: *const Desc, tensors: *const Tensors) -> (Status, String) {
    // SAFETY: the tests give pointers that are null or right.
    answer(unsafe { (api().attention_backward_supported)(desc, tensors) })
}

fn ask_size(desc: *const Desc, tensors: *const Tensors) -> ((Status, String), usize) {
    let mut bytes = usize::MAX;
    // SAFETY: as above.
    let found = unsafe { (api().attention_backward_workspace_size)(desc, tensors, &mut bytes) };
    (answer(found), bytes)
}

/// Only for what is refused: else it would read.
pub fn ask_cpu(desc: *const Desc, tensors: *const Tensors) -> (Status, String) {
    // SAFETY: as above; nothing is read before the checks are through.
    answer(unsafe { (api().attention_backward_cpu)(desc, tensors) })
}

/// A backward pass that is right but for one change: what is wrong with it is wrong on the GPU and on the CPU.
#[track_caller]
pub fn refused(change: impl Fn(&mut Desc, &mut Tensors), start: &str) {
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let (mut desc, mut tensors) = (api::attention_backward(), tensors(dtype));
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

/// A backward pass that is right, and what it needs: in F16, which takes no more than counters.
#[track_caller]
pub fn right(change: impl FnOnce(&mut Desc, &mut Tensors), bytes: usize) {
    let (mut desc, mut tensors) = (api::attention_backward(), tensors(Dtype::F16));
    change(&mut desc, &mut tensors);
    assert_eq!(ask(&desc, &tensors), (Status::Ok, String::new()));
    assert_eq!(ask_size(&desc, &tensors), ((Status::Ok, String::new()), bytes));
}

/// One for which there is no kernel.
#[track_caller]
pub fn not_offered(change: impl FnOnce(&mut Desc, &mut Tensors), start: &str) {
    let (mut desc, mut tensors) = (api::attention_backward(), tensors(Dtype::Bf16));
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
    let (desc, given) = (api::attention_backward(), tensors(Dtype::Bf16));
    for (desc, tensors, name) in [(null(), &raw const given, "desc"), (&raw const desc, null(), "tensors")] {
        let expected = (Invalid, format!("{name}: NULL is not valid; expected a pointer to the struct"));
        assert_eq!(ask(desc, tensors), expected);
        assert_eq!(ask_size(desc, tensors).0, expected);
        assert_eq!(ask_cpu(desc, tensors), expected);
    }
    // SAFETY: pointers are null or right; nothing runs without a context.
    unsafe {
        let bytes = answer((api().attention_backward_workspace_size)(&desc, &given, null_mut()));
        assert_eq!(bytes, (Invalid, "bytes: NULL is not valid; expected where to put the size".to_owned()));
        let run = answer((api().attention_backward_run)(null(), &desc, &given, null_mut(), 0, null_mut()));
        assert_eq!(run.0, Invalid);
        assert!(run.1.starts_with("context: NULL is not valid; expected a context made by"), "{}", run.1);
    }
    for (name, field) in FIELDS {
        refused(
            |_, tensors| field(tensors).data = null_mut(),
            &format!("tensors.{name}: a null address is not valid; expected the address of an element"),
        );
    }
}

#[test]
fn a_descriptor_out_of_range_is_named_by_its_field() {
    for size in [0, 96, 103, 105] {
        let start =
            format!("desc.struct_size: {size} is not valid; expected the sizeof of the struct, at least 104");
        refused(|desc, _| desc.struct_size = size, &start);
    }
    for number in [-1, 2] {
        let start = |field| format!("desc.{field}: {number} is not valid; expected 0 or 1");
        refused(|desc, _| desc.causal = number, &start("causal"));
        refused(|desc, _| desc.accumulate = number, &start("accumulate"));
    }
    refused(
        |desc, _| desc.flags = 2,
        "desc.flags: 2 is not valid; expected 0 or LONGROPE_ATTENTION_BACKWARD_FAST (1)",
    );
    refused(|desc, _| desc.reserved = 1, "desc.reserved: a value is not valid; expected zero");
    refused(|desc, _| desc.scale = f32::NAN, "desc.scale: NaN is not valid; expected a finite number");
    refused(|desc, _| desc.window = -1, "desc.window: -1 is not valid; expected 0 or more");
    refused(
        |desc, _| desc.query_offset = i64::MAX,
        "desc.query_offset: 9223372036854775807 is not valid; expected",
    );
    refused(
        |desc, _| desc.key_offset = i64::MIN,
        "desc.key_offset: -9223372036854775808 is not valid; expected",
    );
    refused(
        |desc, _| desc.sequence_kind = 2,
        "desc.sequence_kind: 2 is not valid; expected LONGROPE_SEQUENCES_",
    );
    refused(|desc, _| desc.sequences = 1, "desc.sequences: a value is not valid; expected zero, since");
    refused(
        |desc, _| desc.query_offsets = SOMEWHERE.wrapping_byte_add(4).cast(),
        "desc.query_offsets: address 0x1004 is not valid; expected a multiple of 8",
    );
    refused(
        |desc, _| desc.status = SOMEWHERE.wrapping_byte_add(2).cast(),
        "desc.status: address 0x1002 is not valid; expected a multiple of 4",
    );
    let packed = |desc: &mut Desc| {
        (desc.sequence_kind, desc.sequences, desc.index_bits) = (1, 3, 64);
        (desc.query_starts, desc.key_starts) = (SOMEWHERE, SOMEWHERE);
    };
    right(|desc, _| packed(desc), DELTA + COUNTERS);
    let wrong = |change: &dyn Fn(&mut Desc), start: &str| {
        refused(
            |desc, _| {
                packed(desc);
                change(desc);
            },
            start,
        );
    };
    wrong(&|desc| desc.index_bits = 16, "desc.index_bits: 16 is not valid; expected 32 (or 0) or 64");
    wrong(&|desc| desc.sequences = -1, "desc.sequences: -1 is not valid; expected 0 or more");
    wrong(&|desc| desc.max_query_length = -1, "desc.max_query_length: -1 is not valid; expected 0 or more");
    wrong(&|desc| desc.query_starts = null(), "desc.query_starts: a null address is not valid");
    wrong(
        &|desc| desc.key_starts = SOMEWHERE.wrapping_byte_add(4),
        "desc.key_starts: address 0x1004 is not valid; expected a multiple of 8",
    );
    // What is right in them: 4 bytes for each of 20 rows are delta's.
    right(
        |desc, _| {
            (desc.causal, desc.scale, desc.window) = (1, -0.25, i64::MAX);
            (desc.query_offset, desc.key_offset) = (-(1 << 62), (1 << 62) - 7);
            (desc.query_offsets, desc.status) = (SOMEWHERE.cast(), SOMEWHERE.cast());
        },
        DELTA + COUNTERS,
    );
}

#[test]
fn tensors_that_do_not_fit_are_named_by_field() {
    for (dim, of_k) in [1, 7, 2, 16].into_iter().enumerate() {
        refused(
            |_, tensors| tensors.v.shape[dim] = 9,
            &format!("tensors.v.shape[{dim}]: 9 is not valid; expected {of_k}, as k"),
        );
    }
    for (names, shape, whose) in [
        (&["out", "d_out", "dq"][..], [1, 5, 4, 16], "q"),
        (&["dk"], [1, 7, 2, 16], "k"),
        (&["dv"], [1, 7, 2, 16], "v"),
    ] {
        for (name, field) in FIELDS.into_iter().filter(|(name, _)| names.contains(name)) {
            for dim in 0..4 {
                let mut found = shape;
                found[dim] = 9;
                refused(
                    |_, tensors| field(tensors).shape = found,
                    &format!("tensors.{name}: shape {found:?} is not valid; expected {shape:?}, as {whose}"),
                );
            }
        }
    }
    for (name, field) in FIELDS {
        refused(
            |_, tensors| field(tensors).dtype = 4,
            &format!("tensors.{name}.dtype: 4 is not valid; expected LONGROPE_DTYPE_"),
        );
        refused(
            |_, tensors| field(tensors).shape[1] = -1,
            &format!("tensors.{name}.shape[1]: -1 is not valid; expected 0 or more"),
        );
        if name != "q" {
            let start = format!("tensors.{name}.dtype: F16 is not valid; expected TYPE");
            refused(|_, tensors| field(tensors).dtype = Dtype::F16 as i32, &start);
        }
    }
    for (name, field) in &FIELDS[6..] {
        refused(|_, tensors| field(tensors).stride = [16, 16, 0, 1], &format!("tensors.{name}: shape ["));
    }
    let delta = |change: &dyn Fn(&mut Tensor), start: &str| {
        refused(
            |_, tensors| {
                tensors.delta = tensors.lse;
                change(&mut tensors.delta);
            },
            start,
        );
    };
    delta(
        &|delta| delta.shape[3] = 16,
        "tensors.delta: shape [1, 5, 4, 16] is not valid; expected [1, 5, 4, 1], a number for each row of q",
    );
    delta(&|delta| delta.dtype = Dtype::F16 as i32, "tensors.delta.dtype: F16 is not valid; expected TYPE");
    delta(&|delta| delta.data = null_mut(), "tensors.delta: a null address is not valid");
    delta(&|delta| *delta = Tensor { data: SOMEWHERE, ..NONE }, "tensors.delta.dtype: 0 is not valid");
}

#[test]
fn the_output_or_delta_is_there() {
    refused(
        |_, tensors| tensors.out = NONE,
        "tensors.out: none is not valid; expected the output of the forward pass, since there is no delta",
    );
    // With delta no memory is needed for it, and the output may be left out.
    right(|_, tensors| (tensors.out, tensors.delta) = (NONE, tensors.lse), COUNTERS);
    right(|_, tensors| tensors.delta = tensors.lse, COUNTERS);
    refused(|_, tensors| tensors.lse = NONE, "tensors.lse.dtype: 0 is not valid");
    right(|_, tensors| tensors.out.dtype = Dtype::F32 as i32, DELTA + COUNTERS);
}

#[test]
fn what_is_added_to_is_of_32_bits() {
    let f32 = |tensors: &mut Tensors| {
        FIELDS[6..].iter().for_each(|(_, field)| field(tensors).dtype = Dtype::F32 as i32);
    };
    right(|_, tensors| f32(tensors), DELTA + COUNTERS);
    right(
        |desc, tensors| {
            f32(tensors);
            desc.accumulate = 1;
        },
        DELTA + COUNTERS,
    );
    for (name, field) in &FIELDS[6..] {
        let (mut desc, mut tensors) = (api::attention_backward(), tensors(Dtype::Bf16));
        f32(&mut tensors);
        field(&mut tensors).dtype = Dtype::Bf16 as i32;
        desc.accumulate = 1;
        let expected = format!(
            "tensors.{name}.dtype: Bf16 is not valid; expected F32, since gradients are added to what is there"
        );
        assert_eq!(ask(&desc, &tensors), (Invalid, expected));
    }
}

#[test]
fn what_is_valid_and_not_offered_has_a_status_of_its_own() {
    not_offered(
        |_, given| *given = tensors(Dtype::F32),
        "tensors.q.dtype: F32 is not supported; expected F16 or Bf16",
    );
    for head_dim in [12, 264] {
        not_offered(
            |_, tensors| {
                let of_heads = FIELDS.iter().filter(|(name, _)| *name != "lse");
                of_heads.for_each(|(_, field)| field(tensors).shape[3] = head_dim);
            },
            &format!("tensors.q.shape[3]: {head_dim} is not supported; expected a multiple of 8 up to 256"),
        );
    }
    let of = |of_queries: bool, tensors: &mut Tensors, length| {
        let names =
            if of_queries { &["q", "out", "lse", "d_out", "dq"][..] } else { &["k", "v", "dk", "dv"] };
        let fields = FIELDS.iter().filter(|(name, _)| names.contains(name));
        fields.for_each(|(_, field)| field(tensors).shape[1] = length);
    };
    not_offered(
        |_, tensors| {
            tensors.delta = tensors.lse;
            tensors.delta.shape[1] = 1 << 36;
            of(true, tensors, 1 << 36);
        },
        "tensors: 1 sequences of up to 68719476736 queries and 4 heads is not supported; expected fewer than 2^31 blocks of ",
    );
    not_offered(
        |_, tensors| of(false, tensors, 1 << 38),
        "tensors: 1 sequences of up to 274877906944 keys and 2 key heads is not supported; expected fewer than 2^31 blocks of ",
    );
    // The other way round on the CPU: it takes f32.
    for (dtype, name) in [(Dtype::F16, "F16"), (Dtype::Bf16, "Bf16")] {
        let expected = format!(
            "tensors.q.dtype: {name} is not supported; expected F32, which is what the CPU form takes"
        );
        assert_eq!(ask_cpu(&api::attention_backward(), &tensors(dtype)), (Unsupported, expected));
    }
}

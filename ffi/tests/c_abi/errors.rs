//! Every way to be wrong has its status and a message that names the argument, the value and what was expected.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

use crate::abi::{RerotateDesc, RotaryDesc, Status, Tensor, TensorIo};
use crate::api::{self, IN_PLACE, Sets, api, frequencies, message, status, tensor};

const SHAPE: [i64; 4] = [2, 3, 2, 8];
/// An address that is aligned for everything, and is never read.
const SOMEWHERE: *mut c_void = std::ptr::without_provenance_mut(0x1000);

fn sets() -> Sets {
    Sets::from_frequencies(&frequencies(&[1.0, 0.1, 0.01])).ok().unwrap()
}

fn io() -> [TensorIo; 2] {
    [TensorIo { input: tensor(SOMEWHERE.cast(), SHAPE), output: IN_PLACE }; 2]
}

/// Asks whether a rotation is supported.
fn ask(desc: *const RotaryDesc, tensors: *const TensorIo, count: usize) -> (Status, String) {
    // SAFETY: the tests give pointers that are null or right.
    let found = unsafe { (api().rotary_supported)(desc, tensors, count) };
    (status(found), if found == 0 { String::new() } else { message() })
}

#[track_caller]
fn refused((found, message): (Status, String), expected: Status, start: &str) {
    assert_eq!(found, expected, "{message}");
    assert!(message.starts_with(start), "{message:?} does not start with {start:?}");
}

/// A rotation that is right but for one change.
#[track_caller]
fn rotary_refused(change: impl FnOnce(&mut RotaryDesc, &mut [TensorIo; 2]), expected: Status, start: &str) {
    let (sets, mut io) = (sets(), io());
    let mut desc = api::rotary(&sets);
    assert_eq!(ask(&desc, io.as_ptr(), 2), (Status::Ok, String::new()));
    change(&mut desc, &mut io);
    refused(ask(&desc, io.as_ptr(), 2), expected, start);
    // The other functions refuse it as well, before they look for a GPU.
    let mut bytes = usize::MAX;
    // SAFETY: pointers are null or right; nothing is launched without a context or read before the checks are through.
    let (cpu, size) = unsafe {
        let cpu = (api().rotary_cpu)(&desc, io.as_ptr(), 2);
        let cpu = (status(cpu), message());
        let size = (api().rotary_workspace_size)(&desc, io.as_ptr(), 2, &mut bytes);
        (cpu, (status(size), message()))
    };
    refused(cpu, expected, start);
    refused(size, expected, start);
    assert_eq!(bytes, usize::MAX);
}

use Status::{InvalidArgument as Invalid, InvalidConfig, Unsupported};

#[test]
fn null_pointers_are_named() {
    let (sets, io) = (sets(), io());
    let desc = api::rotary(&sets);
    refused(
        ask(null(), io.as_ptr(), 1),
        Invalid,
        "desc: NULL is not valid; expected a pointer to the struct",
    );
    refused(ask(&desc, null(), 1), Invalid, "tensors: NULL is not valid; expected an array of tensors");
    refused(ask(&desc, null(), 0), Invalid, "count: 0 is not valid; expected 1 or 2 tensors");
    refused(ask(&desc, null(), usize::MAX), Invalid, "count: 18446744073709551615 is not valid");
    rotary_refused(
        |desc, _| desc.sets = null(),
        Invalid,
        "sets: NULL is not valid; expected factor sets made by",
    );
    rotary_refused(
        |_, io| io[1].input.data = null_mut(),
        Invalid,
        "tensors[1].input: a null address is not valid",
    );

    // SAFETY: every pointer is null or right.
    unsafe {
        let bytes = (api().rotary_workspace_size)(&desc, io.as_ptr(), 1, null_mut());
        refused((status(bytes), message()), Invalid, "bytes: NULL");
        let run = (api().rotary_run)(null(), &desc, io.as_ptr(), 1, null_mut());
        refused((status(run), message()), Invalid, "context: NULL is not valid; expected a context made by");
        let create = (api().context_create)(0, null_mut());
        refused((status(create), message()), Invalid, "context: NULL is not valid; expected where to put");
        let json = (api().factor_sets_from_json)(c"{}".as_ptr(), 2, 0, 0, null_mut());
        refused((status(json), message()), Invalid, "sets: NULL is not valid; expected where to put");
        let mut made = SOMEWHERE.cast();
        let json = (api().factor_sets_from_json)(null(), 2, 0, 0, &mut made);
        refused((status(json), message()), Invalid, "json: NULL");
        assert!(made.is_null());
        let none = (api().factor_sets_from_frequencies)(null(), &mut made);
        refused((status(none), message()), Invalid, "frequencies: NULL");
        let none = (api().factor_sets_from_frequencies_f32)(null(), &mut made);
        refused((status(none), message()), Invalid, "frequencies: NULL");
        // Destroying nothing does nothing.
        (api().context_destroy)(null_mut());
        (api().factor_sets_destroy)(null_mut());
        assert_eq!((api().factor_sets_pairs)(null()), 0);
        assert_eq!((api().factor_sets_pairs)(sets.0), 3);
    }
}

#[test]
fn the_size_of_a_struct_is_checked() {
    for size in [0, 1, 71] {
        let start =
            format!("desc.struct_size: {size} is not valid; expected the sizeof of the struct, at least 72");
        rotary_refused(|desc, _| desc.struct_size = size, Invalid, &start);
    }
    let mut given = frequencies(&[1.0]);
    given.struct_size = 8;
    refused(
        Sets::from_frequencies(&given).err().unwrap(),
        Invalid,
        "frequencies.struct_size: 8 is not valid",
    );
}

#[test]
fn a_longer_struct_of_a_later_version_is_read_as_far_as_it_is_known() {
    #[repr(C)]
    struct Later {
        desc: RotaryDesc,
        unknown: [u64; 4],
    }
    let (sets, io) = (sets(), io());
    let mut later = Later { desc: api::rotary(&sets), unknown: [u64::MAX; 4] };
    later.desc.struct_size = size_of::<Later>() as u32;
    assert_eq!(ask((&raw const later).cast(), io.as_ptr(), 1).0, Status::Ok);
}

#[test]
fn numbers_that_no_enum_has_are_listed_with_those_it_has() {
    let start = "pairing: 2 is not valid; expected LONGROPE_PAIRING_HALF_SPLIT (0) or LONGROPE_PAIRING_INTERLEAVED (1)";
    rotary_refused(|desc, _| desc.pairing = 2, Invalid, start);
    rotary_refused(|desc, _| desc.backward = -1, Invalid, "backward: -1 is not valid; expected 0 or 1");
    rotary_refused(
        |desc, _| desc.position_kind = 5,
        Invalid,
        "position_kind: 5 is not valid; expected LONGROPE_",
    );
    rotary_refused(
        |desc, _| desc.choice_kind = -7,
        Invalid,
        "choice_kind: -7 is not valid; expected LONGROPE_",
    );
    rotary_refused(|desc, _| desc.flags = 1 << 31, Invalid, "flags: 2147483648 is not valid; expected 0");
    rotary_refused(
        |_, io| io[0].input.dtype = 0,
        Invalid,
        "tensors[0].input.dtype: 0 is not valid; expected LONGROPE_DTYPE_F32 (1) or LONGROPE_DTYPE_F16 (2) or",
    );
    let mut given = frequencies(&[1.0]);
    given.angles = 3;
    refused(
        Sets::from_frequencies(&given).err().unwrap(),
        Invalid,
        "angles: 3 is not valid; expected LONGROPE_",
    );
    refused(Sets::from_json("{}", 0, -1).err().unwrap(), Invalid, "angles: -1 is not valid");
}

#[test]
fn positions_and_choices_have_the_fields_of_their_kind_and_no_others() {
    for (kind, size) in [(1, 8), (2, 8), (3, 8), (4, 4)] {
        rotary_refused(
            |desc, _| desc.position_kind = kind,
            Invalid,
            "positions: NULL is not valid; expected the address of positions",
        );
        rotary_refused(
            |desc, _| (desc.position_kind, desc.positions) = (kind, SOMEWHERE.wrapping_byte_add(2)),
            Invalid,
            &format!("positions: address 0x1002 is not valid; expected a multiple of {size}"),
        );
        rotary_refused(
            |desc, _| {
                (desc.position_kind, desc.positions, desc.position_offset) = (kind, SOMEWHERE, 1);
            },
            Invalid,
            "position_offset: a value is not valid; expected zero",
        );
    }
    rotary_refused(
        |desc, _| desc.positions = SOMEWHERE,
        Invalid,
        "positions: a value is not valid; expected zero, since LONGROPE_POSITIONS_OFFSET does not read it",
    );
    for (kind, size) in [(3, 8), (4, 4)] {
        rotary_refused(|desc, _| desc.choice_kind = kind, Invalid, "choices: NULL is not valid");
        rotary_refused(
            |desc, _| (desc.choice_kind, desc.choices) = (kind, SOMEWHERE.wrapping_byte_add(1)),
            Invalid,
            &format!("choices: address 0x1001 is not valid; expected a multiple of {size}"),
        );
    }
    for kind in 1..=4 {
        rotary_refused(
            |desc, _| (desc.choice_kind, desc.choice_length) = (kind, 9),
            Invalid,
            "choice_length: a value is not valid; expected zero",
        );
    }
    for kind in 0..=2 {
        let start = "choices: a value is not valid; expected zero";
        rotary_refused(|desc, _| (desc.choice_kind, desc.choices) = (kind, SOMEWHERE), Invalid, start);
    }
    rotary_refused(
        |desc, _| desc.choice_length = -1,
        Invalid,
        "choice_length: -1 is not valid; expected 0 or more",
    );
    rotary_refused(
        |desc, _| desc.status = SOMEWHERE.wrapping_byte_add(2).cast(),
        Invalid,
        "status: address 0x1002 is not valid; expected a multiple of 4",
    );
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    rotary_refused(|_, io| io[1].input.shape[2] = -4, Invalid, "tensors[1].input.shape[2]: -4 is not valid");
    rotary_refused(
        |_, io| io[1].input.shape[1] = 4,
        Invalid,
        "tensors[1].input: shape [2, 4, 2, 8] is not valid",
    );
    rotary_refused(
        |_, io| io[1].input.dtype = 2,
        Invalid,
        "tensors[1].input: F16 is not valid; expected F32",
    );
    rotary_refused(
        |_, io| io[0].input.data = SOMEWHERE.wrapping_byte_add(2),
        Invalid,
        "tensors[0].input: address 0x1002 is not valid; expected a multiple of 4",
    );
    rotary_refused(
        |_, io| io[0].output = tensor(SOMEWHERE.cast(), [2, 3, 1, 8]),
        Invalid,
        "tensors[0].output: shape [2, 3, 1, 8] is not valid; expected [2, 3, 2, 8]",
    );
    // An output that was meant, but is not complete, is not taken for one in place.
    rotary_refused(
        |_, io| io[0].output = Tensor { shape: SHAPE, ..IN_PLACE },
        Invalid,
        "tensors[0].output.dtype: 0 is not valid",
    );
    rotary_refused(
        |_, io| io[0].output = Tensor { dtype: 1, ..IN_PLACE },
        Invalid,
        "tensors[0].output: shape [0, 0, 0, 0] is not valid; expected [2, 3, 2, 8]",
    );
    rotary_refused(
        |_, io| {
            io[0].output = tensor(SOMEWHERE.wrapping_byte_add(1 << 20).cast(), SHAPE);
            io[0].output.stride = [48, 16, 0, 1];
        },
        Invalid,
        "tensors[0].output: shape [2, 3, 2, 8] with strides [48, 16, 0, 1], where elements overlap",
    );
    rotary_refused(
        |_, io| io.iter_mut().for_each(|io| io.input.shape[3] = 4),
        Invalid,
        "tensors[0].input: head dimension 4 is not valid; expected 6",
    );
}

#[test]
fn what_the_kernels_do_not_offer_is_unsupported() {
    let frequencies_of_129: Vec<f64> = (0..129).map(|i| 1.0 / f64::from(i + 1)).collect();
    let many = Sets::from_frequencies(&frequencies(&frequencies_of_129)).ok().unwrap();
    rotary_refused(
        |desc, io| {
            desc.sets = many.0;
            io.iter_mut().for_each(|io| io.input.shape[3] = 258);
        },
        Unsupported,
        "sets: 129 pairs is not supported; expected at most 128",
    );
    // A shape that fits the types, and strides of zero, so that nothing but its length is wrong.
    let one = Sets::from_frequencies(&frequencies(&[1.0])).ok().unwrap();
    rotary_refused(
        |desc, io| {
            desc.sets = one.0;
            io.iter_mut().for_each(|io| io.input.shape = [1, 1 << 50, 1, 2]);
        },
        Unsupported,
        "tensors: 1125899906842624 tokens is not supported; expected fewer than 2^31 tokens",
    );

    // f16 is for the GPU.
    let (sets, mut io) = (sets(), io());
    let desc = api::rotary(&sets);
    io[0].input.dtype = 2;
    assert_eq!(ask(&desc, io.as_ptr(), 1).0, Status::Ok);
    // SAFETY: refused before anything is read.
    let cpu = unsafe { (api().rotary_cpu)(&desc, io.as_ptr(), 1) };
    refused(
        (status(cpu), message()),
        Unsupported,
        "tensors[0].input.dtype: F16 is not supported; the CPU form",
    );
}

#[test]
fn re_rotations_are_checked_as_rotations_are() {
    let (sets, io) = (sets(), io());
    let to = api::rotary(&sets);
    let good = RerotateDesc {
        struct_size: size_of::<RerotateDesc>() as u32,
        from_choice_kind: 0,
        to: &to,
        from: sets.0,
        shift: -5,
        from_choice_length: 9,
        from_choices: null(),
    };
    let ask = |desc: *const RerotateDesc| {
        let mut bytes = usize::MAX;
        // SAFETY: pointers are null or right; nothing runs without a context.
        let (supported, size, run) = unsafe {
            let supported = (api().rerotate_supported)(desc, io.as_ptr(), 2);
            let size = (api().rerotate_workspace_size)(desc, io.as_ptr(), 2, &mut bytes);
            let run = (api().rerotate_run)(null(), desc, io.as_ptr(), 2, null_mut());
            (supported, size, run)
        };
        assert_eq!(status(run), Invalid);
        assert!(message().starts_with("context: NULL"));
        assert_eq!(supported, size);
        assert_eq!(bytes, if size == 0 { 0 } else { usize::MAX });
        // SAFETY: as above.
        let again = unsafe { (api().rerotate_supported)(desc, io.as_ptr(), 2) };
        (status(again), if again == 0 { String::new() } else { message() })
    };
    assert_eq!(ask(&good), (Status::Ok, String::new()));
    refused(ask(null()), Invalid, "desc: NULL");
    refused(ask(&RerotateDesc { struct_size: 40, ..good }), Invalid, "desc.struct_size: 40");
    refused(ask(&RerotateDesc { to: null(), ..good }), Invalid, "to: NULL");
    refused(ask(&RerotateDesc { from: null(), ..good }), Invalid, "from: NULL");
    refused(ask(&RerotateDesc { from_choice_kind: 9, ..good }), Invalid, "from_choice_kind: 9");
    refused(ask(&RerotateDesc { from_choice_length: -9, ..good }), Invalid, "from_choice_length: -9");
    refused(ask(&RerotateDesc { from_choices: SOMEWHERE, ..good }), Invalid, "from_choices: a value");
    let by_index = RerotateDesc { from_choice_kind: 4, from_choice_length: 0, ..good };
    refused(ask(&by_index), Invalid, "from_choices: NULL");
    assert_eq!(ask(&RerotateDesc { from_choices: SOMEWHERE, ..by_index }).0, Status::Ok);
    refused(
        ask(&RerotateDesc { to: &RotaryDesc { struct_size: 0, ..to }, ..good }),
        Invalid,
        "to.struct_size: 0",
    );
    refused(ask(&RerotateDesc { to: &RotaryDesc { pairing: 9, ..to }, ..good }), Invalid, "to.pairing: 9");
    refused(ask(&RerotateDesc { to: &RotaryDesc { sets: null(), ..to }, ..good }), Invalid, "to.sets: NULL");
    refused(ask(&RerotateDesc { to: &RotaryDesc { backward: 1, ..to }, ..good }), Invalid, "to.backward: 1");
    let fewer = Sets::from_frequencies(&frequencies(&[1.0])).ok().unwrap();
    refused(ask(&RerotateDesc { from: fewer.0, ..good }), Invalid, "from: 1 pairs is not valid; expected 3");
    let mut parity = frequencies(&[1.0, 0.1, 0.01]);
    parity.angles = 1;
    let parity = Sets::from_frequencies(&parity).ok().unwrap();
    refused(ask(&RerotateDesc { from: parity.0, ..good }), Unsupported, "sets: angles in parity mode");
}

#[test]
fn frequencies_that_are_wrong_are_named_by_array_and_index() {
    let good = [1.0, 0.5];
    let refuse = |change: &dyn Fn(&mut crate::abi::Frequencies<f64>), start: &str| {
        let mut given = frequencies(&good);
        change(&mut given);
        refused(Sets::from_frequencies(&given).err().unwrap(), Invalid, start);
    };
    let bad = [1.0, f64::NAN];
    let negative = [-1.0, 0.5];
    refuse(&|f| f.pairs = 0, "pairs: 0 is not valid; expected 1 to");
    refuse(&|f| f.pairs = i64::MAX, "pairs: 9223372036854775807 is not valid");
    refuse(&|f| f.short_frequencies = null(), "short_frequencies: NULL is not valid");
    refuse(
        &|f| f.short_frequencies = bad.as_ptr(),
        "short_frequencies[1]: NaN is not valid; expected radians a token",
    );
    let odd = SOMEWHERE.wrapping_byte_add(4).cast();
    refuse(
        &|f| f.short_frequencies = odd,
        "short_frequencies: address 0x1004 is not valid; expected a multiple of 8",
    );
    refuse(&|f| f.short_gain = -1.0, "short_gain: -1 is not valid; expected a finite number above 0");
    refuse(&|f| f.first_tokens = 4, "plain: NULL is not valid; expected an array of frequencies");
    refuse(&|f| f.first_tokens = -4, "first_tokens: -4");
    refuse(&|f| f.plain = negative.as_ptr(), "plain[0]: -1 is not valid");
    refuse(
        &|f| f.original_length = 7,
        "long_frequencies: NULL is not valid; expected frequencies, since original_length",
    );
    refuse(
        &|f| f.long_gain = 1.0,
        "long_frequencies: NULL is not valid; expected frequencies, since long_gain",
    );
    refuse(&|f| f.long_frequencies = good.as_ptr(), "original_length: 0 is not valid; expected at least 1");
    refuse(
        &|f| (f.long_frequencies, f.original_length, f.long_gain) = (good.as_ptr(), 7, f64::INFINITY),
        "long_gain: inf is not valid",
    );
    refuse(
        &|f| (f.long_frequencies, f.original_length) = (bad.as_ptr(), 7),
        "long_frequencies[1]: NaN is not valid",
    );
    refuse(&|f| f.original_length = i64::MIN, "original_length: -9223372036854775808");
    // In range as it is, and not as f32.
    let edge = [4_294_967_295.99, 1.0];
    for (angles, is_right) in [(0, true), (2, false)] {
        let mut given = frequencies(&edge);
        given.angles = angles;
        assert_eq!(Sets::from_frequencies(&given).is_ok(), is_right);
    }
    let infinite = [1.0f32, f32::INFINITY];
    let given = frequencies(&infinite);
    refused(Sets::from_frequencies_f32(&given).err().unwrap(), Invalid, "short_frequencies[1]: inf");
}

#[test]
fn a_wrong_configuration_is_named_by_its_path() {
    let config = |long: &str| {
        format!(
            r#"{{"head_dim": 4, "max_position_embeddings": 64, "original_max_position_embeddings": 16,
                "rope_scaling": {{"rope_type": "longrope", "short_factor": [1, 1], "long_factor": {long}}}}}"#
        )
    };
    let refuse = |json: &str, start: &str| {
        for angles in 0..=2 {
            refused(Sets::from_json(json, 0, angles).err().unwrap(), InvalidConfig, start);
        }
    };
    refuse(&config("[1, -2]"), "rope_scaling.long_factor[1]: -2 is not valid");
    refuse(&config("[1]"), "rope_scaling.long_factor: a list of 1 is not valid; expected 2 numbers");
    refuse("{}", "max_position_embeddings: missing; expected a whole number");
    refuse("{\"head_dim\": 4", "not valid JSON: ");
    refuse("", "not valid JSON: ");
    refuse("{\"a\\u0000b\": }", "not valid JSON: ");
    let mut sets = null_mut();
    let bytes = [b'{', 0xff, b'}'];
    // SAFETY: three bytes, as said.
    let found = unsafe { (api().factor_sets_from_json)(bytes.as_ptr().cast(), 3, 0, 0, &mut sets) };
    refused((status(found), message()), InvalidConfig, "not valid JSON: invalid utf-8 sequence");
    // SAFETY: refused before a byte is read.
    let found = unsafe { (api().factor_sets_from_json)(bytes.as_ptr().cast(), usize::MAX, 0, 0, &mut sets) };
    refused((status(found), message()), Invalid, "json_bytes: 18446744073709551615");
    refused(Sets::from_json(&config("[1, 2]"), -1, 0).err().unwrap(), Invalid, "length: -1");
    for angles in 0..=2 {
        let sets = Sets::from_json(&config("[1, 2]"), 64, angles).ok().unwrap();
        // SAFETY: the sets are alive.
        assert_eq!(unsafe { (api().factor_sets_pairs)(sets.0) }, 2);
    }
}

#[test]
fn tensors_without_elements_are_nothing_to_do() {
    let sets = sets();
    let desc = RotaryDesc { position_kind: 3, choice_kind: 4, ..api::rotary(&sets) };
    for shape in [[0, 3, 2, 8], [2, 0, 2, 8]] {
        // No addresses at all: there is nothing that they would be of.
        let io = [TensorIo { input: tensor(null_mut(), shape), output: IN_PLACE }];
        // SAFETY: there are no elements.
        let cpu = unsafe { (api().rotary_cpu)(&desc, io.as_ptr(), 1) };
        assert_eq!(status(cpu), Status::Ok, "{}", message());
        assert_eq!(ask(&desc, io.as_ptr(), 1).0, Status::Ok);
    }
    let desc = api::rotary(&sets);
    let io = [TensorIo { input: tensor(null_mut(), [2, 3, 0, 8]), output: IN_PLACE }];
    // SAFETY: as above.
    assert_eq!(status(unsafe { (api().rotary_cpu)(&desc, io.as_ptr(), 1) }), Status::Ok);
}

#[test]
fn each_thread_has_a_message_of_its_own() {
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for (json, start) in [("[]", "configuration: a list"), ("{}", "max_position_embeddings: missing")] {
            let barrier = &barrier;
            scope.spawn(move || {
                assert_eq!(message(), "", "a new thread has seen no failure");
                barrier.wait();
                let (found, text) = Sets::from_json(json, 0, 0).err().unwrap();
                assert_eq!(found, InvalidConfig);
                barrier.wait();
                // The other thread has failed by now.
                assert_eq!(message(), text);
                assert!(text.starts_with(start), "{text}");
                // A success leaves it.
                let _sets = sets();
                assert_eq!(message(), text);
            });
        }
    });
}

#[test]
fn every_status_has_words_of_its_own() {
    let words = |number: i32| {
        // SAFETY: never null.
        unsafe { CStr::from_ptr((api().status_string)(number)) }.to_str().unwrap().to_owned()
    };
    let mut seen: Vec<String> = Status::ALL.iter().map(|(status, _)| words(*status as i32)).collect();
    for number in [-1, Status::ALL.len() as i32, i32::MIN, i32::MAX] {
        assert_eq!(words(number), "an unknown status");
    }
    seen.push("an unknown status".into());
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "{seen:?}");
}

#[test]
fn the_library_says_its_version_and_whether_it_has_kernels() {
    // SAFETY: no arguments.
    let (version, has_code) = unsafe { ((api().version)(), (api().has_device_code)()) };
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")]
            .map(|part| part.parse::<u32>().unwrap());
    assert_eq!(version, major * 1_000_000 + minor * 1_000 + patch);
    assert_eq!(has_code == 1, longrope::device::is_embedded());
}

//! The header's structs and constants, as a C compiler sees them, against the library's.

use std::collections::BTreeMap;

use crate::abi::{
    Angles, AppendDesc, AppendTensors, AttentionBackwardDesc, AttentionBackwardTensors, AttentionDesc,
    AttentionTensors, CacheRotaryDesc, CachedKeys, Choices, DecodeDesc, DecodeTensors, Dtype, Frequencies,
    KvCache, MergeParts, NewTokens, Pages, Pairing, Positions, PrefillDesc, RerotateCacheDesc, RerotateDesc,
    RotaryDesc, Sequences, Status, Tensor, TensorIo,
};
use crate::config_abi::{ConfigInfo, Factors, JsonSpelling};
use crate::header;
use crate::library::{Language, Link, Program, package, stdout};

type Fields = &'static [(&'static str, usize, usize)];

/// Every struct: its name in C, its size, its fields.
const STRUCTS: [(&str, usize, Fields); 22] = [
    ("longrope_factors", size_of::<Factors>(), Factors::FIELDS),
    ("longrope_config_info", size_of::<ConfigInfo>(), ConfigInfo::FIELDS),
    ("longrope_frequencies", size_of::<Frequencies<f64>>(), Frequencies::<f64>::FIELDS),
    ("longrope_frequencies_f32", size_of::<Frequencies<f32>>(), Frequencies::<f32>::FIELDS),
    ("longrope_tensor", size_of::<Tensor>(), Tensor::FIELDS),
    ("longrope_tensor_io", size_of::<TensorIo>(), TensorIo::FIELDS),
    ("longrope_rotary_desc", size_of::<RotaryDesc>(), RotaryDesc::FIELDS),
    ("longrope_rerotate_desc", size_of::<RerotateDesc>(), RerotateDesc::FIELDS),
    ("longrope_attention_desc", size_of::<AttentionDesc>(), AttentionDesc::FIELDS),
    ("longrope_attention_tensors", size_of::<AttentionTensors>(), AttentionTensors::FIELDS),
    ("longrope_attention_backward_desc", size_of::<AttentionBackwardDesc>(), AttentionBackwardDesc::FIELDS),
    (
        "longrope_attention_backward_tensors",
        size_of::<AttentionBackwardTensors>(),
        AttentionBackwardTensors::FIELDS,
    ),
    ("longrope_merge_parts", size_of::<MergeParts>(), MergeParts::FIELDS),
    ("longrope_kv_cache", size_of::<KvCache>(), KvCache::FIELDS),
    ("longrope_new_tokens", size_of::<NewTokens>(), NewTokens::FIELDS),
    ("longrope_cache_rotary_desc", size_of::<CacheRotaryDesc>(), CacheRotaryDesc::FIELDS),
    ("longrope_append_desc", size_of::<AppendDesc>(), AppendDesc::FIELDS),
    ("longrope_append_tensors", size_of::<AppendTensors>(), AppendTensors::FIELDS),
    ("longrope_decode_desc", size_of::<DecodeDesc>(), DecodeDesc::FIELDS),
    ("longrope_decode_tensors", size_of::<DecodeTensors>(), DecodeTensors::FIELDS),
    ("longrope_prefill_desc", size_of::<PrefillDesc>(), PrefillDesc::FIELDS),
    ("longrope_rerotate_cache_desc", size_of::<RerotateCacheDesc>(), RerotateCacheDesc::FIELDS),
];

/// Every enum: its name in C, and its constants.
fn enums() -> Vec<(&'static str, BTreeMap<String, i32>)> {
    macro_rules! constants {
        ($type:ty) => {
            <$type>::ALL.iter().map(|(value, name)| ((*name).to_owned(), *value as i32)).collect()
        };
    }
    vec![
        ("longrope_status", constants!(Status)),
        ("longrope_json_spelling", constants!(JsonSpelling)),
        ("longrope_angles", constants!(Angles)),
        ("longrope_dtype", constants!(Dtype)),
        ("longrope_pairing", constants!(Pairing)),
        ("longrope_positions", constants!(Positions)),
        ("longrope_choices", constants!(Choices)),
        ("longrope_sequences", constants!(Sequences)),
        ("longrope_pages", constants!(Pages)),
        ("longrope_cached_keys", constants!(CachedKeys)),
    ]
}

/// Compiles and runs a program that prints expressions, each with its text.
fn evaluate(language: Language, expressions: &[String]) -> BTreeMap<String, i64> {
    let prints: String = expressions
        .iter()
        .map(|expression| {
            format!("    printf(\"%s = %lld\\n\", \"{expression}\", (long long)({expression}));\n")
        })
        .collect();
    let source = format!(
        "#include <stdio.h>\n#include \"longrope.h\"\nint main(void) {{\n{prints}    return 0;\n}}\n"
    );
    let folder = tempfile::tempdir().unwrap();
    let extension = if language == Language::Cpp17 { "cpp" } else { "c" };
    let file = folder.path().join(format!("layout.{extension}"));
    std::fs::write(&file, source).unwrap();
    // An absolute path replaces the package's.
    let program = Program::new(language, file.to_str().unwrap(), Link::Shared);
    let text = stdout(&mut program.command(None));
    text.lines()
        .map(|line| {
            let (expression, value) = line.split_once(" = ").unwrap();
            (expression.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn structs_and_constants_are_the_same_in_c_and_in_the_library() {
    let mut expected = BTreeMap::new();
    for (name, size, fields) in STRUCTS {
        expected.insert(format!("sizeof({name})"), size as i64);
        for (field, offset, size) in fields {
            expected.insert(format!("offsetof({name}, {field})"), *offset as i64);
            expected.insert(format!("sizeof((({name} *)0)->{field})"), *size as i64);
        }
    }
    for (name, constants) in enums() {
        expected.insert(format!("sizeof({name})"), 4);
        expected.extend(constants.into_iter().map(|(name, value)| (name, i64::from(value))));
    }
    expected.insert("LONGROPE_BAD_CHOICE".into(), i64::from(longrope::ops::BAD_CHOICE));
    expected.insert("LONGROPE_BAD_SEQUENCE".into(), i64::from(longrope::ops::BAD_SEQUENCE));
    expected.insert("LONGROPE_BAD_LENGTH".into(), i64::from(longrope::ops::BAD_LENGTH));
    expected.insert("LONGROPE_BAD_PAGE".into(), i64::from(longrope::ops::BAD_PAGE));
    let version = format!("LONGROPE_VERSION == {}", version());
    expected.insert(version, 1);
    expected.insert("LONGROPE_VERSION == longrope_version()".into(), 1);
    let expressions: Vec<String> = expected.keys().cloned().collect();
    for language in [Language::C99, Language::Cpp17] {
        assert_eq!(evaluate(language, &expressions), expected, "{language:?}");
    }
}

/// The package's version as one number.
fn version() -> u32 {
    let parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse::<u32>().unwrap());
    parts.fold(0, |number, part| number * 1000 + part)
}

#[test]
fn the_header_has_no_struct_field_or_constant_that_the_library_lacks() {
    let structs: Vec<(String, Vec<String>)> = header::definitions("struct")
        .into_iter()
        .map(|(name, body)| {
            let field = |declaration: &str| {
                let name = declaration.split('[').next().unwrap();
                header::identifiers(name).last().map(str::to_owned)
            };
            (name, body.split(';').filter_map(field).collect())
        })
        .collect();
    let ours: Vec<(String, Vec<String>)> = STRUCTS
        .iter()
        .map(|(name, _, fields)| {
            ((*name).to_owned(), fields.iter().map(|(name, ..)| (*name).to_owned()).collect())
        })
        .collect();
    assert_eq!(structs, ours);

    let found: Vec<(String, BTreeMap<String, i32>)> = header::definitions("enum")
        .into_iter()
        .map(|(name, body)| {
            let constant = |text: &str| {
                let (name, value) = text.split_once('=')?;
                Some((name.trim().to_owned(), value.trim().parse().unwrap()))
            };
            (name, body.split(',').filter_map(constant).collect())
        })
        .collect();
    let ours: Vec<(String, BTreeMap<String, i32>)> =
        enums().into_iter().map(|(name, constants)| (name.to_owned(), constants)).collect();
    assert_eq!(found, ours);
}

#[test]
fn the_sizes_that_callers_may_give_are_those_of_the_first_version() {
    // Once released, these numbers stay: an older program's structs are never refused.
    let source = std::fs::read_to_string(package().join("src/arguments.rs")).unwrap();
    let sizes: Vec<usize> = source
        .lines()
        .filter_map(|line| {
            line.trim().strip_prefix("const FIRST_SIZE: usize = ")?.strip_suffix(';')?.parse().ok()
        })
        .collect();
    assert_eq!(sizes, [72, 72, 48, 96, 104, 216, 40, 48, 64, 56, 32]);
    assert_eq!(size_of::<Frequencies<f64>>(), 72);
    assert_eq!(size_of::<RotaryDesc>(), 72);
    assert_eq!(size_of::<RerotateDesc>(), 48);
    // Its fields since then begin where it ended.
    assert_eq!(std::mem::offset_of!(AttentionDesc, query_rotary), 96);
    assert_eq!(size_of::<AttentionDesc>(), 272);
    assert_eq!(std::mem::offset_of!(AttentionBackwardDesc, rotary), 104);
    assert_eq!(size_of::<AttentionBackwardDesc>(), 112);
    assert_eq!(size_of::<KvCache>(), 216);
    assert_eq!(size_of::<CacheRotaryDesc>(), 40);
    assert_eq!(size_of::<AppendDesc>(), 48);
    assert_eq!(size_of::<DecodeDesc>(), 64);
    assert_eq!(size_of::<PrefillDesc>(), 56);
    assert_eq!(size_of::<RerotateCacheDesc>(), 32);
}

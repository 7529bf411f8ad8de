//! Input that can't be used: one line names the file and what is wrong, and no file is left.

use std::fs;

use candle_core::quantized::gguf_file::Value;
use longrope::scaling::{Geometry, RopeConfig, Scaling};

use super::command::{Dir, config, json, longrope, tiny};
use super::tiny_gguf::Gguf;

#[test]
fn files_of_no_known_format_are_named() {
    let dir = Dir::new()
        .with("empty", b"")
        .with("text", b"factors")
        .with("broken.json", b"{\"rope_scaling\": ")
        .with("other.json", b"{\"head_dim\": 64}")
        .with("short.csv", b"1.0\n2.0\n")
        .with("word.csv", b"1.0\nx\n")
        .with("good.csv", "1.5\n".repeat(32).as_bytes())
        .with("a.json", &json(&config(longrope())))
        .with("bad-schedule.json", b"{\"buckets\": []}");
    let model = tiny();
    for (from, expected) in [
        ("missing", "missing: can't be read: No such file".to_owned()),
        ("empty", "empty: of no known format".to_owned()),
        ("text", "text: of no known format".to_owned()),
        ("broken.json", "broken.json: not valid JSON: EOF".to_owned()),
        ("other.json", "other.json: max_position_embeddings: missing".to_owned()),
        ("bad-schedule.json", "bad-schedule.json: format: missing".to_owned()),
        ("2048=a.json", "2048=a.json: a Hugging Face configuration has its own length".to_owned()),
        ("good.csv", "good.csv: a CSV file does not tell its length; expected TOKENS=good.csv".to_owned()),
        ("2048=short.csv", "short.csv: csv: 2 values is not valid; expected 32".to_owned()),
        ("2048=word.csv", "word.csv: csv line 2, column 1: \"x\" is not valid".to_owned()),
        ("0=good.csv", "good.csv: max_position_embeddings: 0 is not valid".to_owned()),
    ] {
        let found = dir.refused(&format!("--from {from} --model {model} --to hf-new --output out"));
        assert!(found.starts_with(&expected), "{from}: {found}");
    }
    let found = dir.refused("--from 2048=good.csv --to hf-new --output out");
    assert!(found.starts_with("2048=good.csv: a CSV file holds factors only; expected --model"), "{found}");
    let layers: String = (0..2).map(|layer| vec![format!("1.{layer}"); 32].join(",") + "\n").collect();
    let dir = Dir::new().with("layers.csv", layers.as_bytes());
    let found = dir.refused(&format!("--from 2048=layers.csv --model {model} --to hf-new --output out"));
    assert!(found.starts_with("layers.csv: 2 sets, one a layer, is not supported"), "{found}");
}

/// A directory with factors and a GGUF model.
fn with_model(change: impl Fn(&mut Vec<u8>)) -> Dir {
    let dir = Dir::new().with("a.json", &json(&config(longrope())));
    let path = Gguf::tiny().write(&dir.path("")).canonicalize().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
    dir
}

const TO_GGUF: &str = "--from a.json --to gguf --model model.gguf --output out.gguf";

#[test]
fn a_gguf_file_that_is_cut_off_or_damaged_is_named() {
    for (bytes, expected) in [
        (3, "model.gguf: not a GGUF file"),
        (6, "model.gguf: cut off: the version needs 4 bytes from byte 4 on, and the file has 6"),
        (100, "model.gguf: 12 metadata entries is not valid; the file has only 100 bytes"),
        (2000, "model.gguf: cut off: "),
        (60_000, "model.gguf: "),
        (11_000_000, "model.gguf: "),
    ] {
        let dir = with_model(|file| file.truncate(bytes));
        let found = dir.refused(TO_GGUF);
        assert!(found.starts_with(expected), "{bytes}: {found}");
        if bytes > 50_000 {
            assert!(found.contains("beyond the end of the file") && found.contains(".weight: "), "{found}");
        }
    }
    let version = with_model(|file| file[4] = 9).refused(TO_GGUF);
    assert_eq!(version, "model.gguf: GGUF version 9 is not supported; expected 2 or 3");
    let count = with_model(|file| file[8..16].fill(0x7f)).refused(TO_GGUF);
    assert!(count.starts_with("model.gguf: 9187201950435737471 tensors is not valid"), "{count}");
    let other = with_model(|file| file[..4].copy_from_slice(b"ELF!")).refused(TO_GGUF);
    assert_eq!(other, "model.gguf: not a GGUF file");
    // The length of the first key.
    let key = with_model(|file| file[24..32].fill(0x7f)).refused(TO_GGUF);
    assert!(key.starts_with("model.gguf: cut off: the name of a metadata entry needs "), "{key}");
}

#[test]
fn a_tensor_type_of_unknown_size_is_named() {
    let dir = with_model(|file| {
        // Two dimensions of 8 bytes and the type follow the name and their number.
        let name = b"token_embd.weight";
        let at = file.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 20;
        file[at..at + 4].copy_from_slice(&99u32.to_le_bytes());
    });
    let found = dir.refused(TO_GGUF);
    let expected = "model.gguf: token_embd.weight: tensor type 99 is not supported";
    assert!(found.starts_with(expected), "{found}");
}

#[test]
fn factors_of_another_model_are_refused() {
    let dir = with_model(|_| ());
    let other = |geometry: Geometry| json(&RopeConfig::new(geometry, 2048, Scaling::Default).unwrap());
    fs::write(dir.path("a.json"), other(Geometry::new(32, 32, 1e4, 2048).unwrap())).unwrap();
    assert_eq!(dir.refused(TO_GGUF), "model.gguf: 16 pairs is not valid; expected 32, those of the model");
    fs::write(dir.path("a.json"), other(Geometry::new(64, 64, 5e5, 2048).unwrap())).unwrap();
    assert_eq!(
        dir.refused(TO_GGUF),
        "model.gguf: rope_theta: 500000 is not valid; expected 10000, that of the model"
    );
    fs::write(dir.path("a.json"), other(Geometry::new(32, 32, 1e4, 2048).unwrap())).unwrap();
    let found = dir.refused(&format!("--from a.json --to hf-new --model {} --output out", tiny()));
    assert_eq!(found, "head_dim: 32 is not valid; expected 64, that of --model");
}

#[test]
fn what_gguf_and_its_readers_can_not_take_is_named() {
    let dir = with_model(|_| ());
    assert!(dir.refused("--from a.json --to gguf --output out.gguf").starts_with("--model: missing"));
    let found = dir.refused("--from a.json --to gguf --model model.gguf --output model.gguf");
    assert_eq!(found, "--output: model.gguf is the model itself; expected another file");
    let gguf = Gguf::tiny().with("general.architecture", Value::String("qwen2".into()));
    gguf.write(&dir.path(""));
    let found = dir.refused(TO_GGUF);
    assert!(
        found.starts_with("model.gguf: general.architecture: \"qwen2\" is not supported; expected one"),
        "{found}"
    );
    let gguf = Gguf::tiny().with("split.count", Value::U16(3));
    gguf.write(&dir.path(""));
    let found = dir.refused(TO_GGUF);
    assert_eq!(found, "model.gguf: split.count: 3 is not supported; expected a model in one file");
    let gguf = Gguf::tiny().with("general.alignment", Value::U32(12));
    gguf.write(&dir.path(""));
    assert!(dir.refused(TO_GGUF).starts_with("model.gguf: general.alignment: 12 is not valid"));
    let arguments = "--from a.json --to onnx --output out";
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_convert"))
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("invalid value 'onnx'"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_the_old_file_stays() {
    let dir = with_model(|_| ());
    fs::write(dir.path("out.gguf"), "precious").unwrap();
    // Every byte written to it is one too many.
    std::os::unix::fs::symlink("/dev/full", dir.path("out.gguf.new")).unwrap();
    let found = dir.refused(TO_GGUF);
    assert!(found.contains("out.gguf: can't be written: No space left"), "{found}");
    assert!(!dir.path("out.gguf.new").exists());
    assert_eq!(dir.read("out.gguf"), "precious");
}

//! The device code's arithmetic, compiled for the host and loaded.

use std::ffi::{OsString, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use libloading::Library;

/// The C++ compiler: `CXX`, or `c++`.
fn compiler() -> OsString {
    std::env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

/// Whether there is a C++ compiler.
pub fn has_compiler() -> bool {
    Command::new(compiler()).arg("--version").output().is_ok()
}

/// The library, compiled once a run.
static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("device_arithmetic.so");
    let compiler = compiler();
    let output = Command::new(&compiler)
        // Without contraction: an fma is where the source says so, as on the device.
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-I"])
        .arg(root.join("cuda/include"))
        .arg(root.join("tests/device_arithmetic/wrappers.cpp"))
        .arg("-o")
        .arg(&library)
        .output()
        .unwrap_or_else(|error| panic!("these tests need a C++ compiler; {}: {error}", compiler.display()));
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{report}", compiler.display());
    // SAFETY: loading the library runs no code of ours, and only libc's and libm's constructors beside it.
    unsafe { Library::new(&library) }.expect("a library that can be loaded")
});

/// Calls a function of wrappers.cpp, whose signature must be the given one.
macro_rules! call {
    ($name:literal ( $($argument:expr => $type:ty),* ) -> $result:ty) => {{
        // SAFETY: the signature is that of the function in wrappers.cpp; the pointers that callers pass are to memory
        // that is as large as the function reads or writes.
        unsafe {
            let function: libloading::Symbol<unsafe extern "C" fn($($type),*) -> $result> =
                LIBRARY.get($name).expect("a function of wrappers.cpp");
            function($($argument),*)
        }
    }};
}

/// How an angle is computed, by the numbers of `Arithmetic` in wrappers.cpp.
#[derive(Debug, Clone, Copy)]
pub enum Arithmetic {
    Double,
    Float,
    Parity,
}

/// How a token's position is found, by the numbers of `longrope_position_kind`.
#[derive(Debug, Clone)]
pub enum Positions {
    Offset,
    DeviceOffset(i64),
    PerSequence(Vec<i64>),
    PerToken(Vec<i64>),
    PerToken32(Vec<i32>),
}

/// How a sequence's set is chosen, by the numbers of `longrope_choice_kind`.
#[derive(Debug, Clone)]
pub enum Choices {
    Short,
    Long,
    ByLength(Vec<i64>),
    ByIndex(Vec<i32>),
}

pub fn phase_at(position: i64, step: u64) -> u64 {
    call!("host_phase_at"(position => i64, step => u64) -> u64)
}

pub fn cos_sin_of_phase(phase: u64) -> [f64; 2] {
    let mut out = [f64::NAN; 2];
    call!("host_cos_sin_of_phase"(phase => u64, out.as_mut_ptr() => *mut f64) -> ());
    out
}

pub fn cos_sin_of_phase_32(phase: u64) -> [f32; 2] {
    let mut out = [f32::NAN; 2];
    call!("host_cos_sin_of_phase_32"(phase => u64, out.as_mut_ptr() => *mut f32) -> ());
    out
}

pub fn cos_sin_of_radians(angle: f32) -> [f64; 2] {
    let mut out = [f64::NAN; 2];
    call!("host_cos_sin_of_radians"(angle => f32, out.as_mut_ptr() => *mut f64) -> ());
    out
}

pub fn pair_cos_sin(pair: i32, step: u64, gain: f64, position: i64, arithmetic: Arithmetic) -> [f32; 2] {
    assert!((0..128).contains(&pair));
    let mut out = [f32::NAN; 2];
    call!("host_pair_cos_sin"(
        pair => i32, step => u64, gain => f64, position => i64, arithmetic as i32 => i32, out.as_mut_ptr() => *mut f32
    ) -> ());
    out
}

pub fn pair_cos_sin_between(
    pair: i32,
    (from_step, from_gain): (u64, f64),
    (to_step, to_gain): (u64, f64),
    position: i64,
    shift: i64,
    arithmetic: Arithmetic,
) -> [f32; 2] {
    assert!((0..128).contains(&pair));
    let mut out = [f32::NAN; 2];
    call!("host_pair_cos_sin_between"(
        pair => i32, from_step => u64, from_gain => f64, to_step => u64, to_gain => f64, position => i64,
        shift => i64, arithmetic as i32 => i32, out.as_mut_ptr() => *mut f32
    ) -> ());
    out
}

/// The index of a sequence into a table of `count` sets, or -1.
pub fn table_index(indices: &[i32], sequence: usize, count: i64) -> i64 {
    let memory: *const c_void = indices[..=sequence].as_ptr().cast();
    call!("host_table_index"(memory => *const c_void, sequence as i64 => i64, count => i64) -> i64)
}

/// `n / divisor` as the kernels divide, by the reciprocal that the host gives them.
pub fn divide(n: u32, divisor: u32) -> u32 {
    call!("host_divide"(n => u32, (1u32 << 31).div_ceil(divisor) => u32) -> u32)
}

pub fn token_position(
    positions: &Positions,
    offset: i64,
    sequence: usize,
    length: usize,
    token: usize,
) -> i64 {
    let (kind, memory): (i32, *const c_void) = match positions {
        Positions::Offset => (0, std::ptr::null()),
        Positions::DeviceOffset(value) => (1, std::ptr::from_ref(value).cast()),
        Positions::PerSequence(values) => (2, values[..=sequence].as_ptr().cast()),
        Positions::PerToken(values) => (3, values[..(sequence + 1) * length].as_ptr().cast()),
        Positions::PerToken32(values) => (4, values[..(sequence + 1) * length].as_ptr().cast()),
    };
    call!("host_token_position"(
        kind => i32, memory => *const c_void, offset => i64, sequence as i64 => i64, length as i64 => i64,
        token as i64 => i64
    ) -> i64)
}

/// The set of a token: 0 plain, 1 short, 2 long, 3 none.
pub fn set_of_token(
    choices: &Choices,
    sequence: usize,
    original_length: i64,
    position: i64,
    first_tokens: i64,
) -> i32 {
    let (kind, memory): (i32, *const c_void) = match choices {
        Choices::Short => (0, std::ptr::null()),
        Choices::Long => (1, std::ptr::null()),
        Choices::ByLength(values) => (2, values[..=sequence].as_ptr().cast()),
        Choices::ByIndex(values) => (3, values[..=sequence].as_ptr().cast()),
    };
    call!("host_set_of_token"(
        kind => i32, memory => *const c_void, sequence as i64 => i64, original_length => i64, position => i64,
        first_tokens => i64
    ) -> i32)
}

/// The keys, from the first to before the last, that query `row` of a run sees, of which the first stands at `position`. A
/// window of 0 is none.
pub fn visible(
    position: i64,
    causal: bool,
    window: i64,
    key_offset: i64,
    row: i64,
    keys: i64,
) -> std::ops::Range<i64> {
    let mut out = [i64::MIN; 2];
    call!("host_visible"(
        position => i64, i32::from(causal) => i32, window => i64, key_offset => i64, row => i64, keys => i64,
        out.as_mut_ptr() => *mut i64
    ) -> ());
    out[0]..out[1]
}

/// The queries of a run of so many, from the first to before the last, that see one of `count` keys from `key` on.
pub fn seeing(
    (position, causal, window, key_offset): (i64, bool, i64, i64),
    key: i64,
    count: i64,
    queries: i64,
) -> std::ops::Range<i64> {
    let mut out = [i64::MIN; 2];
    call!("host_seeing"(
        position => i64, i32::from(causal) => i32, window => i64, key_offset => i64, key => i64, count => i64,
        queries => i64, out.as_mut_ptr() => *mut i64
    ) -> ());
    out[0]..out[1]
}

/// The columns that row 0 of a tile sees, from query `query` of a run and from key `key` on, with rows of queries or of keys; and
/// whether rows 16 to 48 see all of 64 columns, or none.
pub fn band(
    (position, causal, window, key_offset): (i64, bool, i64, i64),
    query: i64,
    key: i64,
    by_keys: bool,
) -> (std::ops::Range<i32>, bool, bool) {
    let mut out = [i32::MIN; 4];
    call!("host_band"(
        position => i64, i32::from(causal) => i32, window => i64, key_offset => i64, query => i64, key => i64,
        i32::from(by_keys) => i32, out.as_mut_ptr() => *mut i32
    ) -> ());
    (out[0]..out[1], out[2] != 0, out[3] != 0)
}

/// Rows of a gradient that are staged, `[rows, head_dim]`, and how they are rotated and written.
pub struct StagedRows<'a> {
    pub form: usize,
    /// Of the plain, the short and the long set.
    pub steps: &'a [u64],
    pub gains: [f64; 3],
    pub interleaved: bool,
    pub first_tokens: i64,
    /// 1 short, 2 long.
    pub set: i32,
    /// Of the first row.
    pub position: i64,
    pub from: &'a [f32],
    pub head_dim: usize,
    /// Rows that exist.
    pub there: usize,
    /// Where they are written.
    pub first_row: usize,
    pub accumulate: bool,
}

/// The padded head dimension of a form of staging, and its rows.
pub fn staged_form(form: usize) -> (usize, usize) {
    [(128, 8), (64, 64), (96, 64), (256, 32)][form]
}

/// Stages rows, and writes them as the kernels do.
pub fn write_rotated(staged: &StagedRows<'_>, out: &mut [f32]) {
    let rows = staged_form(staged.form).1;
    assert_eq!(staged.from.len(), rows * staged.head_dim);
    assert!(out.len() >= (staged.first_row + staged.there) * staged.head_dim);
    let pairs = staged.steps.len() / 3;
    call!("host_write_rotated"(
        staged.form as i32 => i32, staged.steps.as_ptr() => *const u64, staged.gains.as_ptr() => *const f64,
        pairs as i32 => i32, i32::from(staged.interleaved) => i32, staged.first_tokens => i64, staged.set => i32,
        staged.position => i64, staged.from.as_ptr() => *const f32, staged.head_dim as i32 => i32,
        staged.there as i32 => i32, out.as_mut_ptr() => *mut f32, staged.first_row as i64 => i64,
        i32::from(staged.accumulate) => i32
    ) -> ())
}

//! Configurations: between a config.json, rescale factors, frequencies and factor sets. No GPU is asked for.

use std::ffi::c_char;

use longrope::scaling::hf::Generation;
use longrope::scaling::{
    Angles as Source, ConfigError, FactorSet, FactorSets, Geometry, LongRope, RopeConfig, Scaling,
};

use crate::abi::{Angles, Status};
use crate::arguments::{self, Sized32, value};
use crate::config_abi::{ConfigInfo, Factors, JsonSpelling};
use crate::status::{Failure, guard};

/// Of no larger heads is anything read.
const MAX_PAIRS: i64 = 1 << 13;

// SAFETY: as the trait asks; numbers and pointers may be zero.
unsafe impl Sized32 for Factors {
    const FIRST_SIZE: usize = 72;
}

// SAFETY: as above.
unsafe impl Sized32 for ConfigInfo {
    const FIRST_SIZE: usize = 56;
}

/// A configuration from the text of a config.json.
///
/// # Safety
/// `json` is null or valid for `json_bytes` bytes; `config` is null or valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_from_json(
    json: *const c_char,
    json_bytes: usize,
    config: *mut *mut RopeConfig,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { arguments::result("config", config) }?;
        if json.is_null() {
            return Err(Failure::null("json", "the text of a config.json"));
        }
        if isize::try_from(json_bytes).is_err() {
            return Err(Failure::argument("json_bytes", json_bytes, "the length of the text in bytes"));
        }
        // SAFETY: valid by this function's contract, and no longer than a slice may be.
        let text = unsafe { std::slice::from_raw_parts(json.cast::<u8>(), json_bytes) };
        let text = std::str::from_utf8(text)
            .map_err(|error| ConfigError::Syntax { format: "JSON", reason: error.to_string() })?;
        let made = RopeConfig::from_hf_json(text)?;
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { config.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// A configuration of LongRoPE from its factors.
///
/// # Safety
/// `factors` is null or valid for its size, and its arrays are null or valid for its number of pairs; `config` is null
/// or valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_from_factors(
    factors: *const Factors,
    config: *mut *mut RopeConfig,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { arguments::result("config", config) }?;
        // SAFETY: as above.
        let given = unsafe { arguments::read("factors", factors) }?;
        // SAFETY: as above.
        let made = unsafe { from_factors(&given) }?;
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { config.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// # Safety
/// The arrays are null or valid for the number of pairs.
unsafe fn from_factors(given: &Factors) -> Result<RopeConfig, Failure> {
    if !(1..=MAX_PAIRS).contains(&given.pairs) {
        return Err(Failure::argument("factors.pairs", given.pairs, format!("1 to {MAX_PAIRS}")));
    }
    let pairs = given.pairs as usize;
    let head_dim = match arguments::size("factors.head_dim", i64::from(given.head_dim))? {
        0 => 2 * pairs,
        some => some,
    };
    let original = arguments::count("factors.original_length", given.original_length)?;
    let max_length = arguments::count("factors.max_length", given.max_length)?;
    let theta = if given.theta == 0.0 { 10_000.0 } else { given.theta };
    let array = |name: &str, array: *const f64| -> Result<Vec<f64>, Failure> {
        if !array.cast::<u8>().addr().is_multiple_of(align_of::<f64>()) {
            let found = format!("address {:#x}", array.addr());
            return Err(Failure::argument(name, found, format!("a multiple of {}", align_of::<f64>())));
        }
        // SAFETY: not null by the callers, aligned, and valid by this function's contract.
        Ok(unsafe { std::slice::from_raw_parts(array, pairs) }.to_vec())
    };
    let short_factor = match given.short_factors.is_null() {
        true => vec![1.0; pairs],
        false => array("factors.short_factors", given.short_factors)?,
    };
    if given.long_factors.is_null() {
        return Err(Failure::null("factors.long_factors", "a factor for each pair"));
    }
    let long_factor = array("factors.long_factors", given.long_factors)?;
    let geometry = Geometry::new(head_dim, 2 * pairs, theta, original)?;
    if max_length < original {
        let expected = format!("at least original_length ({original})");
        return Err(Failure::argument("factors.max_length", max_length, expected));
    }
    let scaling = Scaling::LongRope(LongRope {
        short_factor,
        long_factor,
        factor: max_length as f64 / original as f64,
        attention_factor: (given.attention_factor != 0.0).then_some(given.attention_factor),
        first_tokens: arguments::count("factors.first_tokens", given.first_tokens)?,
    });
    Ok(RopeConfig::new(geometry, max_length, scaling)?)
}

/// Frees a configuration.
///
/// # Safety
/// `config` is null, or was made here, is in use by no other call, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_destroy(config: *mut RopeConfig) {
    // Nothing here fails, and a panic in the destructor stops in the guard.
    guard(|| {
        if !config.is_null() {
            // SAFETY: made by `Box::into_raw`, and handed back once, by this function's contract.
            drop(unsafe { Box::from_raw(config) });
        }
        Ok(())
    });
}

/// # Safety
/// `config` is null, or a configuration that outlives `'a`.
unsafe fn borrow<'a>(config: *const RopeConfig) -> Result<&'a RopeConfig, Failure> {
    // SAFETY: by this function's contract.
    unsafe { config.as_ref() }.ok_or_else(|| Failure::null("config", "a configuration made by longrope"))
}

/// What a configuration says beside its frequencies.
///
/// # Safety
/// `config` is null or a configuration; `info` is null, or valid for as many bytes as its first field says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_info_get(
    config: *const RopeConfig,
    info: *mut ConfigInfo,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let config = unsafe { borrow(config) }?;
        // SAFETY: as above. It is read for its size.
        let asked = unsafe { arguments::read("info", info) }?;
        let geometry = config.geometry();
        let length = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let found = ConfigInfo {
            struct_size: asked.struct_size,
            head_dim: i32::try_from(geometry.head_dim()).unwrap_or(i32::MAX),
            pairs: geometry.pairs() as i64,
            theta: geometry.theta(),
            original_length: length(geometry.original_length()),
            max_length: length(config.max_length()),
            attention_factor: config.attention_factor(),
            first_tokens: length(config.first_tokens()),
        };
        let bytes = (asked.struct_size as usize).min(size_of::<ConfigInfo>());
        // SAFETY: both are valid for the smaller of the two sizes.
        unsafe { std::ptr::copy_nonoverlapping((&raw const found).cast::<u8>(), info.cast::<u8>(), bytes) };
        Ok(())
    })
}

/// The frequencies at a length.
///
/// # Safety
/// `config` is null or a configuration; `frequencies` is null or valid for writing `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_frequencies(
    config: *const RopeConfig,
    length: i64,
    frequencies: *mut f64,
    count: i64,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let config = unsafe { borrow(config) }?;
        let found = config.frequencies(length_or_maximum(config, length)?);
        // SAFETY: as above.
        unsafe { write("frequencies", frequencies, count, &found) }
    })
}

/// The divisors of the frequencies at a length.
///
/// # Safety
/// As [`longrope_config_frequencies`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_factors(
    config: *const RopeConfig,
    length: i64,
    factors: *mut f64,
    count: i64,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let config = unsafe { borrow(config) }?;
        let length = length_or_maximum(config, length)?;
        let found: Vec<f64> = match config.scaling() {
            // As they were given: a quotient of quotients would be off in the last bit.
            Scaling::LongRope(longrope) if length > config.geometry().original_length() => {
                longrope.long_factor.clone()
            }
            Scaling::LongRope(longrope) => longrope.short_factor.clone(),
            _ => {
                let plain = config.geometry().frequencies();
                plain.iter().zip(config.frequencies(length)).map(|(plain, scaled)| plain / scaled).collect()
            }
        };
        // SAFETY: as above.
        unsafe { write("factors", factors, count, &found) }
    })
}

/// Factor sets of a configuration: those of `longrope_factor_sets_from_json` from its text.
///
/// # Safety
/// `config` is null or a configuration; `sets` is null or valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_from_config(
    config: *const RopeConfig,
    length: i64,
    angles: i32,
    sets: *mut *mut FactorSets,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { arguments::result("sets", sets) }?;
        // SAFETY: as above.
        let config = unsafe { borrow(config) }?;
        let angles = value!(Angles, "angles", angles)?;
        let length = length_or_maximum(config, length)?;
        let made = match angles {
            Angles::Exact => config.factor_sets(length)?,
            Angles::Parity => config.parity_sets(length)?,
            Angles::ExactOfF32 => exact_of(&config.parity_sets(length)?)?,
        };
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { sets.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// The exact phase of the frequencies that sets in parity hold.
fn exact_of(parity: &FactorSets) -> Result<FactorSets, ConfigError> {
    let exact = |set: &FactorSet| match set.angles() {
        Source::Parity(frequencies) => FactorSet::exact_from_f32(frequencies, f64::from(set.gain())),
        Source::Exact(_) => Ok(set.clone()),
    };
    FactorSets::new(
        exact(parity.plain())?,
        exact(parity.short())?,
        exact(parity.long())?,
        parity.original_length(),
        parity.first_tokens(),
    )
}

/// A sequence's length, where 0 is the longest.
fn length_or_maximum(config: &RopeConfig, length: i64) -> Result<u64, Failure> {
    Ok(match arguments::count("length", length)? {
        0 => config.max_length(),
        some => some,
    })
}

/// Hands out numbers, of which the caller must know how many there are.
///
/// # Safety
/// `out` is null or valid for writing `count` numbers.
unsafe fn write(name: &str, out: *mut f64, count: i64, found: &[f64]) -> Result<(), Failure> {
    if usize::try_from(count).ok() != Some(found.len()) {
        return Err(Failure::argument("count", count, format!("{}, the number of pairs", found.len())));
    }
    arguments::address(name, out, align_of::<f64>(), "where to put the numbers")?;
    // SAFETY: not null, aligned, and valid for so many by this function's contract.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), out, found.len()) };
    Ok(())
}

/// The fields of a config.json.
///
/// # Safety
/// `config` is null or a configuration; `json` is null or valid for writing `capacity` bytes; `json_bytes` is null or
/// valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_config_to_json(
    config: *const RopeConfig,
    spelling: i32,
    json: *mut c_char,
    capacity: usize,
    json_bytes: *mut usize,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        let config = unsafe { borrow(config) }?;
        let generation = match value!(JsonSpelling, "spelling", spelling)? {
            JsonSpelling::RopeScaling => Generation::RopeScaling,
            JsonSpelling::RopeParameters => Generation::RopeParameters,
        };
        if json_bytes.is_null() {
            return Err(Failure::null("json_bytes", "where to put the length of the text"));
        }
        let text = format!("{:#}\n", config.to_hf(generation));
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { json_bytes.write(text.len()) };
        if json.is_null() && capacity == 0 {
            return Ok(());
        }
        if json.is_null() {
            return Err(Failure::null("json", "where to put the text, or a capacity of 0"));
        }
        if capacity <= text.len() {
            let expected = format!("at least {}: the text and a final zero", text.len() + 1);
            return Err(Failure::argument("capacity", capacity, expected));
        }
        // SAFETY: not null, and valid for more bytes than these, by this function's contract.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), json.cast::<u8>(), text.len());
            json.add(text.len()).write(0);
        }
        Ok(())
    })
}

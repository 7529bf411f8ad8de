//! Factor sets.

use std::ffi::c_char;
use std::fmt::Display;

use longrope::scaling::{ConfigError, FactorSet, FactorSets, RopeConfig, Scaling, phase_step};

use crate::abi::{Angles, Frequencies, Status};
use crate::arguments::{self, value};
use crate::status::{Failure, guard};

/// Larger heads are refused by every operation.
const MAX_PAIRS: i64 = 1 << 19;

/// Factor sets of a Hugging Face configuration.
///
/// # Safety
/// `json` is null or valid for `json_bytes` bytes; `sets` is null or valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_from_json(
    json: *const c_char,
    json_bytes: usize,
    length: i64,
    angles: i32,
    sets: *mut *mut FactorSets,
) -> Status {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { arguments::result("sets", sets) }?;
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
        let angles = value!(Angles, "angles", angles)?;
        let length = arguments::count("length", length)?;
        let config = RopeConfig::from_hf_json(text)?;
        let length = if length == 0 { config.max_length() } else { length };
        let made = match angles {
            Angles::Exact => config.factor_sets(length)?,
            Angles::Parity => config.parity_sets(length)?,
            Angles::ExactOfF32 => exact_of_f32(&config, length)?,
        };
        // SAFETY: checked not to be null, and valid by this function's contract.
        unsafe { sets.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// The exact phase of the inverse frequencies that parity has.
fn exact_of_f32(config: &RopeConfig, length: u64) -> Result<FactorSets, ConfigError> {
    let (geometry, gain) = (config.geometry(), config.attention_factor());
    let original = geometry.original_length();
    let plain = RopeConfig::new(*geometry, config.max_length(), Scaling::Default)?;
    let long = config.inverse_frequencies_f32(length.max(original.saturating_add(1)));
    FactorSets::new(
        FactorSet::exact_from_f32(&plain.inverse_frequencies_f32(original), 1.0)?,
        FactorSet::exact_from_f32(&config.inverse_frequencies_f32(original), gain)?,
        FactorSet::exact_from_f32(&long, gain)?,
        original,
        config.first_tokens(),
    )
}

/// Factor sets of frequencies in f64.
///
/// # Safety
/// `frequencies` is null or valid for its size, and its arrays are null or valid for its number of pairs; `sets` is null or
/// valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_from_frequencies(
    frequencies: *const Frequencies<f64>,
    sets: *mut *mut FactorSets,
) -> Status {
    // SAFETY: by this function's contract.
    guard(|| unsafe { from_frequencies(frequencies, sets) })
}

/// Factor sets of frequencies in f32.
///
/// # Safety
/// As [`longrope_factor_sets_from_frequencies`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_from_frequencies_f32(
    frequencies: *const Frequencies<f32>,
    sets: *mut *mut FactorSets,
) -> Status {
    // SAFETY: by this function's contract.
    guard(|| unsafe { from_frequencies(frequencies, sets) })
}

/// # Safety
/// As [`longrope_factor_sets_from_frequencies`].
unsafe fn from_frequencies<T: Copy + Into<f64>>(
    frequencies: *const Frequencies<T>,
    sets: *mut *mut FactorSets,
) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    unsafe { arguments::result("sets", sets) }?;
    // SAFETY: as above.
    let given = unsafe { arguments::read("frequencies", frequencies) }?;
    let angles = value!(Angles, "angles", given.angles)?;
    if !(1..=MAX_PAIRS).contains(&given.pairs) {
        return Err(Failure::argument("pairs", given.pairs, format!("1 to {MAX_PAIRS}")));
    }
    let set = |name: &str, array: *const T, gain_name: &str, gain: f64| {
        // SAFETY: by this function's contract; the number of pairs was checked.
        let widened = unsafe { widen(name, array, given.pairs as usize) }?;
        factor_set(angles, name, &widened, gain_name, gain)
    };
    let or = |gain: f64, default: f64| if gain == 0.0 { default } else { gain };
    let short_gain = or(given.short_gain, 1.0);
    let short = set("short_frequencies", given.short_frequencies, "short_gain", short_gain)?;
    let first_tokens = arguments::count("first_tokens", given.first_tokens)?;
    let plain = match given.plain.is_null() && first_tokens == 0 {
        true => short.clone(), // never used
        false => set("plain", given.plain, "plain", 1.0)?,
    };
    let original_length = arguments::count("original_length", given.original_length)?;
    let made = match given.long_frequencies.is_null() {
        true if given.long_gain != 0.0 => {
            return Err(Failure::null("long_frequencies", "frequencies, since long_gain is set"));
        }
        true if original_length != 0 => {
            return Err(Failure::null("long_frequencies", "frequencies, since original_length is set"));
        }
        true => FactorSets::new(plain, short.clone(), short, u64::MAX, first_tokens)?,
        false if original_length == 0 => {
            return Err(Failure::argument(
                "original_length",
                0,
                "at least 1, since long_frequencies are set",
            ));
        }
        false => {
            let long_gain = or(given.long_gain, short_gain);
            let long = set("long_frequencies", given.long_frequencies, "long_gain", long_gain)?;
            FactorSets::new(plain, short, long, original_length, first_tokens)?
        }
    };
    // SAFETY: checked not to be null, and valid by this function's contract.
    unsafe { sets.write(Box::into_raw(Box::new(made))) };
    Ok(())
}

/// An array of the caller's in f64.
///
/// # Safety
/// `array` is null or valid for `pairs` elements.
unsafe fn widen<T: Copy + Into<f64>>(name: &str, array: *const T, pairs: usize) -> Result<Vec<f64>, Failure> {
    arguments::address(name, array, align_of::<T>(), "an array of frequencies")?;
    // SAFETY: not null, aligned, and valid by this function's contract.
    let array = unsafe { std::slice::from_raw_parts(array, pairs) };
    Ok(array.iter().map(|&frequency| frequency.into()).collect())
}

fn factor_set(
    angles: Angles,
    name: &str,
    frequencies: &[f64],
    gain_name: &str,
    gain: f64,
) -> Result<FactorSet, Failure> {
    let renamed = |name: String, error: ConfigError| match error {
        ConfigError::Invalid { found, expected, .. } => Failure::argument(name, found, expected),
        other => other.into(),
    };
    for (i, &frequency) in frequencies.iter().enumerate() {
        let used = if angles == Angles::Exact { frequency } else { f64::from(frequency as f32) };
        phase_step(used).map_err(|error| renamed(format!("{name}[{i}]"), error))?;
    }
    let narrow = || frequencies.iter().map(|&frequency| frequency as f32).collect::<Vec<_>>();
    let made = match angles {
        Angles::Exact => FactorSet::exact(frequencies, gain),
        Angles::Parity => FactorSet::parity(&narrow(), gain),
        Angles::ExactOfF32 => FactorSet::exact_from_f32(&narrow(), gain),
    };
    // The frequencies are right, so it is the gain.
    made.map_err(|error| renamed(gain_name.to_owned(), error))
}

/// Frees factor sets.
///
/// # Safety
/// `sets` is null, or was made by a function of this module, is in use by no other call, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_destroy(sets: *mut FactorSets) {
    // Nothing here fails, and a panic in the destructor stops in the guard.
    guard(|| {
        if !sets.is_null() {
            // SAFETY: made by `Box::into_raw`, and handed back once, by this function's contract.
            drop(unsafe { Box::from_raw(sets) });
        }
        Ok(())
    });
}

/// How many pairs turn.
///
/// # Safety
/// `sets` is null, or was made by a function of this module.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn longrope_factor_sets_pairs(sets: *const FactorSets) -> i64 {
    // SAFETY: by this function's contract.
    unsafe { sets.as_ref() }.map_or(0, |sets| sets.pairs() as i64)
}

/// The sets that an argument points to.
///
/// # Safety
/// `sets` is null, or factor sets that outlive `'a`.
pub unsafe fn borrow<'a>(name: impl Display, sets: *const FactorSets) -> Result<&'a FactorSets, Failure> {
    // SAFETY: by this function's contract.
    unsafe { sets.as_ref() }
        .ok_or_else(|| Failure::null(name, "factor sets made by a longrope_factor_sets_from_ function"))
}

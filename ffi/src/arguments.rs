//! Reading what a caller points to.

use std::ffi::c_void;
use std::fmt::{self, Display};

use longrope::ops::Workspace;

use crate::abi::{
    AppendDesc, AttentionBackwardDesc, AttentionDesc, CacheRotaryDesc, DecodeDesc, Frequencies, KvCache,
    PrefillDesc, RerotateCacheDesc, RerotateDesc, RotaryDesc,
};
use crate::status::Failure;

/// The name of a field in messages. It is put together only if there is one, since a launch should cost little.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a>(pub &'a str, pub &'a str);

impl Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        f.write_str(self.1)
    }
}

/// A struct of the caller's that begins with its own size and may grow at its end.
///
/// # Safety
/// The first field is `struct_size: u32`, and all-zero bytes are a valid value.
pub unsafe trait Sized32: Copy {
    /// The size it had in the first version. No caller has a smaller one.
    const FIRST_SIZE: usize;
}

// SAFETY: as the trait asks; numbers and pointers may be zero.
unsafe impl<T: Copy> Sized32 for Frequencies<T> {
    const FIRST_SIZE: usize = 72;
}

// SAFETY: as above.
unsafe impl Sized32 for RotaryDesc {
    const FIRST_SIZE: usize = 72;
}

// SAFETY: as above.
unsafe impl Sized32 for RerotateDesc {
    const FIRST_SIZE: usize = 48;
}

// SAFETY: as above.
unsafe impl Sized32 for AttentionDesc {
    const FIRST_SIZE: usize = 96;
}

// SAFETY: as above.
unsafe impl Sized32 for AttentionBackwardDesc {
    const FIRST_SIZE: usize = 104;
}

// SAFETY: as above.
unsafe impl Sized32 for KvCache {
    const FIRST_SIZE: usize = 216;
}

// SAFETY: as above.
unsafe impl Sized32 for CacheRotaryDesc {
    const FIRST_SIZE: usize = 40;
}

// SAFETY: as above.
unsafe impl Sized32 for AppendDesc {
    const FIRST_SIZE: usize = 48;
}

// SAFETY: as above.
unsafe impl Sized32 for DecodeDesc {
    const FIRST_SIZE: usize = 64;
}

// SAFETY: as above.
unsafe impl Sized32 for PrefillDesc {
    const FIRST_SIZE: usize = 56;
}

// SAFETY: as above.
unsafe impl Sized32 for RerotateCacheDesc {
    const FIRST_SIZE: usize = 32;
}

/// Copies a struct, which messages call `name`, as far as the caller's and this version's go; what the caller's lacks is zero.
///
/// # Safety
/// `pointer` is null, or valid for as many bytes as its first field says.
pub unsafe fn read<T: Sized32>(name: &str, pointer: *const T) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name, "a pointer to the struct"));
    }
    // SAFETY: the size is the first field; alignment is not assumed.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    // No sizeof ends within a word: half of a pointer would be one to anywhere.
    if size < T::FIRST_SIZE || !size.is_multiple_of(align_of::<T>()) {
        let expected = format!("the sizeof of the struct, at least {}", T::FIRST_SIZE);
        return Err(Failure::argument(Field(name, ".struct_size"), size, expected));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: both are valid for the smaller of the two sizes, and zero is valid for the rest.
    unsafe {
        let bytes = size.min(size_of::<T>());
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), bytes);
        Ok(value.assume_init())
    }
}

/// Copies a struct of a fixed size, which messages call `name`.
///
/// # Safety
/// `pointer` is null or valid for reading.
pub unsafe fn read_all<T: Copy>(name: &str, pointer: *const T) -> Result<T, Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name, "a pointer to the struct"));
    }
    // SAFETY: by this function's contract; alignment is not assumed.
    Ok(unsafe { pointer.read_unaligned() })
}

/// An enum's value by its number, or an error that lists what there is.
macro_rules! value {
    ($type:ty, $name:expr, $number:expr) => {
        <$type>::from_number($number).ok_or_else(|| {
            let known: Vec<String> =
                <$type>::ALL.iter().map(|(value, name)| format!("{name} ({})", *value as i32)).collect();
            Failure::argument($name, $number, known.join(" or "))
        })
    };
}
pub(crate) use value;

/// Where a result goes: not null, and for now null itself.
///
/// # Safety
/// `out` is null or valid for writing.
pub unsafe fn result<T>(name: &str, out: *mut *mut T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::null(name, "where to put the result"));
    }
    // SAFETY: valid by this function's contract.
    unsafe { out.write(std::ptr::null_mut()) };
    Ok(())
}

/// Hands out the size of the scratch memory.
///
/// # Safety
/// `bytes` is null or valid for writing.
pub unsafe fn workspace_size(bytes: *mut usize, size: usize) -> Result<(), Failure> {
    if bytes.is_null() {
        return Err(Failure::null("bytes", "where to put the size"));
    }
    // SAFETY: by this function's contract.
    unsafe { bytes.write(size) };
    Ok(())
}

/// The scratch memory of a launch. The operation checks it. Where there are no bytes, no address is looked at.
pub fn workspace(address: *mut c_void, bytes: usize) -> Workspace {
    match bytes {
        0 => Workspace::NONE,
        _ => Workspace { address: address.expose_provenance() as u64, bytes },
    }
}

/// A length or count that is not negative.
pub fn count(name: impl Display, value: i64) -> Result<u64, Failure> {
    u64::try_from(value).map_err(|_| Failure::argument(name, value, "0 or more"))
}

/// The same as a size in memory.
pub fn size(name: impl Display, value: i64) -> Result<usize, Failure> {
    // Where addresses have 32 bits, no memory holds more.
    Ok(usize::try_from(count(name, value)?).unwrap_or(usize::MAX))
}

/// Whether whole numbers of so many bits are `int64_t`, and not `int32_t`.
pub fn is_wide(name: impl Display, bits: i32) -> Result<bool, Failure> {
    match bits {
        0 | 32 => Ok(false),
        64 => Ok(true),
        other => Err(Failure::argument(name, other, "32 (or 0) or 64")),
    }
}

/// An address that may be null, then for none. Whether it is aligned, the operation checks.
pub fn optional<T>(pointer: *const T) -> Option<u64> {
    (!pointer.is_null()).then(|| pointer.expose_provenance() as u64)
}

/// Checks that no flag is set.
pub fn no_flags(name: impl Display, flags: u32) -> Result<(), Failure> {
    match flags {
        0 => Ok(()),
        other => Err(Failure::argument(name, other, "0, since no flag is defined")),
    }
}

/// Checks an address of elements of `size` bytes.
pub fn address<T>(
    name: impl Display,
    pointer: *const T,
    size: usize,
    expected: &str,
) -> Result<u64, Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name, expected));
    }
    let address = pointer.expose_provenance();
    if !address.is_multiple_of(size) {
        return Err(Failure::argument(
            name,
            format!("address {address:#x}"),
            format!("a multiple of {size}"),
        ));
    }
    Ok(address as u64)
}

/// Checks that a field that the chosen kind does not read is zero.
pub fn unused(name: impl Display, is_zero: bool, kind: &str) -> Result<(), Failure> {
    match is_zero {
        true => Ok(()),
        false => Err(Failure::argument(name, "a value", format!("zero, since {kind} does not read it"))),
    }
}

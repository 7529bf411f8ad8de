//! The shared library, opened at run time as a plugin's host opens it.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use longrope::device::Context;
use longrope::scaling::{FactorSets, RopeConfig};

use crate::abi::{
    AppendDesc, AppendTensors, AttentionBackwardDesc, AttentionBackwardTensors, AttentionDesc,
    AttentionTensors, DecodeDesc, DecodeTensors, Dtype, Frequencies, KvCache, MergeParts, Positions,
    PrefillDesc, RerotateCacheDesc, RerotateDesc, RotaryDesc, Status, Tensor, TensorIo,
};
use crate::config_abi::{ConfigInfo, Factors};
use crate::library::built;

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// The functions of the header, without the prefix.
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Api {
            fn open() -> Self {
                // SAFETY: the library has no initialiser.
                let library = unsafe { libloading::Library::new(&built().shared) }.unwrap();
                // It stays open.
                let library = Box::leak(Box::new(library));
                Self {
                    $(
                        // SAFETY: the type is that of the header, by the layout tests and by the eye.
                        $name: *unsafe { library.get(concat!("longrope_", stringify!($name))) }.unwrap(),
                    )*
                }
            }
        }
    };
}

functions! {
    version: fn() -> u32;
    has_device_code: fn() -> i32;
    status_string: fn(i32) -> *const c_char;
    last_error_message: fn() -> *const c_char;
    context_create: fn(i32, *mut *mut Context) -> i32;
    context_destroy: fn(*mut Context) -> ();
    config_from_json: fn(*const c_char, usize, *mut *mut RopeConfig) -> i32;
    config_from_factors: fn(*const Factors, *mut *mut RopeConfig) -> i32;
    config_destroy: fn(*mut RopeConfig) -> ();
    config_info_get: fn(*const RopeConfig, *mut ConfigInfo) -> i32;
    config_frequencies: fn(*const RopeConfig, i64, *mut f64, i64) -> i32;
    config_factors: fn(*const RopeConfig, i64, *mut f64, i64) -> i32;
    config_to_json: fn(*const RopeConfig, i32, *mut c_char, usize, *mut usize) -> i32;
    factor_sets_from_json: fn(*const c_char, usize, i64, i32, *mut *mut FactorSets) -> i32;
    factor_sets_from_config: fn(*const RopeConfig, i64, i32, *mut *mut FactorSets) -> i32;
    factor_sets_from_frequencies: fn(*const Frequencies<f64>, *mut *mut FactorSets) -> i32;
    factor_sets_from_frequencies_f32: fn(*const Frequencies<f32>, *mut *mut FactorSets) -> i32;
    factor_sets_destroy: fn(*mut FactorSets) -> ();
    factor_sets_pairs: fn(*const FactorSets) -> i64;
    rotary_supported: fn(*const RotaryDesc, *const TensorIo, usize) -> i32;
    rotary_workspace_size: fn(*const RotaryDesc, *const TensorIo, usize, *mut usize) -> i32;
    rotary_run: fn(*const Context, *const RotaryDesc, *const TensorIo, usize, *mut c_void) -> i32;
    rotary_cpu: fn(*const RotaryDesc, *const TensorIo, usize) -> i32;
    rerotate_supported: fn(*const RerotateDesc, *const TensorIo, usize) -> i32;
    rerotate_workspace_size: fn(*const RerotateDesc, *const TensorIo, usize, *mut usize) -> i32;
    rerotate_run: fn(*const Context, *const RerotateDesc, *const TensorIo, usize, *mut c_void) -> i32;
    attention_supported: fn(*const AttentionDesc, *const AttentionTensors) -> i32;
    attention_workspace_size: fn(*const AttentionDesc, *const AttentionTensors, *mut usize) -> i32;
    attention_run: fn(
        *const Context,
        *const AttentionDesc,
        *const AttentionTensors,
        *mut c_void,
        usize,
        *mut c_void
    ) -> i32;
    attention_cpu: fn(*const AttentionDesc, *const AttentionTensors) -> i32;
    attention_delta_supported: fn(*const Tensor, *const Tensor, *const Tensor) -> i32;
    attention_delta_run: fn(
        *const Context,
        *const Tensor,
        *const Tensor,
        *const Tensor,
        *mut c_void
    ) -> i32;
    attention_delta_cpu: fn(*const Tensor, *const Tensor, *const Tensor) -> i32;
    attention_backward_supported: fn(*const AttentionBackwardDesc, *const AttentionBackwardTensors) -> i32;
    attention_backward_workspace_size: fn(
        *const AttentionBackwardDesc,
        *const AttentionBackwardTensors,
        *mut usize
    ) -> i32;
    attention_backward_run: fn(
        *const Context,
        *const AttentionBackwardDesc,
        *const AttentionBackwardTensors,
        *mut c_void,
        usize,
        *mut c_void
    ) -> i32;
    attention_backward_cpu: fn(*const AttentionBackwardDesc, *const AttentionBackwardTensors) -> i32;
    merge_supported: fn(*const MergeParts, *const Tensor, *const Tensor) -> i32;
    merge_workspace_size: fn(*const MergeParts, *const Tensor, *const Tensor, *mut usize) -> i32;
    merge_run: fn(*const Context, *const MergeParts, *const Tensor, *const Tensor, *mut c_void) -> i32;
    append_supported: fn(*const AppendDesc, *const KvCache, *const AppendTensors) -> i32;
    append_workspace_size: fn(*const AppendDesc, *const KvCache, *const AppendTensors, *mut usize) -> i32;
    append_run: fn(
        *const Context,
        *const AppendDesc,
        *const KvCache,
        *const AppendTensors,
        *mut c_void
    ) -> i32;
    append_validate: fn(
        *const Context,
        *const AppendDesc,
        *const KvCache,
        *const AppendTensors,
        *mut c_void
    ) -> i32;
    decode_supported: fn(*const DecodeDesc, *const KvCache, *const DecodeTensors) -> i32;
    decode_workspace_size: fn(*const DecodeDesc, *const KvCache, *const DecodeTensors, *mut usize) -> i32;
    decode_run: fn(
        *const Context,
        *const DecodeDesc,
        *const KvCache,
        *const DecodeTensors,
        *mut c_void,
        usize,
        *mut c_void
    ) -> i32;
    decode_validate: fn(
        *const Context,
        *const DecodeDesc,
        *const KvCache,
        *const DecodeTensors,
        *mut c_void
    ) -> i32;
    prefill_supported: fn(*const PrefillDesc, *const KvCache, *const DecodeTensors) -> i32;
    prefill_workspace_size: fn(*const PrefillDesc, *const KvCache, *const DecodeTensors, *mut usize) -> i32;
    prefill_run: fn(
        *const Context,
        *const PrefillDesc,
        *const KvCache,
        *const DecodeTensors,
        *mut c_void,
        usize,
        *mut c_void
    ) -> i32;
    prefill_validate: fn(
        *const Context,
        *const PrefillDesc,
        *const KvCache,
        *const DecodeTensors,
        *mut c_void
    ) -> i32;
    rerotate_cache_supported: fn(*const RerotateCacheDesc, *const KvCache) -> i32;
    rerotate_cache_workspace_size: fn(*const RerotateCacheDesc, *const KvCache, *mut usize) -> i32;
    rerotate_cache_run: fn(*const Context, *const RerotateCacheDesc, *const KvCache, *mut c_void) -> i32;
    rerotate_cache_validate: fn(*const Context, *const RerotateCacheDesc, *const KvCache, *mut c_void) -> i32;
}

/// The library, opened once.
pub fn api() -> &'static Api {
    static API: OnceLock<Api> = OnceLock::new();
    API.get_or_init(Api::open)
}

/// A status as the library answered it.
pub fn status(number: i32) -> Status {
    Status::from_number(number).unwrap_or_else(|| panic!("{number} is no status"))
}

/// The message of this thread's last failure.
pub fn message() -> String {
    // SAFETY: never null; copied before the next call.
    unsafe { CStr::from_ptr((api().last_error_message)()) }.to_str().unwrap().to_owned()
}

/// Factor sets of the library's, freed at the end.
pub struct Sets(pub *mut FactorSets);

impl Drop for Sets {
    fn drop(&mut self) {
        // SAFETY: made by the library, and freed once.
        unsafe { (api().factor_sets_destroy)(self.0) };
    }
}

impl Sets {
    /// From the text of a configuration.
    pub fn from_json(json: &str, length: i64, angles: i32) -> Result<Self, (Status, String)> {
        let mut sets = std::ptr::dangling_mut();
        // SAFETY: the text is as long as it says; the result goes to a variable.
        let found = unsafe {
            (api().factor_sets_from_json)(json.as_ptr().cast(), json.len(), length, angles, &mut sets)
        };
        Self::check(found, sets)
    }

    /// From a configuration that is there.
    ///
    /// # Safety
    /// `config` is null or a configuration of the library's.
    pub unsafe fn from_config(
        config: *const RopeConfig,
        length: i64,
        angles: i32,
    ) -> Result<Self, (Status, String)> {
        let mut sets = std::ptr::dangling_mut();
        // SAFETY: by this function's contract; the result goes to a variable.
        let found = unsafe { (api().factor_sets_from_config)(config, length, angles, &mut sets) };
        Self::check(found, sets)
    }

    /// From frequencies in f64.
    pub fn from_frequencies(frequencies: &Frequencies<f64>) -> Result<Self, (Status, String)> {
        let mut sets = std::ptr::dangling_mut();
        // SAFETY: the tests' arrays are as long as they say.
        let found = unsafe { (api().factor_sets_from_frequencies)(frequencies, &mut sets) };
        Self::check(found, sets)
    }

    /// From frequencies in f32.
    pub fn from_frequencies_f32(frequencies: &Frequencies<f32>) -> Result<Self, (Status, String)> {
        let mut sets = std::ptr::dangling_mut();
        // SAFETY: as above.
        let found = unsafe { (api().factor_sets_from_frequencies_f32)(frequencies, &mut sets) };
        Self::check(found, sets)
    }

    fn check(found: i32, sets: *mut FactorSets) -> Result<Self, (Status, String)> {
        assert_eq!(found == 0, !sets.is_null(), "a result where there is no error, and only there");
        match status(found) {
            Status::Ok => Ok(Self(sets)),
            status => Err((status, message())),
        }
    }
}

/// Frequencies with every field at its default.
pub fn frequencies<T>(short: &[T]) -> Frequencies<T> {
    Frequencies {
        struct_size: size_of::<Frequencies<T>>() as u32,
        angles: 0,
        pairs: short.len() as i64,
        short_frequencies: short.as_ptr(),
        long_frequencies: std::ptr::null(),
        plain: std::ptr::null(),
        short_gain: 0.0,
        long_gain: 0.0,
        original_length: 0,
        first_tokens: 0,
    }
}

/// A rotation with every field at its default.
pub fn rotary(sets: &Sets) -> RotaryDesc {
    RotaryDesc {
        struct_size: size_of::<RotaryDesc>() as u32,
        pairing: 0,
        backward: 0,
        position_kind: Positions::Offset as i32,
        choice_kind: 0,
        flags: 0,
        sets: sets.0,
        position_offset: 0,
        positions: std::ptr::null(),
        choice_length: 0,
        choices: std::ptr::null(),
        status: std::ptr::null_mut(),
    }
}

/// An attention with every field at its default.
pub fn attention() -> AttentionDesc {
    AttentionDesc {
        struct_size: size_of::<AttentionDesc>() as u32,
        causal: 0,
        scale: 0.0,
        flags: 0,
        window: 0,
        query_offset: 0,
        key_offset: 0,
        sequence_kind: 0,
        index_bits: 0,
        sequences: 0,
        query_starts: std::ptr::null(),
        key_starts: std::ptr::null(),
        max_query_length: 0,
        query_offsets: std::ptr::null(),
        status: std::ptr::null_mut(),
        query_rotary: std::ptr::null(),
        max_multiprocessors: 0,
        reserved: 0,
        carry_out: NONE,
        carry_lse: NONE,
    }
}

/// A backward pass with every field at its default.
pub fn attention_backward() -> AttentionBackwardDesc {
    AttentionBackwardDesc {
        struct_size: size_of::<AttentionBackwardDesc>() as u32,
        causal: 0,
        scale: 0.0,
        flags: 0,
        window: 0,
        query_offset: 0,
        key_offset: 0,
        sequence_kind: 0,
        index_bits: 0,
        sequences: 0,
        query_starts: std::ptr::null(),
        key_starts: std::ptr::null(),
        max_query_length: 0,
        query_offsets: std::ptr::null(),
        status: std::ptr::null_mut(),
        accumulate: 0,
        reserved: 0,
        rotary: std::ptr::null(),
    }
}

/// A contiguous f32 tensor.
pub fn tensor(data: *mut f32, shape: [i64; 4]) -> Tensor {
    Tensor { data: data.cast(), dtype: Dtype::F32 as i32, shape, stride: [0; 4] }
}

/// All zero: a tensor that is left out.
pub const NONE: Tensor = IN_PLACE;

/// All zero: the output of a tensor that is rotated in place.
pub const IN_PLACE: Tensor = Tensor { data: std::ptr::null_mut(), dtype: 0, shape: [0; 4], stride: [0; 4] };

//! What the operations on a cache of keys and values share.

use longrope::Error;
use longrope::ops::{Cache, CacheChoices, CacheRotary, DeviceLengths, NewTokens, PackedTokens, PageTable};
use longrope::scaling::SetChoice;

use crate::abi::{self, CacheRotaryDesc, Choices, KvCache, Pages, Sequences};
use crate::arguments::{self, Field, value};
use crate::status::Failure;
use crate::tensor::{tensor, tensor_field};
use crate::{attention, factors, rotary};

/// Reads a cache.
///
/// # Safety
/// `cache` is null or valid for its size.
pub unsafe fn cache(cache: *const KvCache) -> Result<Cache, Failure> {
    let name = |field| Field("cache.", field);
    // SAFETY: by this function's contract.
    let given = unsafe { arguments::read("cache", cache) }?;
    arguments::no_flags(name("flags"), given.flags)?;
    let lengths = given.lengths.expose_provenance() as u64;
    Ok(Cache {
        k: tensor(&format_args!("cache.k"), &given.k)?,
        v: tensor(&format_args!("cache.v"), &given.v)?,
        pages: pages(&given)?,
        lengths: match arguments::is_wide(name("length_bits"), given.length_bits)? {
            false => DeviceLengths::I32(lengths),
            true => DeviceLengths::I64(lengths),
        },
    })
}

/// Which pages hold which sequence.
fn pages(cache: &KvCache) -> Result<Option<PageTable>, Failure> {
    let name = |field| Field("cache.", field);
    if value!(Pages, name("page_kind"), cache.page_kind)? == Pages::None {
        for (field, is_zero) in [
            ("page_table", cache.page_table.is_null()),
            ("sequences", cache.sequences == 0),
            ("table_width", cache.table_width == 0),
            ("table_stride", cache.table_stride == 0),
        ] {
            arguments::unused(name(field), is_zero, "LONGROPE_PAGES_NONE")?;
        }
        return Ok(None);
    }
    Ok(Some(PageTable {
        address: cache.page_table.expose_provenance() as u64,
        sequences: arguments::size(name("sequences"), cache.sequences)?,
        width: arguments::size(name("table_width"), cache.table_width)?,
        stride: if cache.table_stride == 0 { cache.table_width } else { cache.table_stride },
    }))
}

/// Which tokens are new, in tensors of this length.
pub fn new_tokens(tokens: &abi::NewTokens, length: usize) -> Result<NewTokens, Failure> {
    let name = |field| Field("desc.tokens.", field);
    if value!(Sequences, name("sequence_kind"), tokens.sequence_kind)? == Sequences::Dense {
        for (field, is_zero) in [
            ("index_bits", tokens.index_bits == 0),
            ("starts", tokens.starts.is_null()),
            ("most", tokens.most == 0),
        ] {
            arguments::unused(name(field), is_zero, "LONGROPE_SEQUENCES_DENSE")?;
        }
        return Ok(NewTokens::Dense);
    }
    Ok(NewTokens::Packed(PackedTokens {
        starts: tokens.starts.expose_provenance() as u64,
        kind: attention::starts(name("index_bits"), tokens.index_bits)?,
        most: match arguments::size(name("most"), tokens.most)? {
            0 => length,
            most => most,
        },
    }))
}

/// Reads a rotation, which messages call `name`.
///
/// # Safety
/// `desc` is null or valid for its size, with factor sets that are null, or alive and outlive `'a`.
pub unsafe fn rotary<'a>(name: &str, desc: *const CacheRotaryDesc) -> Result<CacheRotary<'a>, Failure> {
    // SAFETY: by this function's contract.
    let desc = unsafe { arguments::read(name, desc) }?;
    arguments::no_flags(Field(name, ".flags"), desc.flags)?;
    Ok(CacheRotary {
        // SAFETY: as above.
        sets: unsafe { factors::borrow(Field(name, ".sets"), desc.sets) }?,
        pairing: rotary::pairing(Field(name, ".pairing"), desc.pairing)?,
        choices: choices(name, &desc)?,
    })
}

/// Which set each sequence uses.
fn choices(name: &str, desc: &CacheRotaryDesc) -> Result<CacheChoices, Failure> {
    let kind = value!(Choices, Field(name, ".choice_kind"), desc.choice_kind)?;
    if kind != Choices::Length {
        arguments::unused(Field(name, ".choice_length"), desc.choice_length == 0, "this choice_kind")?;
    }
    if kind != Choices::ByIndex {
        arguments::unused(Field(name, ".choices"), desc.choices.is_null(), "this choice_kind")?;
    }
    Ok(match kind {
        Choices::Length => {
            let length = arguments::count(Field(name, ".choice_length"), desc.choice_length)?;
            CacheChoices::All(SetChoice::ByLength(length))
        }
        Choices::Short => CacheChoices::All(SetChoice::Short),
        Choices::Long => CacheChoices::All(SetChoice::Long),
        Choices::ByLength => CacheChoices::ByLength,
        Choices::ByIndex => CacheChoices::ByIndex(desc.choices.expose_provenance() as u64),
    })
}

/// An error in the words of C.
pub fn in_c(error: Error) -> Failure {
    Failure::renamed(error, name_in_c)
}

/// An argument of the Rust interface as C calls it.
pub fn name_in_c(argument: &str) -> String {
    let (first, rest) = argument.split_once('.').unwrap_or((argument, ""));
    match (first, rest) {
        ("cache", "pages.width") => "cache.table_width".to_owned(),
        ("cache", "pages.stride") => "cache.table_stride".to_owned(),
        ("cache", rest) if rest.starts_with("pages") => rest.replacen("pages", "cache.page_table", 1),
        ("cache" | "tensors", _) => dimension(argument),
        ("q" | "k" | "v" | "out" | "lse", _) => format!("tensors.{}", dimension(argument)),
        ("workspace", "bytes") => "workspace_bytes".to_owned(),
        ("workspace", _) => "workspace".to_owned(),
        ("split", _) => "desc.splits".to_owned(),
        _ => format!("desc.{argument}"),
    }
}

/// The same, with the dimension of a tensor by its number.
fn dimension(argument: &str) -> String {
    match argument.rsplit_once('.') {
        Some((tensor, field)) => format!("{tensor}.{}", tensor_field(field)),
        None => argument.to_owned(),
    }
}

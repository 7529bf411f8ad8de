//! A change of the factor set of keys in a cache.

use longrope::Error;
use longrope::descriptor::{Layout, Pairing};
use longrope::device::Dtype;
use longrope::ops::{CacheChoices, CacheRotary, DeviceLengths, RerotateCache};
use longrope::scaling::{FactorSets, SetChoice};

use crate::{NULL, SOMEWHERE, cache, misaligned, not_offered, parity_sets, sets, wrong};

/// What `supported` says of a re-rotation by these sets after a change: keys of 2 heads of 16 dimensions, in pages of 32.
fn changed_of([from, to]: [&FactorSets; 2], change: impl FnOnce(&mut RerotateCache)) -> Result<(), Error> {
    let by =
        |sets, choice| CacheRotary { sets, pairing: Pairing::HalfSplit, choices: CacheChoices::All(choice) };
    let mut rerotate = RerotateCache {
        cache: cache([9, 32, 2, 16]),
        from: by(from, SetChoice::Short),
        to: by(to, SetChoice::Long),
        status: None,
    };
    change(&mut rerotate);
    rerotate.supported()
}

/// The same of all 8 pairs.
fn changed(change: impl FnOnce(&mut RerotateCache)) -> Result<(), Error> {
    let sets = sets(8);
    assert_eq!(changed_of([&sets, &sets], |_| ()), Ok(()));
    changed_of([&sets, &sets], change)
}

fn set_keys(rerotate: &mut RerotateCache, [pages, page_size, heads, head_dim]: [usize; 4]) {
    let layout = Layout::bshd(pages, page_size, heads, head_dim);
    (rerotate.cache.k.layout, rerotate.cache.v.layout) = (layout, layout);
}

#[test]
fn keys_and_values_that_do_not_belong_together_are_named() {
    wrong(
        changed(|r| r.cache.v.layout = Layout::bshd(9, 32, 1, 16)),
        "cache.v: shape [9, 32, 1, 16] is not valid; expected [9, 32, 2, 16], as k",
    );
    wrong(
        changed(|r| r.cache.v.dtype = Dtype::F16),
        "cache.v.dtype: F16 is not valid; expected Bf16, as cache.k",
    );
    wrong(changed(|r| set_keys(r, [9, 32, 2, 0])), "cache.k.head_dim: 0 is not valid; expected at least 1");
    let overlapping = Layout::strided([9, 32, 2, 16], [0, 32, 16, 1]);
    let message = "shape [9, 32, 2, 16] with strides [0, 32, 16, 1], where elements overlap is not valid; expected an output \
                   whose elements are distinct";
    wrong(changed(|r| r.cache.k.layout = overlapping), &format!("cache.k: {message}"));
    wrong(changed(|r| r.cache.v.layout = overlapping), &format!("cache.v: {message}"));
}

#[test]
fn rotations_that_do_not_belong_together_are_named() {
    let of = |from: usize, to: usize| changed_of([&sets(from), &sets(to)], |_| ());
    for (from, to) in [(8, 7), (1, 8)] {
        wrong(of(from, to), &format!("from.sets: {from} pairs is not valid; expected {to}, as to.sets"));
    }
    for (from, to, name, pairs) in [(9, 9, "from", 9), (8, 9, "to", 9), (0, 0, "from", 0), (8, 0, "to", 0)] {
        wrong(
            of(from, to),
            &format!("{name}.sets: {pairs} pairs is not valid; expected 1 to 8, half of the head dimension"),
        );
    }
    assert_eq!((of(8, 8), of(1, 1)), (Ok(()), Ok(())));
    wrong(
        changed(|r| r.to.pairing = Pairing::Interleaved),
        "from.pairing: HalfSplit is not valid; expected Interleaved, as to.pairing",
    );
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    type Set = fn(&mut RerotateCache, u64);
    let addresses: [(&str, u64, Set); 8] = [
        ("cache.k", 2, |r, x| r.cache.k.address = x),
        ("cache.v", 2, |r, x| r.cache.v.address = x),
        ("cache.pages", 4, |r, x| r.cache.pages.as_mut().unwrap().address = x),
        ("cache.lengths", 4, |r, x| r.cache.lengths = DeviceLengths::I32(x)),
        ("cache.lengths", 8, |r, x| r.cache.lengths = DeviceLengths::I64(x)),
        ("from.choices", 4, |r, x| r.from.choices = CacheChoices::ByIndex(x)),
        ("to.choices", 4, |r, x| r.to.choices = CacheChoices::ByIndex(x)),
        ("status", 4, |r, x| r.status = Some(x)),
    ];
    for (name, size, set) in addresses {
        wrong(changed(|r| set(r, 0)), &format!("{name}: {NULL}"));
        let odd = SOMEWHERE + size / 2;
        wrong(changed(|r| set(r, odd)), &format!("{name}: {}", misaligned(odd, size)));
        assert_eq!(changed(|r| set(r, 2 * SOMEWHERE)), Ok(()), "{name}");
    }
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let all = |dtype| changed(move |r| (r.cache.k.dtype, r.cache.v.dtype) = (dtype, dtype));
    not_offered(all(Dtype::F32), "cache.k.dtype: F32 is not supported; expected F16 or Bf16");
    assert_eq!(all(Dtype::F16), Ok(()));
    for dim in [20, 36, 264] {
        not_offered(
            changed(|r| set_keys(r, [9, 32, 2, dim])),
            &format!("cache.k.head_dim: {dim} is not supported; expected a multiple of 8 up to 256"),
        );
    }
    assert_eq!(changed(|r| set_keys(r, [9, 32, 2, 256])), Ok(()));
    for size in [8, 24, 272] {
        not_offered(
            changed(|r| set_keys(r, [9, size, 2, 16])),
            &format!(
                "cache.k.length: {size} is not supported; expected pages of a multiple of 16 tokens up to 256"
            ),
        );
        // Where there are no pages, any length will do.
        let contiguous = |r: &mut RerotateCache| {
            set_keys(r, [9, size, 2, 16]);
            r.cache.pages = None;
        };
        assert_eq!(changed(contiguous), Ok(()), "{size}");
    }
    wrong(
        changed(|r| r.cache.pages.as_mut().unwrap().stride = -1),
        "cache.pages.stride: -1 is not valid; expected at least 0",
    );
    not_offered(
        changed(|r| r.cache.k.address = SOMEWHERE + 8),
        "cache.k: address 0x1008 with strides [1024, 32, 16, 1] is not supported; expected a head dimension of stride 1 and \
         rows at multiples of 16 bytes",
    );
    // The difference of two angles that are f32 products is no angle of either.
    let (exact, parity) = (sets(8), parity_sets(8));
    for (name, of) in [("from", [&parity, &exact]), ("to", [&exact, &parity]), ("from", [&parity, &parity])] {
        not_offered(
            changed_of(of, |_| ()),
            &format!("{name}.sets: angles in parity mode is not supported; expected exact angles"),
        );
    }
}

#[test]
fn nothing_to_do_needs_no_address() {
    type Set = fn(&mut RerotateCache);
    let without = |set: Set| {
        changed(|r| {
            set(r);
            (r.cache.k.address, r.cache.v.address) = (0, 0);
            r.cache.pages.as_mut().unwrap().address = 0;
            r.cache.lengths = DeviceLengths::I32(0);
            r.to.choices = CacheChoices::ByIndex(0);
        })
    };
    assert_eq!(without(|r| r.cache.pages.as_mut().unwrap().sequences = 0), Ok(()));
    assert_eq!(without(|r| r.cache.pages.as_mut().unwrap().width = 0), Ok(()));
    assert_eq!(without(|r| set_keys(r, [0, 32, 2, 16])), Ok(()));
    assert_eq!(without(|r| set_keys(r, [9, 32, 0, 16])), Ok(()));
    wrong(without(|_| ()), &format!("cache.k: {NULL}"));
}

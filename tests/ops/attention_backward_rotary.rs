//! Attention backward of what was rotated.

use longrope::descriptor::Pairing;
use longrope::ops::{AttentionBackward, CacheChoices, CacheRotary, Packed};
use longrope::scaling::{FactorSets, SetChoice};

use crate::attention_backward::{Kind, PACKED, changed, packed, resize, right};
use crate::{misaligned, not_offered, parity_sets, sets, wrong};

fn rotary(sets: &FactorSets, choices: CacheChoices) -> Option<CacheRotary<'_>> {
    Some(CacheRotary { sets, pairing: Pairing::HalfSplit, choices })
}

const SHORT: CacheChoices = CacheChoices::All(SetChoice::Short);

#[test]
fn a_rotation_of_any_pairs_and_by_any_choice_is_offered() {
    for pairs in 1..=8 {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            for choices in [SHORT, CacheChoices::ByLength, CacheChoices::ByIndex(0x1004)] {
                let sets = sets(pairs);
                let rotary = Some(CacheRotary { sets: &sets, pairing, choices });
                assert_eq!(changed(right(), |a, _| a.rotary = rotary), Ok(()), "{pairs} pairs, {choices:?}");
                assert_eq!(changed(packed(PACKED), |a, _| a.rotary = rotary), Ok(()));
            }
        }
    }
}

#[test]
fn a_rotation_that_means_nothing_is_named() {
    for pairs in [0, 9] {
        let sets = sets(pairs);
        wrong(
            changed(right(), |a, _| a.rotary = rotary(&sets, SHORT)),
            &format!("rotary.sets: {pairs} pairs is not valid; expected 1 to 8, half of the head dimension"),
        );
    }
    let sets = sets(8);
    wrong(
        changed(right(), |a, _| a.rotary = rotary(&sets, CacheChoices::ByIndex(0x1002))),
        &format!("rotary.choices: {}", misaligned(0x1002, 4)),
    );
    let nowhere = CacheChoices::ByIndex(0);
    let null = "rotary.choices: a null address is not valid; expected the address of an element";
    wrong(changed(right(), |a, _| a.rotary = rotary(&sets, nowhere)), null);
    // Keys alone have a set too.
    let without_queries = changed(right(), |a, t| {
        a.rotary = rotary(&sets, nowhere);
        resize(t, &[Kind::Queries, Kind::Rows], 1, 0);
    });
    wrong(without_queries, null);
    // Nothing to rotate has none.
    let (mut attention, tensors) = packed(Packed { count: 0, ..PACKED });
    attention.rotary = rotary(&sets, nowhere);
    assert_eq!(attention.supported(&tensors), Ok(()));
}

#[test]
fn angles_in_parity_mode_are_not_offered() {
    let sets = parity_sets(8);
    not_offered(
        changed(right(), |a, _| a.rotary = rotary(&sets, SHORT)),
        "rotary.sets: angles in parity mode is not supported; expected exact angles",
    );
}

#[test]
fn a_rotation_needs_no_workspace_of_its_own() {
    let sets = sets(8);
    for (attention, mut tensors) in [right(), packed(PACKED)] {
        let rotated = AttentionBackward { rotary: rotary(&sets, CacheChoices::ByLength), ..attention };
        for length in [7, 10_000] {
            resize(&mut tensors, &[Kind::Keys], 1, length);
            assert_eq!(rotated.workspace_size(&tensors), attention.workspace_size(&tensors), "{length} keys");
        }
    }
}

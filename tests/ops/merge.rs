//! The merge of partial results.

use longrope::Error;
use longrope::descriptor::Layout;
use longrope::device::{DeviceTensor, Dtype};
use longrope::ops::{Merge, Parts};

use crate::{SOMEWHERE, not_offered, tensor, wrong};

const SHAPE: [usize; 4] = [2, 5, 3, 8];
const ROWS: [usize; 4] = [2, 5, 3, 1];

/// A merge that is right, of three parts.
fn right() -> Merge {
    let (out, lse) = (tensor(Dtype::F32, SHAPE), tensor(Dtype::F32, ROWS));
    Merge {
        parts: Parts { count: 3, out, lse, out_stride: 240, lse_stride: 30 },
        out: tensor(Dtype::Bf16, SHAPE),
        lse: Some(lse),
    }
}

fn changed(change: impl FnOnce(&mut Merge)) -> Result<(), Error> {
    let mut merge = right();
    assert_eq!(merge.supported(), Ok(()));
    change(&mut merge);
    merge.supported()
}

type Field = fn(&mut Merge) -> &mut DeviceTensor;

/// The tensors of a merge, with the names that errors give them.
const FIELDS: [(&str, Field); 4] = [
    ("parts.out", |merge| &mut merge.parts.out),
    ("parts.lse", |merge| &mut merge.parts.lse),
    ("out", |merge| &mut merge.out),
    ("lse", |merge| merge.lse.as_mut().unwrap()),
];

#[test]
fn shapes_that_do_not_belong_together_are_named() {
    for (name, field) in FIELDS {
        // What is wrong is held against the output, so that a wrong output makes the parts wrong.
        let shape = if name.ends_with("lse") { ROWS } else { SHAPE };
        for dim in 0..4 {
            let mut other = shape;
            other[dim] += 1;
            let result = changed(|merge| {
                let dtype = field(merge).dtype;
                *field(merge) = tensor(dtype, other);
            });
            let (name, found, expected) = match name {
                "out" => ("parts.out", SHAPE, other),
                _ => (name, other, shape),
            };
            wrong(
                result,
                &format!("{name}: shape {found:?} is not valid; expected {expected:?}, by the shape of out"),
            );
        }
    }
}

#[test]
fn types_that_do_not_belong_together_are_named() {
    for (name, field) in FIELDS.into_iter().filter(|(name, _)| *name != "out") {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            wrong(
                changed(|merge| field(merge).dtype = dtype),
                &format!("{name}.dtype: {dtype:?} is not valid; expected F32"),
            );
        }
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        assert_eq!(changed(|merge| merge.out.dtype = dtype), Ok(()));
    }
}

#[test]
fn addresses_are_there_and_aligned_to_their_elements() {
    for (name, field) in FIELDS {
        wrong(
            changed(|merge| field(merge).address = 0),
            &format!("{name}: a null address is not valid; expected the address of an element"),
        );
        let size = if name == "out" { 2 } else { 4 };
        let odd = SOMEWHERE + size / 2;
        wrong(
            changed(|merge| field(merge).address = odd),
            &format!(
                "{name}: address {odd:#x} is not valid; expected a multiple of {size}, the size of an element"
            ),
        );
    }
}

#[test]
fn outputs_that_overlap_themselves_are_named() {
    for (name, field) in [FIELDS[2], FIELDS[3]] {
        let result = changed(|merge| {
            let shape = field(merge).layout.shape();
            field(merge).layout = Layout::strided(shape, [0, 64, 8, 1]);
        });
        let shape = if name == "lse" { ROWS } else { SHAPE };
        wrong(
            result,
            &format!(
                "{name}: shape {shape:?} with strides [0, 64, 8, 1], where elements overlap is not valid; expected an \
                 output whose elements are distinct"
            ),
        );
    }
}

#[test]
fn what_means_something_and_is_not_offered_is_an_error_of_its_own() {
    let shaped = |[batch, length, heads, head_dim]: [usize; 4]| {
        changed(|merge| {
            for (name, field) in FIELDS {
                let last = if name.ends_with("lse") { 1 } else { head_dim };
                field(merge).layout = Layout::bshd(batch, length, heads, last);
            }
        })
    };
    for shape in [[1, 1, (1 << 20) + 1, 8], [1, 1, 1, (1 << 20) + 1], [1, 1, 1, 0]] {
        not_offered(
            shaped(shape),
            &format!(
                "out: shape {shape:?} is not supported; expected at most 2^20 heads, and 1 to 2^20 dimensions"
            ),
        );
    }
    assert_eq!(shaped([1, 1, 1 << 20, 8]), Ok(()));
    assert_eq!(shaped([1, 1, 1, 1 << 20]), Ok(()));
    assert_eq!(shaped([1, (1 << 34) - 8, 1, 8]), Ok(()));
    for shape in [[1, 1 << 34, 1, 8], [1 << 32, 1 << 32, 1, 8]] {
        not_offered(
            shaped(shape),
            &format!("out: shape {shape:?} is not supported; expected fewer than 2^34 rows"),
        );
    }
}

#[test]
fn addresses_of_what_is_not_there_are_not_needed() {
    let no_parts = changed(|merge| {
        merge.parts.count = 0;
        (merge.parts.out.address, merge.parts.lse.address) = (0, 0);
    });
    assert_eq!(no_parts, Ok(()));
    let no_rows = changed(|merge| {
        for (_, field) in FIELDS {
            let [batch, _, heads, head_dim] = field(merge).layout.shape();
            field(merge).layout = Layout::bshd(batch, 0, heads, head_dim);
            field(merge).address = 0;
        }
    });
    assert_eq!(no_rows, Ok(()));
    assert_eq!(changed(|merge| merge.lse = None), Ok(()));
}

#[test]
fn a_pair_of_parts_may_lie_anywhere() {
    let (out, lse) = (tensor(Dtype::F32, SHAPE), tensor(Dtype::F32, ROWS));
    for (second, second_lse) in [(0x9000, 0x800), (4, 0xffff_ffff_fff0)] {
        let parts = Parts::pair((out, lse), (second, second_lse));
        let address = |from: u64, stride: i64| from.wrapping_add_signed(4 * stride);
        assert_eq!((parts.count, parts.out, parts.lse), (2, out, lse));
        assert_eq!(address(out.address, parts.out_stride), second);
        assert_eq!(address(lse.address, parts.lse_stride), second_lse);
        assert_eq!(changed(|merge| merge.parts = parts), Ok(()));
    }
}

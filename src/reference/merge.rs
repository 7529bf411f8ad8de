//! The union of partial results: attention over some keys and attention over others make attention over all of them.

use super::ReferenceError;
use super::attention::{Output, softmax};
use super::error::{check_shape, volume};

/// Merges results over disjoint ranges of keys, each `out` in `[rows, head_dim]` and `lse` in `[rows]`, where `rows` counts
/// query rows times heads: `lse = ln Σ exp(lse_p)`, `out = Σ exp(lse_p - lse) · out_p`.
///
/// A part whose `lse` is -∞ in a row saw no key there: its `out` in that row is not read. Where no part saw a key, or there
/// is no part at all, `out` is 0 and `lse` is -∞.
///
/// # Errors
/// Where a part has another shape, or an `lse` is NaN or +∞, which no attention over finite scores gives.
pub fn merge(rows: usize, head_dim: usize, parts: &[Output]) -> Result<Output, ReferenceError> {
    for (index, part) in parts.iter().enumerate() {
        let name = format!("parts[{index}]");
        check_shape(&format!("{name}.out"), &part.out, "[rows, head_dim]", &[rows, head_dim])?;
        check_shape(&format!("{name}.lse"), &part.lse, "[rows]", &[rows])?;
        if let Some(row) = part.lse.iter().position(|lse| lse.is_nan() || *lse == f64::INFINITY) {
            return Err(ReferenceError::invalid(
                format!("{name}.lse[{row}]"),
                part.lse[row],
                "a finite number, or -inf where no key was seen",
            ));
        }
    }

    let mut out = vec![0.0; volume("rows", "[rows, head_dim]", &[rows, head_dim])?];
    let mut lse = Vec::with_capacity(rows);
    for row in 0..rows {
        let parts_lse: Vec<f64> = parts.iter().map(|part| part.lse[row]).collect();
        let (weights, row_lse) = softmax(&parts_lse);
        lse.push(row_lse);
        let elements = row * head_dim..(row + 1) * head_dim;
        for (part, weight) in parts.iter().zip(weights) {
            // Here `out` may hold anything.
            if part.lse[row] == f64::NEG_INFINITY {
                continue;
            }
            for (sum, x) in out[elements.clone()].iter_mut().zip(&part.out[elements.clone()]) {
                *sum += weight * x;
            }
        }
    }
    Ok(Output { out, lse })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUS_INFINITY: f64 = f64::NEG_INFINITY;

    fn part(out: &[f64], lse: &[f64]) -> Output {
        Output { out: out.to_vec(), lse: lse.to_vec() }
    }

    #[test]
    fn no_part_at_all_gives_zero_and_minus_infinity() {
        let merged = merge(2, 3, &[]).unwrap();
        assert_eq!(merged, part(&[0.0; 6], &[MINUS_INFINITY; 2]));
        assert_eq!(merge(0, 3, &[]).unwrap(), part(&[], &[]));
    }

    #[test]
    fn parts_that_saw_no_key_contribute_nothing_even_with_nan_in_their_rows() {
        let poison = part(&[f64::NAN, 7.0], &[MINUS_INFINITY, MINUS_INFINITY]);
        let seen = part(&[3.0, f64::INFINITY], &[-800.0, MINUS_INFINITY]);
        let merged = merge(2, 1, &[poison.clone(), seen, poison]).unwrap();
        assert_eq!(merged, part(&[3.0, 0.0], &[-800.0, MINUS_INFINITY]));
    }

    #[test]
    fn equal_parts_average_and_far_apart_parts_neither_overflow_nor_vanish() {
        let ten = std::f64::consts::LN_10;
        let merged = merge(1, 1, &[part(&[1.0], &[1e4]), part(&[2.0], &[1e4])]).unwrap();
        assert_eq!(merged.out, [1.5]);
        assert_eq!(merged.lse, [1e4 + std::f64::consts::LN_2]);
        let merged = merge(1, 1, &[part(&[9.0], &[-1e300]), part(&[2.0], &[1e300])]).unwrap();
        assert_eq!(merged, part(&[2.0], &[1e300]));
        let merged = merge(1, 1, &[part(&[1.0], &[0.0]), part(&[12.0], &[ten])]).unwrap();
        assert!((merged.out[0] - 11.0).abs() < 1e-14);
    }

    #[test]
    fn a_part_of_another_shape_or_without_a_number_is_named() {
        let good = part(&[0.0; 2], &[0.0]);
        for (bad, name) in [
            (part(&[0.0; 3], &[0.0]), "parts[1].out: 3 elements"),
            (part(&[0.0; 2], &[]), "parts[1].lse: 0 elements"),
            (part(&[0.0; 2], &[f64::NAN]), "parts[1].lse[0]: NaN"),
            (part(&[0.0; 2], &[f64::INFINITY]), "parts[1].lse[0]: inf"),
        ] {
            let message = merge(1, 2, &[good.clone(), bad]).unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
        assert!(merge(usize::MAX, 2, &[]).is_err());
    }
}

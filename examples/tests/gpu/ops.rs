//! The model's own operations on a GPU, against f64.

use candle_core::{DType, Device, Tensor, Var};
use longrope::reference::Format;
use longrope_drivers::model::Place;
use longrope_drivers::model::ops::{
    add_norm, cross_entropy, cross_entropy_gradient, gated_silu, rms_norm, silu_product,
};

/// Values from -1 to 1 of a type, that follow from a seed.
pub fn values(dtype: DType, seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rounded(dtype, (state >> 40) as f64 / f64::from(1u32 << 23) - 1.0)
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn format(dtype: DType) -> Format {
    if dtype == DType::F16 { Format::F16 } else { Format::Bf16 }
}

fn rounded(dtype: DType, x: f64) -> f64 {
    format(dtype).decode(format(dtype).round(x))
}

fn tensor(values: &[f64], shape: (usize, usize), dtype: DType, place: &Place) -> Tensor {
    let narrow: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let x = Tensor::from_vec(narrow, shape, &Device::Cpu).unwrap();
    x.to_dtype(dtype).unwrap().to_device(&place.device).unwrap()
}

/// Fails unless a 16-bit result is `exact` within `eps` relative, rounded once.
fn check(dtype: DType, found: &Tensor, exact: &[f64], eps: f64) {
    let found: Vec<f32> = found.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), exact.len());
    for (i, (&found, &exact)) in found.iter().zip(exact).enumerate() {
        let bits = format(dtype).round(f64::from(found));
        let within = format(dtype).within(bits, exact, eps * exact.abs()).unwrap();
        assert!(within, "{dtype:?}, element {i}: {found} is not {exact}");
    }
}

/// The same, but within `eps` of `terms`, the magnitudes of what an element is the sum of.
fn check_sums(dtype: DType, found: &Tensor, exact: &[(f64, f64)], eps: f64) {
    let found: Vec<f32> = found.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), exact.len());
    for (i, (&found, &(exact, terms))) in found.iter().zip(exact).enumerate() {
        let bits = format(dtype).round(f64::from(found));
        let within = format(dtype).within(bits, exact, eps * terms).unwrap();
        assert!(within, "{dtype:?}, element {i}: {found} is not {exact}, of {terms}");
    }
}

const TYPES: [DType; 2] = [DType::BF16, DType::F16];

pub fn activation(place: &Place) {
    for dtype in TYPES {
        for (rows, inner) in [(1, 8), (3, 1536), (70_000, 16), (5, 13), (7, 1)] {
            let packed: Vec<f64> = values(dtype, 1, rows * 2 * inner).iter().map(|x| x * 8.0).collect();
            let exact: Vec<f64> = packed
                .chunks(2 * inner)
                .flat_map(|row| (0..inner).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[inner + i]))
                .collect();
            let out = gated_silu(&tensor(&packed, (rows, 2 * inner), dtype, place)).unwrap();
            assert_eq!(out.dims(), [rows, inner]);
            check(dtype, &out, &exact, 1e-6);
        }
    }
}

pub fn residual(place: &Place) {
    for dtype in TYPES {
        for (rows, width) in [(1, 8), (9, 576), (1000, 2048), (5, 13), (7, 1), (3, 100)] {
            let (x, y) = (values(dtype, 1, rows * width), values(dtype, 2, rows * width));
            let weight = values(dtype, 3, width);
            let sum: Vec<f64> = x.iter().zip(&y).map(|(x, y)| rounded(dtype, x + y)).collect();
            let normed: Vec<f64> = sum
                .chunks(width)
                .flat_map(|row| {
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    let scale = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
                    row.iter().zip(&weight).map(move |(x, w)| x * scale * w)
                })
                .collect();
            let place_of = |values: &[f64]| tensor(values, (rows, width), dtype, place);
            let weight = tensor(&weight, (1, width), dtype, place).squeeze(0).unwrap();
            let (found, found_normed) = add_norm(&place_of(&x), &place_of(&y), &weight, 1e-5).unwrap();
            check(dtype, &found, &sum, 0.0);
            check(dtype, &found_normed, &normed, 2e-6);
        }
    }
}

/// The gradients of the sum of `op(a, b) * d` by `a` and by `b`, and the result.
fn gradients_of(
    (a, b, d): (&Tensor, &Tensor, &Tensor),
    op: impl Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>,
) -> [Tensor; 3] {
    let (a, b) = (Var::from_tensor(a).unwrap(), Var::from_tensor(b).unwrap());
    let out = op(&a, &b).unwrap();
    let gradients = (&out * d).unwrap().sum_all().unwrap().backward().unwrap();
    [gradients.get(&a).unwrap().clone(), gradients.get(&b).unwrap().clone(), out.detach()]
}

pub fn activation_gradients(place: &Place) {
    for dtype in TYPES {
        for (rows, inner) in [(1, 8), (3, 1536), (70_000, 16), (5, 13), (7, 1)] {
            let wide = |seed| values(dtype, seed, rows * inner).iter().map(|x| x * 8.0).collect::<Vec<f64>>();
            let (gate, up, d) = (wide(1), wide(2), values(dtype, 3, rows * inner));
            let on = |values: &[f64]| tensor(values, (rows, inner), dtype, place);
            let [by_gate, by_up, out] = gradients_of((&on(&gate), &on(&up), &on(&d)), silu_product);
            let each = |f: &dyn Fn(f64, f64, f64, f64) -> (f64, f64)| -> Vec<(f64, f64)> {
                let all = gate.iter().zip(&up).zip(&d);
                all.map(|((&g, &u), &d)| f(g, u, d, 1.0 / (1.0 + (-g).exp()))).collect()
            };
            check_sums(dtype, &out, &each(&|g, u, _, s| (g * s * u, (g * s * u).abs())), 1e-6);
            check_sums(dtype, &by_up, &each(&|g, _, d, s| (d * g * s, (d * g * s).abs())), 1e-6);
            let by_gate_exact = each(&|g, u, d, s| {
                let terms = (d * u * s).abs() * (1.0 + g.abs());
                (d * u * s * (1.0 + g * (1.0 - s)), terms)
            });
            check_sums(dtype, &by_gate, &by_gate_exact, 1e-6);
        }
    }
}

pub fn norm_gradients(place: &Place) {
    for dtype in TYPES {
        for (rows, width) in [(1, 8), (9, 576), (1000, 2048), (5, 13), (130, 100), (3, 1)] {
            let (x, weight, d) =
                (values(dtype, 1, rows * width), values(dtype, 2, width), values(dtype, 3, rows * width));
            let on = |values: &[f64]| tensor(values, (rows, width), dtype, place);
            let weight_on = tensor(&weight, (1, width), dtype, place).squeeze(0).unwrap();
            let norm = |x: &Tensor, weight: &Tensor| rms_norm(x, weight, 1e-5);
            let [by_x, by_weight, out] = gradients_of((&on(&x), &weight_on, &on(&d)), norm);
            let (mut outs, mut by_xs) = (Vec::new(), Vec::new());
            let mut by_weights = vec![(0.0, 0.0); width];
            for (x, d) in x.chunks(width).zip(d.chunks(width)) {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
                let along = |magnitude: bool| {
                    let terms = (0..width).map(|i| d[i] * weight[i] * x[i] * scale);
                    terms.map(|term| if magnitude { term.abs() } else { term }).sum::<f64>() / width as f64
                };
                let (signed, magnitude) = (along(false), along(true));
                for i in 0..width {
                    let (g, n) = (d[i] * weight[i], x[i] * scale);
                    outs.push((n * weight[i], (n * weight[i]).abs()));
                    by_xs.push(((g - n * signed) * scale, (g.abs() + n.abs() * magnitude) * scale));
                    by_weights[i].0 += d[i] * n;
                    by_weights[i].1 += (d[i] * n).abs();
                }
            }
            check_sums(dtype, &out, &outs, 2e-6);
            check_sums(dtype, &by_x, &by_xs, 4e-6);
            check_sums(dtype, &by_weight, &by_weights, 4e-6);
        }
    }
}

pub fn loss_gradient(place: &Place) {
    for dtype in TYPES {
        for (rows, width) in [(3, 49_152), (1000, 256), (5, 13), (2, 1), (4, 2056)] {
            let logits: Vec<f64> =
                values(dtype, 1, rows * width).iter().map(|x| rounded(dtype, x * 20.0)).collect();
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % width) as u32).collect();
            let counted: Vec<f32> = (0..rows).map(|row| if row % 3 == 1 { 0.0 } else { 1.0 }).collect();
            let vector = |values: &[f32]| Tensor::new(values, &place.device).unwrap();
            let targets_on = Tensor::new(targets.as_slice(), &place.device).unwrap();
            let on = tensor(&logits, (rows, width), dtype, place);
            let found = cross_entropy_gradient(&on, &targets_on, &vector(&counted)).unwrap();
            let mut exact = Vec::new();
            for ((row, &target), &counted) in logits.chunks(width).zip(&targets).zip(&counted) {
                let sum: f64 = row.iter().map(|x| (x - 20.0).exp()).sum();
                exact.extend(row.iter().enumerate().map(|(i, x)| {
                    let weight = (x - 20.0).exp() / sum;
                    let one = if i == target as usize { 1.0 } else { 0.0 };
                    ((weight - one) * f64::from(counted), weight + one)
                }));
            }
            check_sums(dtype, &found, &exact, 1e-5);
        }
    }
}

pub fn losses_of_logits(place: &Place) {
    for dtype in TYPES {
        for (rows, width) in [(3, 49_152), (1000, 256), (5, 13), (2, 1), (4, 2056)] {
            let logits: Vec<f64> =
                values(dtype, 1, rows * width).iter().map(|x| rounded(dtype, x * 20.0)).collect();
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % width) as u32).collect();
            let tensor_of = Tensor::new(targets.as_slice(), &place.device).unwrap();
            let logits_of = tensor(&logits, (rows, width), dtype, place);
            let found: Vec<f64> = cross_entropy(&logits_of, &tensor_of).unwrap().to_vec1().unwrap();
            for ((found, row), target) in found.iter().zip(logits.chunks(width)).zip(&targets) {
                let sum: f64 = row.iter().map(|x| (x - 20.0).exp()).sum();
                let exact = sum.ln() + 20.0 - row[*target as usize];
                assert!((found - exact).abs() < 1e-5, "{dtype:?} {width}: {found} is not {exact}");
            }
        }
    }
}

pub fn losses_of_what_is_not_finite(place: &Place) {
    let (none, width) = (f64::NEG_INFINITY, 4096);
    // A vector of eight, a whole row, a NaN, an infinity, a target beyond the vocabulary.
    let mut logits = values(DType::BF16, 1, 5 * width);
    logits[64..72].fill(none);
    logits[width..2 * width].fill(none);
    logits[2 * width + 9] = f64::NAN;
    logits[3 * width + 9] = f64::INFINITY;
    let targets = [0u32, 0, 0, 0, width as u32];
    let on = |place: &Place, dtype| -> Vec<f64> {
        let logits = tensor(&logits, (5, width), dtype, place);
        cross_entropy(&logits, &Tensor::new(&targets, &place.device).unwrap()).unwrap().to_vec1().unwrap()
    };
    let (gpu, cpu) = (on(place, DType::BF16), on(&Place::cpu(), DType::F32));
    assert!((gpu[0] - cpu[0]).abs() < 1e-5, "{gpu:?} {cpu:?}");
    assert!(gpu[1..].iter().chain(&cpu[1..]).all(|loss| loss.is_nan()), "{gpu:?} {cpu:?}");
}

//! Arguments that can't be right.

use longrope::Error;
use longrope::cpu::{self, Tensor, TensorMut};
use longrope::descriptor::{Attention, Choices, Direction, Layout, Pairing, Positions, Rotary};
use longrope::scaling::{FactorSet, FactorSets, SetChoice};

const LAYOUT: Layout = Layout::strided([1, 3, 2, 8], [48, 16, 8, 1]);

fn sets(pairs: usize) -> FactorSets {
    FactorSets::uniform(FactorSet::exact(&vec![0.5; pairs], 1.0).unwrap())
}

fn rotate(
    sets: &FactorSets,
    positions: Positions<'_>,
    choices: Choices<'_>,
    out: Layout,
) -> Result<Vec<f32>, Error> {
    let rotary =
        Rotary { sets, pairing: Pairing::HalfSplit, direction: Direction::Forward, positions, choices };
    let mut written = vec![7.0; 48];
    let x = vec![1.0; 48];
    let result = cpu::rotary(&rotary, Tensor::new(&x, LAYOUT), TensorMut::new(&mut written, out));
    match result {
        Ok(()) => Ok(written),
        Err(error) => {
            assert!(written.iter().all(|x| *x == 7.0), "nothing is written after an error");
            Err(error)
        }
    }
}

#[test]
fn what_does_not_fit_a_rotation_is_named() {
    let short = Choices::All(SetChoice::Short);
    let good = rotate(&sets(4), Positions::Offset(0), short, LAYOUT);
    assert!(good.is_ok());
    let message = |sets: &FactorSets, positions, choices, out| {
        rotate(sets, positions, choices, out).unwrap_err().to_string()
    };
    let four = sets(4);
    assert!(message(&sets(5), Positions::Offset(0), short, LAYOUT).starts_with("x.head_dim: 8"));
    assert_eq!(
        message(&four, Positions::PerToken(&[0, 1]), short, LAYOUT),
        "positions: 2 values is not valid; expected 3 [batch, length]"
    );
    assert!(message(&four, Positions::PerToken32(&[0; 4]), short, LAYOUT).starts_with("positions: 4 values"));
    assert!(message(&four, Positions::OffsetPerSequence(&[]), short, LAYOUT).starts_with("positions: 0"));
    assert!(
        message(&four, Positions::Offset(0), Choices::PerSequence(&[]), LAYOUT).starts_with("choices: 0")
    );
    assert!(message(&four, Positions::Offset(0), short, Layout::bshd(1, 3, 2, 10)).starts_with("out: shape"));
    let beyond = Layout::strided([1, 3, 2, 8], [48, 17, 8, 1]);
    assert!(message(&four, Positions::Offset(0), short, beyond).starts_with("out: shape"));
    let overlapping = Layout::strided([1, 3, 2, 8], [48, 8, 8, 1]);
    assert!(message(&four, Positions::Offset(0), short, overlapping).contains("overlap"));
}

#[test]
fn what_does_not_fit_an_attention_is_named() {
    let x = vec![1.0f32; 48];
    let run = |q: Layout, k: Layout, out: Layout, lse: usize| {
        let (mut written, mut lse) = (vec![7.0; 48], vec![7.0; lse]);
        let result = cpu::attention(
            &Attention::causal(),
            Tensor::new(&x, q),
            Tensor::new(&x, k),
            Tensor::new(&x, k),
            TensorMut::new(&mut written, out),
            Some(&mut lse),
        );
        assert!(result.is_ok() || written.iter().chain(&lse).all(|x| *x == 7.0));
        result.map_err(|error| error.to_string())
    };
    assert!(run(LAYOUT, LAYOUT, LAYOUT, 6).is_ok());
    assert_eq!(
        run(LAYOUT, LAYOUT, LAYOUT, 5).unwrap_err(),
        "lse: 5 values is not valid; expected 6 [batch, query_length, query_heads]"
    );
    assert!(run(LAYOUT, Layout::bshd(1, 2, 3, 8), LAYOUT, 6).unwrap_err().starts_with("k.heads: 3"));
    assert!(run(LAYOUT, Layout::bshd(1, 4, 2, 8), LAYOUT, 6).unwrap_err().starts_with("k: shape"));
    assert!(run(LAYOUT, LAYOUT, Layout::bshd(1, 3, 1, 8), 6).unwrap_err().starts_with("out.heads: 1"));
    let overlapping = Layout::strided([1, 3, 2, 8], [0, 8, 8, 1]);
    assert!(run(LAYOUT, LAYOUT, overlapping, 6).unwrap_err().contains("overlap"));
}

#[test]
fn shapes_without_elements_are_nothing_to_do_however_large() {
    let huge = Layout::strided([1 << 63, 4, 0, 8], [0; 4]);
    let keys = Layout::strided([1 << 63, 4, 1, 8], [0, 0, 0, 1]);
    let k = [1.0f32; 8];
    let view = Tensor::new(&k, keys);
    let queries = Tensor::new(&[], huge);
    cpu::attention(&Attention::causal(), queries, view, view, TensorMut::new(&mut [], huge), None).unwrap();
}

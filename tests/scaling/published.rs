//! The factor sets that models were published with.

use longrope::scaling::{
    ConfigError, Geometry, LongRope, RopeConfig, Scaling, factors_from_csv, factors_to_csv, rescale,
};
use serde_json::Value;

fn factors() -> Value {
    serde_json::from_str(include_str!("../data/longrope_factors.json")).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|factor| factor.as_f64().unwrap()).collect()
}

fn longrope(set: &Value) -> Result<RopeConfig, ConfigError> {
    let head_dim = set["head_dim"].as_u64().unwrap() as usize;
    let rotary_dim = set["rotary_dim"].as_u64().unwrap_or(head_dim as u64) as usize;
    let base = set["base"].as_f64().unwrap_or(10_000.0);
    let (original, max) = (set["L0"].as_u64().unwrap(), set["max"].as_u64().unwrap());
    RopeConfig::new(
        Geometry::new(head_dim, rotary_dim, base, original)?,
        max,
        Scaling::LongRope(LongRope {
            short_factor: list(&set["short"]),
            long_factor: list(&set["long"]),
            factor: max as f64 / original as f64,
            attention_factor: None,
            first_tokens: 0,
        }),
    )
}

#[test]
fn every_published_model_loads_monotone_or_not_below_one_or_not() {
    let factors = factors();
    let published = factors["published"].as_object().unwrap();
    assert!(published.len() >= 6);
    let mut below_one = 0;
    for (name, set) in published {
        let config = longrope(set).unwrap_or_else(|error| panic!("{name}: {error}"));
        below_one += usize::from(list(&set["long"]).iter().any(|factor| *factor < 1.0));
        assert!(config.factor_sets(config.max_length()).is_ok(), "{name}");
    }
    assert!(below_one >= 1, "MiniCPM4's first factor is below 1");
}

#[test]
fn the_attention_factor_of_phi_4_mini_is_the_known_one() {
    let config = longrope(&factors()["published"]["phi4_mini"]).unwrap();
    assert!((config.attention_factor() - 1.190_238_071_4).abs() < 1e-9);
    assert_eq!((config.geometry().head_dim(), config.geometry().rotary_dim()), (128, 96));
}

#[test]
fn the_longrope2_sets_are_ntk_left_of_their_tails() {
    // Closed forms: 32.03^(i/31) up to pair 31 and 21.81^(i/33) up to pair 33, then the published tails.
    for (name, critical) in [("phi4_mini", 31), ("llama3_8b_longrope2_128k", 33)] {
        let set = &factors()["published"][name];
        let long = list(&set["long"]);
        let config = longrope(set).unwrap();
        let made = rescale::ntk_left(config.geometry(), &long[critical..]).unwrap();
        for (i, (made, published)) in made.iter().zip(&long).enumerate() {
            assert!((made / published - 1.0).abs() < 1e-8, "{name} pair {i}: {made} against {published}");
        }
    }
}

#[test]
fn critical_pairs_are_those_of_the_longrope2_paper() {
    let phi3 = Geometry::new(96, 96, 1e4, 2048).unwrap();
    let llama3 = Geometry::new(128, 128, 5e5, 8192).unwrap();
    assert_eq!((rescale::critical_pair(&phi3, 1.0), rescale::critical_pair(&llama3, 1.0)), (31, 35));
    assert_eq!((rescale::critical_pair(&phi3, 10.0), rescale::critical_pair(&llama3, 10.0)), (19, 24));
}

#[test]
fn a_bad_ntk_left_tail_is_named() {
    let geometry = Geometry::new(16, 16, 1e4, 2048).unwrap();
    assert!(rescale::ntk_left(&geometry, &[]).is_err());
    assert!(rescale::ntk_left(&geometry, &[4.0; 9]).is_err());
    let message = rescale::ntk_left(&geometry, &[4.0, f64::NAN]).unwrap_err().to_string();
    assert!(message.starts_with("tail[1]: NaN"), "{message}");
    assert_eq!(rescale::ntk_left(&geometry, &[4.0; 8]).unwrap(), vec![4.0; 8]);
}

#[test]
fn the_official_sets_survive_both_csv_forms() {
    let factors = factors();
    let sets = factors["official_branch"].as_object().unwrap();
    assert_eq!(sets.len(), 30);
    let mut not_monotone = 0;
    for (name, set) in sets {
        let set = list(set);
        not_monotone += usize::from(set.windows(2).any(|pair| pair[0] > pair[1]));
        let released = factors_to_csv(&set);
        assert_eq!(factors_from_csv(&released, 64).unwrap(), vec![set.clone()], "{name}");
        let row = set.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let internal = vec![row; 32].join("\n");
        assert_eq!(factors_from_csv(&internal, 64).unwrap(), vec![set.clone()], "{name}, one row per layer");
    }
    assert!(not_monotone >= 2, "the Mistral sets are not monotone");
}

#[test]
fn layers_with_factors_of_their_own_are_kept_apart() {
    assert_eq!(factors_from_csv("1,2\n1,3\n", 2).unwrap(), [[1.0, 2.0], [1.0, 3.0]]);
    assert_eq!(factors_from_csv("\n1.5\n\n2.5\n", 2).unwrap(), [[1.5, 2.5]]);
    assert_eq!(factors_from_csv("1.5, 2.5", 2).unwrap(), [[1.5, 2.5]]);
    assert_eq!(factors_from_csv("1.5\n1.5\n", 1).unwrap(), [[1.5]]);
}

#[test]
fn a_bad_csv_is_named_by_line_and_column() {
    let message = |text: &str| factors_from_csv(text, 2).unwrap_err().to_string();
    assert_eq!(
        message("1,2\n1,x"),
        "csv line 2, column 2: \"x\" is not valid; expected a finite number above 0"
    );
    assert!(message("1,nan").contains("column 2"));
    assert!(message("1,-2").contains("column 2"));
    assert!(message("1,0").contains("column 2"));
    assert!(message("1,2,3").starts_with("csv line 1: 3 values"));
    assert!(message("1,2\n1").starts_with("csv line 2: 1 values"));
    assert!(message("1\n2\n3").starts_with("csv: 3 values"));
    assert!(message("").starts_with("csv: 0 values"));
}

#[test]
fn the_sets_of_a_second_search_are_multiples_of_those_the_model_was_fine_tuned_with() {
    let factors = factors();
    let sets = &factors["official_branch"];
    for (first, total, stretch) in
        [("ft_la2_256k", "2048k_la2_256k", 8.89), ("ft_la2_256k", "1024k_la2_256k", 4.97)]
    {
        let (first, total) = (list(&sets[first]), list(&sets[total]));
        // The second search draws from a grid of 0.01; the files hold the products.
        let second: Vec<f64> =
            first.iter().zip(&total).map(|(first, total)| (total / first * 100.0).round() / 100.0).collect();
        let largest = second.iter().copied().fold(0.0, f64::max);
        assert_eq!(largest, stretch);
        let made = rescale::second_interpolation(&first, &second).unwrap();
        for (i, (made, published)) in made.iter().zip(&total).enumerate() {
            assert!((made / published - 1.0).abs() < 1e-6, "pair {i}: {made} is not {published}");
        }
    }
    let message =
        |first: &[f64], second: &[f64]| rescale::second_interpolation(first, second).unwrap_err().to_string();
    assert!(message(&[1.0], &[1.0, 2.0]).starts_with("second: 2 factors is not valid; expected 1"));
    assert!(message(&[1.0, 2.0], &[1.0, 0.0]).starts_with("second[1]: 0 is not valid"));
    assert!(message(&[f64::NAN], &[1.0]).starts_with("first[0]: NaN is not valid"));
}

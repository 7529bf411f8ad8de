//! Factors through every format of the library and back, and one method written as another.

use longrope::scaling::hf::Generation;
use longrope::scaling::{
    Geometry, LongRope, RopeConfig, Scaling, Yarn, factors_from_csv, factors_to_csv, rescale,
};
use proptest::prelude::*;

prop_compose! {
    fn longrope()(
        (pairs, extra) in (1usize..64, 0usize..3),
        theta in 1.5f64..1e8,
        original in 2u64..1 << 20,
        growth in 1u64..64,
        factors in prop::collection::vec(1e-2f64..1e3, 2 * 64),
        factor in prop::option::of(0.5f64..100.0),
        attention_factor in prop::option::of(0.1f64..3.0),
        first_tokens in 0u64..300,
    ) -> RopeConfig {
        // Rotary dimensions that are a whole fraction of the head's, so that the fraction names them exactly.
        let geometry = Geometry::new((2 * pairs) << extra, 2 * pairs, theta, original).unwrap();
        let max_length = original * growth;
        let scaling = Scaling::LongRope(LongRope {
            short_factor: factors[..pairs].to_vec(),
            long_factor: factors[64..][..pairs].to_vec(),
            factor: factor.unwrap_or(growth as f64),
            attention_factor,
            first_tokens,
        });
        RopeConfig::new(geometry, max_length, scaling).unwrap()
    }
}

proptest! {
    #[test]
    fn a_configuration_survives_both_spellings(config in longrope()) {
        for generation in [Generation::RopeScaling, Generation::RopeParameters] {
            let text = serde_json::to_string_pretty(&config.to_hf(generation)).unwrap();
            prop_assert_eq!(&RopeConfig::from_hf_json(&text).unwrap(), &config);
        }
    }

    #[test]
    fn factors_survive_the_csv(config in longrope()) {
        let Scaling::LongRope(longrope) = config.scaling() else { panic!() };
        let text = factors_to_csv(&longrope.long_factor);
        let read = factors_from_csv(&text, config.geometry().pairs()).unwrap();
        prop_assert_eq!(read, [longrope.long_factor.clone()]);
    }
}

#[test]
fn every_method_with_fixed_factors_is_a_longrope() {
    let geometry = Geometry::new(128, 96, 5e5, 4096).unwrap();
    let llama3 =
        longrope::scaling::Llama3 { factor: 8.0, low_frequency_factor: 1.0, high_frequency_factor: 4.0 };
    for scaling in [
        Scaling::Default,
        Scaling::Linear { factor: 8.0 },
        Scaling::NtkAware { factor: 8.0 },
        Scaling::Yarn(Yarn::new(8.0)),
        Scaling::Llama3(llama3),
    ] {
        let config = RopeConfig::new(geometry, 32_768, scaling).unwrap();
        let longrope = config.to_longrope().unwrap();
        assert!(matches!(longrope.scaling(), Scaling::LongRope(_)));
        assert_eq!(longrope.attention_factor(), config.attention_factor());
        for length in [100, 4096, 4097, 32_768] {
            for (found, expected) in longrope.frequencies(length).iter().zip(config.frequencies(length)) {
                assert!((found / expected - 1.0).abs() < 1e-15, "{:?} at {length}", config.scaling());
            }
        }
        assert_eq!(longrope.to_longrope().unwrap(), longrope);
    }
    let dynamic = RopeConfig::new(geometry, 32_768, Scaling::DynamicNtk { factor: 2.0 }).unwrap();
    let message = dynamic.to_longrope().unwrap_err().to_string();
    assert!(message.starts_with("rope_scaling.rope_type: dynamic is not valid"), "{message}");
}

#[test]
fn divisors_of_yarn_are_its_rescale_factors() {
    let geometry = Geometry::new(64, 64, 1e4, 8192).unwrap();
    let yarn = Yarn::new(8.0);
    let expected = rescale::yarn(&geometry, 8.0, &yarn.ramp);
    let config = RopeConfig::new(geometry, 65_536, Scaling::Yarn(yarn)).unwrap();
    for (found, expected) in config.divisors(65_536).iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-14, "{found} is not {expected}");
    }
}

//! Schedules made of configurations and CSV files, and taken apart again.

use longrope::scaling::{LongRope, RopeConfig, Scaling, Schedule};

use super::command::{Dir, config, geometry, json, longrope, tiny};

/// Factors for 512 tokens.
fn half_way() -> RopeConfig {
    let scaling = Scaling::LongRope(LongRope {
        long_factor: (0..32).map(|i| 1.0 + f64::from(i) / 31.0).collect(),
        factor: 2.0,
        ..longrope()
    });
    RopeConfig::new(geometry(), 512, scaling).unwrap()
}

fn files() -> Dir {
    Dir::new().with("a.json", &json(&config(longrope()))).with("b.json", &json(&half_way()))
}

#[test]
fn configurations_and_csv_files_make_a_schedule() {
    let dir = files();
    let said = dir.run("--from a.json --from b.json --to schedule --output schedule.json");
    assert!(
        said.contains("\nas 32 pairs, sets up to 256, 512, 2048 tokens\nwrote schedule.json\n"),
        "{said}"
    );
    let schedule = Schedule::from_json(&dir.read("schedule.json")).unwrap();
    assert_eq!(schedule, Schedule::from_configs(&[half_way(), config(longrope())]).unwrap());
    dir.run("--from a.json --to csv --output a.csv");
    dir.run("--from b.json --to csv --output b.csv");
    let model = tiny();
    dir.run(&format!("--from 2048=a.csv --from 512=b.csv --model {model} --to schedule --output csv.json"));
    assert_eq!(Schedule::from_json(&dir.read("csv.json")).unwrap(), schedule);
    dir.run("--from schedule.json --to schedule --output copy.json");
    assert_eq!(dir.read("copy.json"), dir.read("schedule.json"));
}

#[test]
fn a_configuration_holds_two_buckets_and_the_others_are_an_error_unless_they_are_dropped() {
    let dir = files();
    dir.run("--from a.json --to schedule --output two.json");
    dir.run("--from two.json --to hf-new --output back.json");
    assert_eq!(dir.config("back.json"), config(longrope()));
    dir.run("--from a.json --from b.json --to schedule --output three.json");
    let found = dir.refused("--from three.json --to hf-new --output out.json");
    assert!(
        found.contains("buckets 256, 512, 2048") && found.ends_with("--drop other-lengths leaves that out"),
        "{found}"
    );
    let said = dir.run("--from three.json --to hf-new --drop other-lengths --output out.json");
    assert!(said.contains("\ndropped: all of the buckets 256, 512, 2048 "), "{said}");
    let Scaling::LongRope(found) = dir.config("out.json").scaling().clone() else { panic!() };
    assert_eq!(found.long_factor, longrope().long_factor);
    // Tokens choose a bucket; that of the original length has the attention factor of the shortest configuration.
    let found = dir.refused("--from 2048=three.json --to hf-new --output other.json");
    assert!(found.contains("buckets 256, 2048 "), "{found}");
    dir.run("--from 512=three.json --to csv --output b.csv");
    dir.run("--from b.json --to csv --output c.csv");
    assert_eq!(dir.read("b.csv"), dir.read("c.csv"));
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let dir = files();
    dir.run("--from a.json --to schedule --output two.json");
    let found = dir.refused("--from a.json --from b.json --to hf-new --output out.json");
    assert_eq!(found, "--from: 2 files are not valid; expected one, or --to schedule");
    let found = dir.refused("--from a.json --from two.json --to schedule --output out.json");
    assert!(found.starts_with("--from: a schedule beside others is not supported"), "{found}");
    let found = dir.refused("--from a.json --from a.json --to schedule --output out.json");
    assert!(found.starts_with("buckets[2].max_length: 2048 is not valid"), "{found}");
    let found = dir.refused("--from 4096=two.json --to csv --output out.csv");
    assert!(found.starts_with("two.json: length: 4096 is not valid; expected at most 2048"), "{found}");
}

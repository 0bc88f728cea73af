//! Rows that grow with the steps, in a run and across a resume; what a curriculum needs.

mod common;

use common::{run, set, small, weights};
use serde_json::{Value, json};
use train::RunConfig;

fn curriculum() -> Value {
    json!({ "enabled": true, "curriculum_type": "seqlen", "min_difficulty": 8, "max_difficulty": 32,
            "schedule_type": "fixed_linear", "schedule_config": { "total_curriculum_step": 8, "difficulty_step": 8 } })
}

#[test]
fn rows_grow_along_the_curriculum_and_a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole_output, cut_output) = (folder.path().join("whole"), folder.path().join("cut"));
    let with = |output| {
        let mut config = small(output);
        set(&mut config, "curriculum_learning", curriculum());
        config
    };
    let whole = run(&with(&whole_output), false, None);
    let lengths: Vec<u64> = whole.steps.iter().map(|step| step.curriculum_seqlen.expect("a length")).collect();
    assert_eq!(lengths, [8, 8, 16, 16, 16, 24, 24, 32, 32, 32, 32, 32]);
    // Eight rows a step, every token of which has a target.
    let tokens: Vec<u64> = whole.steps.iter().map(|step| step.tokens).collect();
    let want = lengths.iter().scan(0, |sum, length| {
        *sum += 8 * length;
        Some(*sum)
    });
    assert_eq!(tokens, want.collect::<Vec<_>>());
    let first = run(&with(&cut_output), false, Some(4));
    let rest = run(&with(&cut_output), true, None);
    assert_eq!([first.losses(), rest.losses()].concat(), whole.losses());
    assert!(weights(&whole_output) == weights(&cut_output), "final weights differ");
}

#[test]
fn a_step_is_that_of_the_same_rows_at_that_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let first_loss = |name: &str, lengths: Option<Value>| {
        let mut config = small(&folder.path().join(name));
        set(&mut config, "run.steps", json!(1));
        if let Some(difficulty) = lengths {
            let settings = json!({ "difficulty": difficulty, "max_step": [1] });
            set(
                &mut config,
                "curriculum_learning",
                json!({ "enabled": true, "min_difficulty": 8, "max_difficulty": 32,
                "schedule_type": "fixed_discrete", "schedule_config": settings }),
            );
        }
        run(&config, false, None).losses()[0]
    };
    let whole = first_loss("whole", None);
    assert_eq!(first_loss("long", Some(json!([32, 32]))), whole);
    assert_eq!(first_loss("longer", Some(json!([64, 32]))), whole);
    assert_ne!(first_loss("short", Some(json!([8, 32]))), whole);
}

#[test]
fn what_a_curriculum_lacks_is_named_and_one_that_is_off_needs_nothing() {
    let parse = |change: &dyn Fn(&mut Value)| {
        let mut section = curriculum();
        change(&mut section);
        RunConfig::from_value(json!({ "curriculum_learning": section }), "r.json")
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let refusals: [(Edit<'_>, &str); 8] = [
        (&|c| c["min_difficulty"] = Value::Null, "min_difficulty is missing; the curriculum needs it"),
        (&|c| c["curriculum_type"] = json!("rarity"), "curriculum_type is \"rarity\"; it must be \"seqlen\""),
        (
            &|c| c["schedule_type"] = json!("custom"),
            "schedule_type is \"custom\", which is not supported yet; it must be \"fixed_linear\", \"fixed_root\" or \
             \"fixed_discrete\"",
        ),
        (
            &|c| c["schedule_type"] = json!("fixed_root"),
            "schedule_config.root_degree is missing; the curriculum needs it",
        ),
        (&|c| c["max_difficulty"] = json!(4), "max_difficulty is 4; it must be at least 8, the min_difficulty"),
        (
            &|c| c["min_difficulty"] = json!(4),
            "min_difficulty is 4; it must be at least 8, the difficulty_step: lengths are rounded down to multiples of it",
        ),
        (
            &|c| {
                c["schedule_type"] = json!("fixed_discrete");
                c["schedule_config"] = json!({ "difficulty": [8, 16], "max_step": [5, 9] });
            },
            "schedule_config.difficulty has 2 items and max_step 2; it must have one more than max_step, which names at least one",
        ),
        (
            &|c| c["schedule_config"]["total_curriculum_steps"] = json!(5),
            "schedule_config.total_curriculum_steps is not a known key; the nearest one is \
             curriculum_learning.schedule_config.total_curriculum_step",
        ),
    ];
    for (change, want) in refusals {
        assert_eq!(parse(change), Err(format!("r.json: curriculum_learning.{want}")));
    }
    assert_eq!(parse(&|c| *c = json!({ "enabled": false, "schedule_type": "custom" })), Ok(()));
    let odd = json!({ "curriculum_learning": curriculum() });
    let mut odd = RunConfig::from_value(odd, "r.json").expect("a curriculum");
    odd.train_batch_size = Some(1);
    odd.curriculum_learning.schedule_config.difficulty_step = Some(3);
    let plan = train::plan::RunPlan::resolve(&odd, 32, 1).expect("a plan");
    assert_eq!(
        plan.notices(&odd),
        [
            "curriculum_learning.schedule_config.difficulty_step is 3; products are fastest where row lengths are multiples of 8"
        ]
    );
}

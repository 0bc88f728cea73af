//! The engine as a library: a loop of one's own gives the bits of `train_batch`, calls in a wrong order say what to call
//! first, and what a program saves it can load.

use data::Sample;
use serde_json::{Value, json};
use std::path::Path;
use train::engine::{LoadOptions, Loaded};
use train::model_source::ModelOrigin;
use train::{Engine, RunConfig, TrainError, initialize};

/// A two-layer GPT on 64 tokens with dropout: steps of four micro-batches of two rows.
fn config(keys: Value) -> RunConfig {
    let mut config = json!({
        "model": { "config": { "model_type": "gpt2", "vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2,
                               "n_head": 4, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1 } },
        "run": { "seed": 5, "threads": 1 },
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2,
        "optimizer": { "type": "AdamW", "params": { "lr": 1e-2 } },
    });
    for (key, value) in keys.as_object().expect("keys") {
        match (&mut config[key], value) {
            (Value::Object(at), Value::Object(more)) => at.extend(more.clone()),
            (at, value) => *at = value.clone(),
        }
    }
    RunConfig::from_value(config, "test").unwrap_or_else(|error| panic!("{error}"))
}

fn engine(keys: Value) -> Engine {
    let config = config(keys);
    let source = config.model.as_ref().and_then(|model| model.source()).expect("a model");
    let model = ModelOrigin::open(&config, source).and_then(|mut origin| origin.build(None, 16)).expect("a model");
    initialize(model, config).unwrap_or_else(|error| panic!("{error}"))
}

/// Row `number`: 16 tokens, the first four of which have no target in every third row.
fn row(number: u64) -> Sample {
    let id = |at: u64| ((number * 31 + at * at * 7 + at) % 64) as u32;
    let skipped = if number.is_multiple_of(3) { 4 } else { 0 };
    Sample {
        input_ids: (0..16).map(id).collect(),
        targets: (0..16).map(|at| if at < skipped { -100 } else { id(at + 1) as i32 }).collect(),
        positions: (0..16).collect(),
        document_starts: vec![0],
        ..Sample::default()
    }
}

fn batch(step: u64) -> Vec<Sample> {
    (8 * step..8 * (step + 1)).map(row).collect()
}

/// Forward, backward and step of each micro-batch of a batch; the report of the last.
fn by_hand(engine: &mut Engine, step: u64) -> train::StepReport {
    let mut last = None;
    for (index, samples) in batch(step).chunks(2).enumerate() {
        assert_eq!(engine.is_gradient_accumulation_boundary(), index == 3);
        let loss = engine.forward(samples).expect("a forward");
        engine.backward(&loss).expect("a backward");
        assert_eq!(engine.is_gradient_accumulation_boundary(), index == 3);
        last = engine.step().expect("a step");
        assert_eq!(last.is_some(), index == 3);
    }
    last.expect("the last micro-batch is at the boundary")
}

/// The bytes of the weights.
fn weights(engine: &Engine) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    engine.save_pretrained(&folder.path().join("model"), None).expect("a model folder");
    std::fs::read(folder.path().join("model/model.safetensors")).expect("weights")
}

fn refusal<T>(result: Result<T, TrainError>) -> String {
    result.map(|_| ()).expect_err("a refusal").to_string()
}

#[test]
fn a_loop_of_ones_own_gives_the_bits_of_train_batch() {
    let curriculum = json!({ "enabled": true, "curriculum_type": "seqlen", "min_difficulty": 8, "max_difficulty": 16,
                             "schedule_type": "fixed_linear", "schedule_config": { "total_curriculum_step": 3, "difficulty_step": 4 } });
    let random_ltd = json!({ "enabled": true, "data_routing": { "enabled": true, "random_ltd": {
        "enabled": true, "total_layer_num": 2, "random_ltd_layer_num": 1, "random_ltd_layer_id": [1],
        "model_mask_name": "attention_mask", "model_type": "decoder", "hidden_state_order": "batch_seq_dim",
        "micro_batch_size": 2, "random_ltd_schedule": { "min_value": 8, "max_value": 16, "schedule_type": "fixed_linear",
            "schedule_config": { "require_steps": 3, "seq_per_step": 4 } } } } });
    for keys in [
        json!({}),
        json!({ "bf16": { "enabled": true } }),
        json!({ "fp16": { "enabled": true, "initial_scale_power": 24 }, "run": { "recompute": true } }),
        json!({ "data_efficiency": random_ltd }),
        json!({ "progressive_layer_drop": { "enabled": true, "theta": 0.5, "gamma": 0.5 }, "curriculum_learning": curriculum }),
    ] {
        let (mut whole, mut parts) = (engine(keys.clone()), engine(keys.clone()));
        for step in 0..4 {
            let want = whole.train_batch(&batch(step)).expect("a step");
            // As text, in which NaN is itself: the first steps in fp16 overflow.
            assert_eq!(format!("{:?}", by_hand(&mut parts, step)), format!("{want:?}"), "{keys}, step {step}");
        }
        assert_eq!(parts.counters(), whole.counters());
        assert!(weights(&parts) == weights(&whole), "{keys}: the weights differ");
    }
}

#[test]
fn the_losses_of_micro_batches_weighted_by_their_targets_are_the_loss_of_the_step() {
    let mut engine = engine(json!({ "run": { "gradient_noise": 0.0 } }));
    let (mut sum, mut targets) = (0.0, 0);
    let samples = batch(0);
    for samples in samples.chunks(2) {
        let loss = engine.forward(samples).expect("a forward");
        let own: usize = samples.iter().map(Sample::num_targets).sum();
        sum += own as f64 * loss.item(&engine).expect("a loss");
        targets += own;
        engine.backward(&loss).expect("a backward");
        let Some(report) = engine.step().expect("a step") else { continue };
        assert_eq!(report.num_targets, targets as u64);
        let mean = sum / targets as f64;
        assert!((mean - report.loss).abs() < 1e-12, "{mean} and {}", report.loss);
    }
    assert_eq!(engine.global_steps(), 1);
    let none = Sample { targets: vec![-100; 16], ..row(1) };
    let loss = engine.forward(&[none]).expect("a forward");
    assert!(loss.item(&engine).expect("a loss").is_nan());
}

#[test]
fn calls_in_a_wrong_order_say_what_to_call_first_and_change_nothing() {
    let mut engine = engine(json!({}));
    let mut other = self::engine(json!({}));
    let samples = batch(0);
    assert_eq!(
        refusal(engine.step()),
        "Engine::step: there is no gradient since the last step; call forward(samples) and backward(&loss) first"
    );
    let foreign = other.forward(&samples[..2]).expect("a forward");
    assert_eq!(
        refusal(engine.backward(&foreign)),
        "Engine::backward: no forward waits for its backward; call forward(samples) first, and backward once for each"
    );
    let loss = engine.forward(&samples[..2]).expect("a forward");
    assert_eq!(
        refusal(engine.backward(&foreign)),
        "Engine::backward: this loss is not that of the last forward of this engine; call backward with the loss that \
         forward(samples) gave last"
    );
    assert_eq!(
        refusal(engine.forward(&samples[2..4])),
        "Engine::forward: the micro-batch before has had no backward; call backward(&loss) first, or zero_grad() to give up \
         the micro-batches since the last update"
    );
    assert_eq!(refusal(engine.step()), "Engine::step: the forward has had no backward; call backward(&loss) first");
    engine.backward(&loss).expect("a backward");
    assert!(refusal(engine.backward(&loss)).contains("no forward waits for its backward"));
    assert_eq!(
        refusal(engine.forward(&samples[2..4])),
        "Engine::forward: the micro-batch before has not been stepped; call step() after each backward, which updates at the \
         boundary of accumulation and counts elsewhere, or accumulate under no_sync"
    );
    assert_eq!(
        refusal(engine.train_batch(&samples)),
        "Engine::train_batch: micro-batches have been accumulated and not applied; call \
         set_gradient_accumulation_boundary(true) and step() first, or zero_grad() to give them up"
    );
    assert!(engine.step().expect("a step").is_none());
    // Nothing of all this is in the gradient: the step goes on as if it had not been.
    for samples in samples[2..].chunks(2) {
        let loss = engine.forward(samples).expect("a forward");
        engine.backward(&loss).expect("a backward");
        engine.step().expect("a step");
    }
    other.zero_grad();
    other.train_batch(&samples).expect("a step");
    assert_eq!(engine.global_steps(), 1);
    assert!(weights(&engine) == weights(&other), "the weights differ");
}

#[test]
fn a_row_that_is_too_long_leaves_what_was_accumulated() {
    let (mut engine, mut other) = (engine(json!({})), engine(json!({})));
    let long = Sample { input_ids: vec![1; 17], targets: vec![1; 17], positions: (0..17).collect(), ..row(0) };
    for (index, samples) in batch(0).chunks(2).enumerate() {
        if index == 2 {
            assert!(
                refusal(engine.forward(std::slice::from_ref(&long))).contains("longer than the model's 16 positions")
            );
        }
        let loss = engine.forward(samples).expect("a forward");
        engine.backward(&loss).expect("a backward");
        engine.step().expect("a step");
    }
    other.train_batch(&batch(0)).expect("a step");
    assert!(weights(&engine) == weights(&other), "the weights differ");
}

#[test]
fn no_sync_accumulates_without_counting_and_refuses_updates() {
    let (mut engine, mut other) =
        (engine(json!({ "train_batch_size": 8, "train_micro_batch_size_per_gpu": 8 })), self::engine(json!({})));
    let samples = batch(0);
    let accumulated = engine.no_sync(|engine| {
        for samples in samples[..6].chunks(2) {
            let loss = engine.forward(samples)?;
            engine.backward(&loss)?;
        }
        assert_eq!(
            refusal(engine.step()),
            "Engine::step: it is called within no_sync, where nothing is updated; leave no_sync first"
        );
        assert!(refusal(engine.train_batch(&samples)).starts_with("Engine::train_batch: it is called within no_sync"));
        assert_eq!(
            refusal(engine.no_sync(|_| Ok(()))),
            "Engine::no_sync: it is on already; leave the outer no_sync first"
        );
        Ok(3)
    });
    assert_eq!(accumulated.expect("three micro-batches"), 3);
    let loss = engine.forward(&samples[6..]).expect("a forward");
    engine.backward(&loss).expect("a backward");
    let report = engine.step().expect("a step").expect("one accumulation step is at the boundary");
    assert_eq!(report, other.train_batch(&samples).expect("a step"));
}

#[test]
fn the_caller_may_own_the_boundary() {
    let pass = |engine: &mut Engine, first: usize| {
        let loss = engine.forward(&batch(0)[first..first + 2]).expect("a forward");
        engine.backward(&loss).expect("a backward");
        engine.step().expect("a step").is_some()
    };
    // By a call, which holds until the next.
    let mut asked = engine(json!({}));
    asked.set_gradient_accumulation_boundary(true);
    assert!(pass(&mut asked, 0) && pass(&mut asked, 2));
    asked.set_gradient_accumulation_boundary(false);
    assert!((0..6).all(|index| !pass(&mut asked, index)));
    asked.set_gradient_accumulation_boundary(None);
    assert!(pass(&mut asked, 6));
    assert_eq!((asked.global_steps(), asked.counters().samples), (3, 18));
    // By the run file: every step updates, after as many passes as one likes.
    let mut unmanaged = engine(json!({ "managed_gradient_accumulation": false }));
    for first in [0, 2] {
        let loss = unmanaged.forward(&batch(0)[first..first + 2]).expect("a forward");
        unmanaged.backward(&loss).expect("a backward");
    }
    assert_eq!(unmanaged.step().expect("a step").expect("an update").num_targets, 56);
    assert!(pass(&mut unmanaged, 4));
}

#[test]
fn under_a_ramp_the_boundary_comes_after_as_many_micro_batches_as_the_step_has() {
    let mut engine = engine(json!({ "run": { "batch_ramp": { "start": 2, "steps": 2 } } }));
    let updates: Vec<bool> = (0..11)
        .map(|index| {
            let loss = engine.forward(&[row(2 * index), row(2 * index + 1)]).expect("a forward");
            engine.backward(&loss).expect("a backward");
            engine.step().expect("a step").is_some()
        })
        .collect();
    let want = [[true, false, true].as_slice(), &[false, false, false, true].repeat(2)].concat();
    assert_eq!(updates, want, "steps of 2, 4, 8 and 8 rows");
}

#[test]
fn an_engine_may_go_to_another_thread_in_the_middle_of_a_step() {
    let (mut engine, mut other) = (engine(json!({})), engine(json!({})));
    let samples = batch(0);
    let first = engine.forward(&samples[..2]).expect("a forward");
    let mut engine = std::thread::spawn(move || {
        engine.backward(&first).expect("a backward");
        engine.step().expect("a step");
        engine
    })
    .join()
    .expect("the thread");
    for samples in samples[2..].chunks(2) {
        let loss = engine.forward(samples).expect("a forward");
        engine.backward(&loss).expect("a backward");
        engine.step().expect("a step");
    }
    other.train_batch(&samples).expect("a step");
    assert!(weights(&engine) == weights(&other), "the weights differ");
}

#[test]
fn the_rate_that_is_set_holds_until_the_schedule_moves_and_groups_keep_their_ratio() {
    let groups = json!({ "type": "SGD", "params": { "lr": 0.5 }, "groups": [{ "match": ["*wte*"], "lr": 0.25 }, { "match": ["*wpe*"], "frozen": true }] });
    let mut constant = engine(json!({ "optimizer": groups }));
    assert_eq!(constant.get_lr(), [0.5, 0.25, 0.0]);
    constant.set_lr(0.0).expect("a rate");
    let before = weights(&constant);
    for step in 0..2 {
        constant.train_batch(&batch(step)).expect("a step");
    }
    assert_eq!(constant.get_lr(), [0.0; 3]);
    assert!(weights(&constant) == before, "a rate of 0 changes nothing");
    constant.set_lr(0.1).expect("a rate");
    assert_eq!(constant.get_lr(), [0.1, 0.05, 0.0]);
    assert_eq!(
        refusal(constant.set_lr(f64::NAN)),
        "Engine::set_lr: the rate is NaN; it must be a number of at least 0"
    );
    let scheduler = json!({ "type": "linear", "params": { "num_warmup_steps": 0, "num_training_steps": 10 } });
    let mut scheduled = engine(json!({ "scheduler": scheduler }));
    let schedule = scheduled.get_lr()[0];
    scheduled.set_lr(5e-4).expect("a rate");
    assert_eq!(scheduled.get_lr(), [5e-4]);
    scheduled.train_batch(&batch(0)).expect("a step");
    let next = scheduled.get_lr()[0];
    assert!((next - schedule * 0.9).abs() < 1e-12, "{next}");
}

#[test]
fn an_overflow_is_a_skipped_step_and_the_norm_is_that_of_the_last_one() {
    let mut engine = engine(json!({ "fp16": { "enabled": true, "initial_scale_power": 40, "hysteresis": 1 } }));
    assert_eq!((engine.get_global_grad_norm(), engine.was_step_applied()), (None, false));
    engine.train_batch(&batch(0)).expect("a step");
    assert_eq!((engine.global_steps(), engine.skipped_steps(), engine.was_step_applied()), (1, 1, false));
    assert!(!engine.get_global_grad_norm().expect("a norm").is_finite());
    let mut steps = 1;
    while !engine.was_step_applied() {
        engine.train_batch(&batch(steps)).expect("a step");
        steps += 1;
    }
    assert_eq!(engine.skipped_steps(), steps - 1);
    assert!(engine.get_global_grad_norm().expect("a norm").is_finite());
}

#[test]
fn an_evaluation_between_forward_and_backward_has_no_dropout_and_changes_nothing() {
    let (mut engine, mut other) =
        (engine(json!({ "run": { "ema_decay": 0.5 } })), self::engine(json!({ "run": { "ema_decay": 0.5 } })));
    let evaluated = engine.eval_batch(&batch(3)).expect("an evaluation");
    assert_eq!(evaluated.tokens, batch(3).iter().map(|sample| sample.num_targets() as u64).sum::<u64>());
    for samples in batch(0).chunks(2) {
        let loss = engine.forward(samples).expect("a forward");
        assert_eq!(engine.eval_batch(&batch(3)).expect("an evaluation"), evaluated);
        engine.backward(&loss).expect("a backward");
        engine.step().expect("a step");
    }
    other.train_batch(&batch(0)).expect("a step");
    assert!(weights(&engine) == weights(&other), "the weights differ");
}

/// Trains steps `from..to` and gives the bits of their losses.
fn train(engine: &mut Engine, steps: std::ops::Range<u64>) -> Vec<u64> {
    steps.map(|step| engine.train_batch(&batch(step)).expect("a step").loss.to_bits()).collect()
}

fn load(engine: &mut Engine, dir: &Path, tag: Option<&str>, options: LoadOptions) -> Loaded {
    engine.load_checkpoint(dir, tag, options).unwrap_or_else(|error| panic!("{error}")).expect("a checkpoint")
}

#[test]
fn what_is_saved_goes_on_bit_for_bit_and_gives_the_client_its_state_back() {
    let keys = json!({ "fp16": { "enabled": true }, "run": { "ema_decay": 0.9 } });
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("checkpoints");
    let mut straight = engine(keys.clone());
    straight.set_lr(3e-3).expect("a rate");
    train(&mut straight, 0..3);
    let client = json!({ "epoch": 2, "best": 1.25, "names": ["a", "b\n  \"crc32c\": 1"], "tiny": 5e-324 });
    let path = straight.save_checkpoint(&dir, None, client.clone()).expect("a checkpoint");
    assert_eq!(path, dir.join("global_step3"));
    assert_eq!(std::fs::read_to_string(dir.join("latest")).expect("latest"), "global_step3\n");
    let want = train(&mut straight, 3..6);
    straight.save_checkpoint(&dir, Some("v1.6"), Value::Null).expect("a checkpoint");

    let mut resumed = engine(keys.clone());
    // Half a step is given up.
    let half = resumed.forward(&batch(9)[..2]).expect("a forward");
    let loaded = load(&mut resumed, &dir, Some("global_step3"), LoadOptions::default());
    assert_eq!(loaded, Loaded { path, client_state: client });
    assert!(resumed.backward(&half).is_err());
    assert_eq!(resumed.get_lr(), [3e-3]);
    assert_eq!(train(&mut resumed, 3..6), want);
    assert!(weights(&resumed) == weights(&straight), "the weights differ");

    // Without a tag it is the newest.
    let mut newest = engine(keys);
    let loaded = load(&mut newest, &dir, None, LoadOptions::default());
    assert_eq!(loaded, Loaded { path: dir.join("v1.6"), client_state: Value::Null });
    assert_eq!(newest.counters(), straight.counters());
    assert!(weights(&newest) == weights(&straight), "the weights differ");
}

#[test]
fn a_checkpoint_that_is_not_there_is_none_or_an_error_that_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = engine(json!({}));
    assert_eq!(engine.load_checkpoint(folder.path(), None, LoadOptions::default()).expect("none"), None);
    assert_eq!(
        refusal(engine.load_checkpoint(folder.path(), Some("best"), LoadOptions::default())),
        format!(
            "the checkpoint's tag is \"best\"; there is no such checkpoint in {}; give one that was saved there",
            folder.path().display()
        )
    );
    assert_eq!(
        refusal(engine.save_checkpoint(folder.path(), Some("a/b"), Value::Null)),
        "the checkpoint's tag is \"a/b\"; it must be the name of a folder, without slashes and without space around it"
    );
    let mut universal = self::engine(json!({ "checkpoint": { "load_universal": true } }));
    assert_eq!(
        refusal(universal.load_checkpoint(folder.path(), None, LoadOptions::default())),
        format!(
            "{}: there is no checkpoint here, and checkpoint.load_universal asks for one; give the folder that \
             save_checkpoint was given",
            folder.path().display()
        )
    );
}

#[test]
fn weights_alone_are_a_warm_start_for_any_optimizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = engine(json!({}));
    train(&mut first, 0..3);
    first.save_checkpoint(folder.path(), Some("end"), json!(7)).expect("a checkpoint");
    let lion = json!({ "optimizer": { "type": "Lion", "params": { "lr": 1e-3 } } });
    let mut second = engine(lion.clone());
    assert_eq!(
        refusal(second.load_checkpoint(folder.path(), None, LoadOptions::default())),
        format!(
            "{}: the checkpoint was written with optimizer AdamW; this run has Lion, and the optimizer may not change",
            folder.path().join("end").display()
        )
    );
    let module_only = LoadOptions { module_only: true, ..LoadOptions::default() };
    assert_eq!(load(&mut second, folder.path(), None, module_only).client_state, json!(7));
    assert!(weights(&second) == weights(&first), "the weights differ");
    assert_eq!(second.global_steps(), 0);
    train(&mut second, 0..1);
    assert!(weights(&second) != weights(&first), "it trains on");
}

#[test]
fn without_the_optimizers_states_it_takes_a_first_step_and_without_the_schedules_the_rate_begins_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let scheduler = json!({ "type": "linear", "params": { "num_warmup_steps": 0, "num_training_steps": 100 } });
    let keys = json!({ "scheduler": scheduler });
    let mut straight = engine(keys.clone());
    train(&mut straight, 0..4);
    straight.save_checkpoint(dir, None, Value::Null).expect("a checkpoint");
    let mut fresh = engine(keys.clone());
    let options = LoadOptions { optimizer_states: false, lr_scheduler_states: false, ..LoadOptions::default() };
    load(&mut fresh, dir, None, options);
    assert_eq!(fresh.counters(), straight.counters());
    assert_eq!(fresh.get_lr(), engine(keys.clone()).get_lr());
    // Without dropout, which counts the steps, it is what comes of the weights alone: a first step of Adam at the first rate.
    let model = json!({ "config": { "model_type": "gpt2", "vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2,
                                    "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 } });
    let keys = json!({ "scheduler": scheduler, "model": model });
    let [warm, anew, resumed, whole] = &mut [0; 4].map(|_| engine(keys.clone()));
    load(warm, dir, None, LoadOptions { module_only: true, ..LoadOptions::default() });
    load(anew, dir, None, options);
    let want = train(warm, 4..8);
    assert_eq!(train(anew, 4..6), want[..2]);
    // And it is in its own checkpoints.
    anew.save_checkpoint(dir, Some("anew"), Value::Null).expect("a checkpoint");
    load(resumed, dir, Some("anew"), LoadOptions::default());
    assert_eq!(train(resumed, 6..8), want[2..]);
    // With all states it is another run.
    load(whole, dir, Some("global_step4"), LoadOptions::default());
    assert_ne!(train(whole, 4..6)[1], want[1]);
}

#[test]
fn a_group_s_own_schedule_goes_on_where_it_was_when_the_optimizer_begins_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let warmup = json!({ "warmup_min_lr": [0.0, 0.0], "warmup_max_lr": [0.1, 0.02], "warmup_num_steps": 50,
                         "warmup_type": "linear" });
    let keys = json!({
        "optimizer": { "type": "SGD", "params": { "lr": 0.02 }, "groups": [{ "match": ["*mlp*"], "lr": 0.1 }] },
        "scheduler": { "type": "WarmupLR", "params": warmup },
    });
    let mut straight = engine(keys.clone());
    train(&mut straight, 0..4);
    straight.save_checkpoint(folder.path(), None, Value::Null).expect("a checkpoint");
    let mut anew = engine(keys);
    load(&mut anew, folder.path(), None, LoadOptions { optimizer_states: false, ..LoadOptions::default() });
    assert_eq!(anew.get_lr(), straight.get_lr());
    // Without momentum there is no state to miss.
    assert_eq!(train(&mut anew, 4..8), train(&mut straight, 4..8));
}

#[test]
fn a_damaged_checkpoint_leaves_the_engine_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = engine(json!({}));
    train(&mut engine, 0..2);
    let path = engine.save_checkpoint(folder.path(), None, Value::Null).expect("a checkpoint");
    train(&mut engine, 2..3);
    let before = weights(&engine);
    let file = path.join("rank-00000.safetensors");
    let mut bytes = std::fs::read(&file).expect("the file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).expect("a damaged file");
    let said = refusal(engine.load_checkpoint(folder.path(), None, LoadOptions::default()));
    assert!(said.contains("the file is damaged"), "{said}");
    assert!(weights(&engine) == before && engine.global_steps() == 3, "the engine changed");
    // The next one is written over it.
    engine.save_checkpoint(folder.path(), Some("global_step2x"), Value::Null).expect("a checkpoint");
    assert_eq!(
        engine.load_checkpoint(folder.path(), None, LoadOptions::default()).expect("one").expect("one").path,
        folder.path().join("global_step2x")
    );
}

#[test]
fn the_16_bit_model_is_bf16_unless_the_run_is_in_fp16() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, keys, want) in [
        ("f32", json!({}), safetensors::Dtype::BF16),
        ("fp16", json!({ "fp16": { "enabled": true } }), safetensors::Dtype::F16),
    ] {
        let path = folder.path().join(name);
        engine(keys).save_16bit_model(&path).expect("a model folder");
        let bytes = std::fs::read(path.join("model.safetensors")).expect("weights");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        assert!(file.tensors().iter().all(|(_, tensor)| tensor.dtype() == want), "{name}");
    }
}

#[test]
fn what_only_hosts_with_disks_of_their_own_need_is_refused_by_name_and_writing_in_parts_is_what_happens_anyway() {
    let at = |keys: Value| config(json!({ "checkpoint": keys }));
    assert_eq!(
        at(json!({ "use_node_local_storage": true })).supported().expect_err("a refusal").to_string(),
        "test: checkpoint.use_node_local_storage is true, which is not supported yet; it must be false \
         (run.output must be a folder that every rank sees)"
    );
    let accepted =
        at(json!({ "tag_validation": "FAIL", "load_universal": true, "parallel_write": { "pipeline_stage": true } }));
    accepted.supported().expect("accepted");
    assert_eq!(accepted.checkpoint.tag_validation, train::checkpoint::TagValidation::Fail);
    assert!(accepted.checkpoint.load_universal);
}

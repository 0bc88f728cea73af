//! What holds for every run file, right or wrong: no text ends in a panic, and what is accepted round-trips.
//!
//! `PROPTEST_CASES` sets how many files each property is tried on; 20,000 were tried by hand.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::ops::Bound;
use train::config::RunConfig;
use train::config::keys::{Key, Kind, Status, all_keys};
use train::plan::report::PlanReport;

/// Texts that damage is done to: every way of writing things that the reader knows.
const RIGHT: [&str; 3] = [
    "// c\n{\"data\": {\"train\": [\"a\", {\"path\": \"\u{e9}\\u00e9\"}]}, # x\n bf16: {\"enabled\": true}, /* y */\n\
     \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 1e-3, \"betas\": [0.9, 0.95,]}}}",
    "train_batch_size: 8\nzero_optimization: {\n  stage: 3\n  offload_optimizer: { device: \"cpu\" }\n}\n\
     run: {\n  output: runs/a b\n  sample_prompt: '''\n    one\n      two\n    '''\n  device: 'auto'\n}\n",
    "{elasticity: {enabled: true, max_train_batch_size: 9e3, micro_batch_sizes: [2, 4]}, scheduler: {type: \"cosine\"}, \
     pipeline: {stages: \"auto\"}, fp16: {enabled: false, loss_scale: 0}, bfloat16: {enabled: \"auto\"}, \
     amp: {any: {thing: [1, {}]}}, zero_optimization: {cpu_offload: true}}",
];

/// Pieces that stand in for each other in a damaged text.
const PIECES: [&str; 28] = [
    "",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "'''",
    "\\",
    ",",
    ":",
    "/",
    "//",
    "/*",
    "*/",
    "#",
    "\n",
    "\r\n",
    " ",
    "9",
    "-",
    "1e999",
    "99999999999999999999999999",
    "-0.0",
    "null",
    "true",
    "\u{fe0f}",
    "\u{0}",
];

/// Reads, resolves and plans; whatever is wrong must be an error.
fn read(text: &str, ranks: u64) {
    let Ok(config) = RunConfig::parse(text, "any.json") else { return };
    if let Ok(report) = PlanReport::of(&without_model(config), ranks) {
        assert!(report.lines().len() > 300, "{text}");
    }
}

/// The plan of a model reads files and runs it dry, which is not what is tried here.
fn without_model(mut config: RunConfig) -> RunConfig {
    config.model = None;
    config
}

fn round_trips(file: Value) -> Result<(), TestCaseError> {
    let Ok(first) = RunConfig::from_value(file.clone(), "any.json") else { return Ok(()) };
    let resolved = first.resolved(&[]);
    let again = match RunConfig::parse(&resolved.to_string(), "any.json") {
        Ok(again) => again,
        Err(error) => return Err(TestCaseError::fail(format!("{file} was accepted, and then {error}"))),
    };
    prop_assert_eq!(&again.resolved(&[]), &resolved, "{}", file);
    let typed = |config: &RunConfig| serde_json::to_value(config).expect("JSON");
    prop_assert_eq!(typed(&again), typed(&first), "{}", file);
    Ok(())
}

/// A value for a key, most often one of its kind.
fn value(kind: &Kind, pick: u64) -> Value {
    let (choice, rest) = ((pick % 64) as usize, pick / 64);
    match *kind {
        Kind::Bool => json!(choice % 2 == 0),
        Kind::Int { min, max } => {
            [json!(1), json!(2), json!(min), json!(max), json!(8), json!(1e9), json!(-1)][choice % 7].clone()
        }
        Kind::Number(low, high) => {
            let end = |bound| match bound {
                Bound::Included(end) | Bound::Excluded(end) => end,
                Bound::Unbounded => 1e300,
            };
            Value::from([0.5, 0.0, 1.0, 1e-8, end(low), end(high), 17.0][choice % 7])
        }
        Kind::Text => Value::from(["x", "auto", "", "a 'b'\n\"\u{e9}\\", "true", "12"][choice % 6]),
        Kind::Names(names) => json!(names[choice % names.len()]),
        Kind::List(item) => (0..choice as u64 % 3).map(|i| value(item, rest + i)).collect(),
        Kind::Pair(item) => json!([value(item, rest), value(item, rest / 64)]),
        Kind::Section(Some(item)) => json!({ "any": value(item, rest) }),
        Kind::Section(None) => json!({}),
        Kind::Quoted(kind) => json!(value(kind, rest).to_string()),
        Kind::Null => Value::Null,
        Kind::Any => [json!(1), json!({"a": [true, null]}), json!("auto")][choice % 3].clone(),
        Kind::OneOf(kinds) => value(&kinds[choice % kinds.len()], rest),
    }
}

/// A value that no kind has in mind: the ends of every number, and nested lists and sections.
fn wild(pick: u64, depth: u32) -> Value {
    let (choice, rest) = (pick % 24, pick / 24);
    match choice {
        0 => json!(i64::MIN),
        1 => json!(i64::MAX),
        2 => json!(u64::MAX),
        3 => json!(f64::MAX),
        4 => json!(-f64::MAX),
        5 => json!(f64::MIN_POSITIVE / 8.0),
        6 => json!(-0.0),
        7 => json!(9.3e18),
        8 => json!(1u64 << 53),
        9 => json!(0.1 + 0.2),
        10 => json!(rest as i64),
        11 => json!(f64::from_bits(rest | 1)),
        12 => json!(true),
        13 => Value::Null,
        14 => json!("auto"),
        15 => json!("-1e400"),
        16 => json!("\u{0}\u{2028}\u{feff}\u{1f600}"),
        17 | 18 if depth < 6 => (0..rest % 4).map(|i| wild(rest / 4 + i * 7, depth + 1)).collect(),
        19..=21 if depth < 6 => {
            let names = ["enabled", "params", "type", "a.b", "", "shared_parameters", "match"];
            let name = |i: u64| names[((rest / 8 + i) % 7) as usize].to_owned();
            (0..rest % 4).map(|i| (name(i), wild(rest / 8 + i * 5, depth + 1))).collect()
        }
        _ => json!([]),
    }
}

/// The same file as HJSON: keys and plain words without quotes, lines in place of commas, a comment on the way.
fn hjson(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    let is_plain = |text: &str| {
        text.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '/'))
            && !matches!(text, "true" | "false" | "null")
    };
    match value {
        Value::Object(map) => {
            out.push_str("{ # a comment, with } and \" in it\n");
            for (name, value) in map {
                let name = if is_plain(name) { name.clone() } else { json!(name).to_string() };
                out.push_str(&format!("{pad}  {name}: "));
                hjson(value, indent + 1, out);
                out.push('\n');
            }
            out.push_str(&format!("{pad}}}"));
        }
        Value::Array(items) => {
            out.push_str("[\n");
            for item in items {
                out.push_str(&format!("{pad}  "));
                hjson(item, indent + 1, out);
                out.push('\n');
            }
            out.push_str(&format!("{pad}] // its end"));
        }
        Value::String(text) if is_plain(text) => out.push_str(text),
        value => out.push_str(&value.to_string()),
    }
}

/// Writes `value` at the place of `key`, unless something that is no section stands in the way.
fn put(file: &mut Map<String, Value>, key: &Key, value: Value) {
    let mut map = file;
    let names: Vec<&str> = key.path.split('.').collect();
    let (last, sections) = names.split_last().expect("a name");
    for name in sections {
        let section = map.entry(name.replace('*', "group")).or_insert_with(|| json!({}));
        let Value::Object(section) = section else { return };
        map = section;
    }
    map.entry(*last).or_insert(value);
}

/// A file of some keys of the table; keys of `params` come with their type.
fn file_of(picks: &[(usize, u64)]) -> Value {
    let keys: Vec<_> = all_keys().filter(|(_, key)| !key.path.contains('[')).collect();
    let mut file = Map::new();
    for (index, pick) in picks {
        let (of_type, key) = keys[index % keys.len()];
        if let Some(name) = of_type {
            let section = key.path.split('.').next().expect("a section");
            let found = file.entry(section).or_insert_with(|| json!({ "type": name }));
            if found["type"] != name {
                continue;
            }
        }
        let is_auto = pick % 16 == 15;
        let is_wild = pick % 16 == 14;
        let value = match (is_auto, is_wild) {
            (true, _) => json!("auto"),
            (_, true) => wild(pick / 16, 0),
            _ => value(&key.kind, *pick),
        };
        put(&mut file, key, value);
    }
    file.into()
}

/// How many files each property is tried on.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read(&String::from_utf8_lossy(&bytes), 1);
    }

    #[test]
    fn no_text_of_the_syntax_s_own_characters_makes_it_panic(
        pieces in proptest::collection::vec((0..PIECES.len(), "[a-z_]{0,3}"), 0..60)
    ) {
        let text: String = pieces.iter().map(|(at, word)| format!("{}{word}", PIECES[*at])).collect();
        read(&text, 1);
    }

    #[test]
    fn no_damaged_file_makes_it_panic(
        which in 0..RIGHT.len(),
        damages in proptest::collection::vec((any::<prop::sample::Index>(), 0..PIECES.len(), 0..4usize), 1..5),
        ranks in 1..9u64,
    ) {
        let mut text: Vec<char> = RIGHT[which].chars().collect();
        for (at, piece, num_cut) in damages {
            let at = at.index(text.len() + 1);
            let end = text.len().min(at + num_cut);
            text.splice(at..end, PIECES[piece].chars());
        }
        read(&text.iter().collect::<String>(), ranks);
    }

    #[test]
    fn no_bytes_inside_a_right_file_make_it_panic(
        which in 0..RIGHT.len(),
        at in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 1..12),
    ) {
        let mut text = RIGHT[which].as_bytes().to_vec();
        let at = at.index(text.len() + 1);
        text.splice(at..at, bytes);
        read(&String::from_utf8_lossy(&text), 1);
    }

    #[test]
    fn no_value_whatever_at_any_key_makes_it_panic(index in any::<usize>(), pick in any::<u64>(), ranks in 1..9u64) {
        let keys: Vec<_> = all_keys().filter(|(_, key)| !key.path.contains('[')).collect();
        let (of_type, key) = keys[index % keys.len()];
        let mut file = Map::new();
        if let Some(name) = of_type {
            file.insert(key.path.split('.').next().expect("a section").to_owned(), json!({ "type": name }));
        }
        file.insert("train_batch_size".into(), json!(8));
        put(&mut file, key, wild(pick, 0));
        read(&Value::from(file.clone()).to_string(), ranks);
        round_trips(file.into())?;
    }

    #[test]
    fn hjson_says_the_same_as_json(picks in proptest::collection::vec((any::<usize>(), any::<u64>()), 0..8)) {
        let file = file_of(&picks);
        let mut text = String::new();
        hjson(&file, 0, &mut text);
        let [from_json, from_hjson] = [file.to_string(), text.clone()].map(|text| RunConfig::parse(&text, "any.json"));
        match (from_json, from_hjson) {
            (Ok(one), Ok(other)) => prop_assert_eq!(one.resolved(&[]), other.resolved(&[]), "{}", text),
            (Err(one), Err(other)) => prop_assert_eq!(one.to_string(), other.to_string(), "{}", text),
            (one, other) => prop_assert!(false, "{:?} and {:?}: {}", one.is_ok(), other.map_err(|e| e.to_string()).err(), text),
        }
    }

    #[test]
    fn no_nesting_makes_it_panic(depth in 0..5000usize, opening in prop::sample::select(vec!["{a:", "[", "{a:[", "{\"a\": {", "a: ["])) {
        read(&opening.repeat(depth), 1);
        read(&format!("{{amp: {}}}", opening.repeat(depth)), 1);
    }

    #[test]
    fn what_is_accepted_round_trips(picks in proptest::collection::vec((any::<usize>(), any::<u64>()), 0..8), ranks in 1..9u64) {
        let file = file_of(&picks);
        read(&file.to_string(), ranks);
        round_trips(file)?;
    }
}

#[test]
fn files_that_are_right_round_trip_as_they_are_written() {
    for text in RIGHT {
        let config = RunConfig::parse(text, "any.json").unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(round_trips(config.resolved(&[])).is_ok());
    }
}

#[test]
fn every_key_alone_with_any_of_its_values_is_read_without_a_panic_and_round_trips() {
    let num_keys = all_keys().filter(|(_, key)| !key.path.contains('[')).count();
    let mut num_accepted = 0;
    for index in 0..num_keys {
        for pick in 0..7 {
            let file = file_of(&[(index, pick)]);
            num_accepted += u32::from(RunConfig::from_value(file.clone(), "any.json").is_ok());
            round_trips(file).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    assert!(num_accepted > 2000, "{num_accepted} files of {}", 7 * num_keys);
}

#[test]
fn every_key_that_does_not_work_yet_can_be_planned_and_is_refused_for_training() {
    let (mut num_keys, mut refused_at_once) = (0, Vec::new());
    for (index, (_, key)) in all_keys().filter(|(_, key)| !key.path.contains('[')).enumerate() {
        let Status::NotYet { except } = key.status else { continue };
        let is_other = |value: &Value| {
            let (text, default) = (value.to_string(), key.default_value());
            let is_equal = value.as_f64().zip(default.as_f64()).map_or(*value == default, |(a, b)| a == b);
            !is_equal && !except.contains(&text.as_str())
        };
        let picks: Vec<u64> = (0..7).filter(|pick| is_other(&value(&key.kind, *pick))).collect();
        let read =
            |pick: &u64| RunConfig::from_value(switched_on(file_of(&[(index, *pick)]), key.path), "any.json").ok();
        let Some(config) = picks.iter().find_map(read) else {
            refused_at_once.extend(Some(key.path).filter(|_| !picks.is_empty()));
            continue;
        };
        let refusal = config.supported().expect_err(key.path).to_string();
        assert!(refusal.contains("not supported yet"), "{}: {refusal}", key.path);
        assert!(PlanReport::of(&with_batch(config), 2).is_ok(), "{}", key.path);
        num_keys += 1;
    }
    assert!(num_keys > 200, "{num_keys}");
    // DeepSpeed knows one value of each of these.
    let one_value = [
        "expert_parallel.expert_tensor_parallel_size",
        "zero_optimization.legacy_stage1",
        "data_efficiency.data_routing.random_ltd.layer_token_lr_schedule.enabled",
    ];
    assert_eq!(refused_at_once, one_value);
}

/// `file` with every feature switched on that the key at `path` is a setting of, and with what DeepSpeed asks for beside it.
fn switched_on(mut file: Value, path: &str) -> Value {
    for switch in all_keys().filter_map(|(_, key)| key.path.strip_suffix(".enabled")) {
        let feature = switch.strip_suffix(".shared_parameters").unwrap_or(switch);
        if path.starts_with(&format!("{feature}.")) {
            let section = switch.split('.').fold(&mut file, |section, name| &mut section[name]);
            section["enabled"] = json!(true);
        }
    }
    let beside = |path: &str, value: Value, file: &mut Value| {
        let at = path.split('.').fold(file, |section, name| &mut section[name]);
        if at.is_null() {
            *at = value;
        }
    };
    let is_half = path.ends_with("_master_weights_and_grads") || path == "bf16.bf16_optimizer_states";
    if path.starts_with("zero_optimization.") || is_half {
        let is_zenflow = path.starts_with("zero_optimization.zenflow");
        beside("zero_optimization.stage", json!(if is_half { 2 } else { 3 }), &mut file);
        beside("zero_optimization.offload_optimizer.device", json!("cpu"), &mut file);
        if is_zenflow {
            beside("zero_optimization.zenflow.select_strategy", json!("step"), &mut file);
        }
    }
    if path == "bf16.bf16_optimizer_states" {
        beside("bf16.bf16_master_weights_and_grads", json!(true), &mut file);
    }
    if file["scheduler"]["type"] == "OneCycle" {
        beside("scheduler.params.cycle_min_lr", json!(0.001), &mut file);
        beside("scheduler.params.cycle_max_lr", json!(0.1), &mut file);
    }
    if path.contains(".head_pruning.") {
        beside("compression_training.head_pruning.shared_parameters.num_heads", json!(4), &mut file);
    }
    if path.contains(".dynamic_batching.") {
        beside("data_efficiency.data_sampling.dynamic_batching.max_tokens", json!(4), &mut file);
    }
    file
}

fn with_batch(config: RunConfig) -> RunConfig {
    let mut config = without_model(config);
    config.train_batch_size = config.train_batch_size.or(Some(8));
    config
}

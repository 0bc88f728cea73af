//! Curves for other programs: what TensorBoard and CSV readers find is what `metrics.jsonl` says, resumed runs included.

mod common;

use common::{run, set, small, try_run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::tempdir;
use train::metrics::MetricsFile;

/// A small run with both monitors, an evaluation on the way, and everything that can be measured.
fn watched(dir: &Path) -> Value {
    let mut config = small(&dir.join("run"));
    let monitor = |name: &str| json!({ "enabled": true, "output_path": dir.join(name), "job_name": "job" });
    set(&mut config, "tensorboard", monitor("tb"));
    set(&mut config, "csv_monitor", monitor("csv"));
    set(&mut config, "data.validation", json!({ "split": 0.001 }));
    set(&mut config, "run.eval_every", json!(5));
    set(&mut config, "run.norms_every", json!(4));
    for key in ["wall_clock_breakdown", "memory_breakdown"] {
        set(&mut config, key, json!(true));
    }
    config
}

/// One event as its file has it.
#[derive(Debug, Default)]
struct TbEvent {
    wall_time: f64,
    step: u64,
    file_version: Option<String>,
    is_start: bool,
    scalars: Vec<(String, f32)>,
}

/// The fields of a protocol buffer: number and content; numbers as 8 bytes.
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let length = match key & 7 {
            0 => {
                found.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut data) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, data[..length].to_vec()));
        data = &data[length..];
    }
    found
}

/// Reads the frames of an event file, each checksum held against the data.
fn events(path: &Path) -> Vec<TbEvent> {
    let masked = |data: &[u8]| crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let file = fs::read(path).unwrap();
    let (mut rest, mut events) = (&file[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], masked(&rest[..8]));
        let data = &rest[12..12 + length];
        assert_eq!(rest[12 + length..16 + length], masked(data));
        rest = &rest[16 + length..];
        let mut event = TbEvent::default();
        for (field, content) in fields(data) {
            match field {
                1 => event.wall_time = f64::from_le_bytes(content.try_into().unwrap()),
                2 => event.step = u64::from_le_bytes(content.try_into().unwrap()),
                3 => event.file_version = Some(String::from_utf8(content).unwrap()),
                5 => event.scalars.extend(fields(&content).into_iter().map(|(_, value)| scalar(&value))),
                7 => event.is_start = fields(&content) == [(1, 1u64.to_le_bytes().to_vec())],
                other => panic!("field {other} of an event"),
            }
        }
        events.push(event);
    }
    events
}

fn scalar(value: &[u8]) -> (String, f32) {
    let fields = fields(value);
    assert_eq!(fields.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2]);
    let value = f32::from_le_bytes(fields[1].1[..].try_into().unwrap());
    (String::from_utf8(fields[0].1.clone()).unwrap(), value)
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir.join("tb/job")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// What TensorBoard shows: by tag, the points of all files, of which a START voids those at or after its step.
fn shown(dir: &Path) -> BTreeMap<String, Vec<(u64, f32)>> {
    let mut curves: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for event in event_files(dir).iter().flat_map(|path| events(path)) {
        if event.is_start {
            curves.values_mut().for_each(|points| points.retain(|(step, _)| *step < event.step));
        }
        for (tag, value) in event.scalars {
            curves.entry(tag).or_default().push((event.step, value));
        }
    }
    curves
}

/// The rows of the CSV file of a tag.
fn csv(dir: &Path, tag: &str) -> Vec<(u64, f64)> {
    let path = dir.join("csv/job").join(format!("{}.csv", tag.replace('/', "_")));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (header, rows) = text.split_once('\n').unwrap();
    assert_eq!(header, format!("step,{}", tag.rsplit('/').next().unwrap()));
    let row = |line: &str| line.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
    rows.lines().map(row).collect()
}

/// Where each number of `metrics.jsonl` must be found: by tag, (samples, value).
fn told(dir: &Path) -> BTreeMap<String, Vec<(u64, f64)>> {
    let mut curves: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
    for line in MetricsFile::read_all(&dir.join("run/metrics.jsonl")).unwrap() {
        let samples = 8 * line["step"].as_u64().unwrap();
        let mut point = |tag: String, value: &Value| {
            curves.entry(tag).or_default().push((samples, value.as_f64().unwrap()));
        };
        for (name, value) in line.as_object().unwrap() {
            match (name.as_str(), value) {
                ("step", _) => {}
                ("loss", _) => point("Train/Samples/train_loss".into(), value),
                ("memory_bytes", Value::Object(kinds)) => {
                    kinds.iter().for_each(|(kind, bytes)| point(format!("Memory/Samples/{kind}"), bytes));
                }
                ("breakdown_seconds", Value::Object(parts)) => parts.iter().for_each(|(part, seconds)| {
                    let ms = json!(1e3 * seconds.as_f64().unwrap());
                    point(format!("Train/Samples/elapsed_time_ms_{part}"), &ms);
                    if part == "backward" {
                        point("Train/Samples/elapsed_time_ms_backward_inner".into(), &ms);
                        point("Train/Samples/elapsed_time_ms_backward_allreduce".into(), &json!(0.0));
                    }
                }),
                ("norms", Value::Object(blocks)) => blocks.iter().for_each(|(block, norms)| {
                    point(format!("Norms/gradient/{block}"), &norms[0]);
                    point(format!("Norms/weight/{block}"), &norms[1]);
                }),
                _ => match name.strip_prefix("eval_") {
                    Some(name) => point(format!("Validation/Samples/{name}"), value),
                    None => point(format!("Train/Samples/{name}"), value),
                },
            }
        }
    }
    curves
}

/// Both monitors hold every number of `metrics.jsonl`, once, and no other.
fn assert_same_curves(dir: &Path) {
    let (want, shown) = (told(dir), shown(dir));
    assert_eq!(shown.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (tag, points) in &want {
        assert_eq!(csv(dir, tag), *points, "{tag}");
        let rounded: Vec<(u64, f32)> = points.iter().map(|(x, y)| (*x, *y as f32)).collect();
        assert_eq!(shown[tag], rounded, "{tag}");
    }
    assert_eq!(fs::read_dir(dir.join("csv/job")).unwrap().count(), want.len());
}

#[test]
fn every_number_of_a_run_is_found_by_tensorboard_and_in_csv_at_its_samples() {
    let dir = tempdir().unwrap();
    run(&watched(dir.path()), false, None);
    assert_same_curves(dir.path());
    let curves = shown(dir.path());
    let losses: Vec<u64> = curves["Train/Samples/train_loss"].iter().map(|(x, _)| *x).collect();
    assert_eq!(losses, (1..=12).map(|step| 8 * step).collect::<Vec<u64>>());
    let evaluations: Vec<u64> = curves["Validation/Samples/loss"].iter().map(|(x, _)| *x).collect();
    assert_eq!(evaluations, [40, 80, 96]);
    let norms: Vec<u64> = curves["Norms/gradient/transformer.h.1"].iter().map(|(x, _)| *x).collect();
    assert_eq!(norms, [32, 64, 96]);
    let files = event_files(dir.path());
    assert_eq!(files.len(), 1);
    let first = &events(&files[0])[0];
    assert_eq!(first.file_version.as_deref(), Some("brain.Event:2"));
    // Seconds since 1970, after this was written.
    assert!(first.wall_time > 1.76e9 && events(&files[0]).is_sorted_by_key(|event| event.wall_time));
}

#[test]
fn a_resumed_run_begins_an_event_file_that_voids_what_came_after_its_checkpoint() {
    let dir = tempdir().unwrap();
    let config = watched(dir.path());
    let mut longer = config.clone();
    // Killed after step 8, three steps after the newest checkpoint: the state on disk is that of step 5.
    run(&longer, false, Some(8));
    let newest = dir.path().join("run/checkpoints/step-00000008");
    fs::remove_dir_all(&newest).unwrap();
    fs::write(dir.path().join("run/checkpoints/latest"), "step-00000005\n").unwrap();
    run(&longer, true, None);
    assert_same_curves(dir.path());
    let files = event_files(dir.path());
    assert_eq!(files.len(), 2);
    let start = &events(&files[1])[1];
    assert!(start.is_start);
    assert_eq!(start.step, 5 * 8);
    // Longer once more, from the last step on, whose evaluation is made and is not made again.
    set(&mut longer, "run.steps", json!(14));
    run(&longer, true, None);
    assert_same_curves(dir.path());
    assert_eq!(event_files(dir.path()).len(), 3);
}

#[test]
fn an_attempt_that_came_to_no_checkpoint_leaves_nothing_in_the_curves() {
    let dir = tempdir().unwrap();
    let config = watched(dir.path());
    run(&config, false, Some(3));
    fs::remove_dir_all(dir.path().join("run/checkpoints")).unwrap();
    run(&config, true, None);
    assert_same_curves(dir.path());
    assert_eq!(events(&event_files(dir.path())[1])[1].step, 0);
}

#[test]
fn a_folder_that_holds_another_run_is_refused_before_anything_is_written() {
    for (section, file) in [("tensorboard", "tb/job/events.out.tfevents.1.a.2.0"), ("csv_monitor", "csv/job/lr.csv")] {
        let dir = tempdir().unwrap();
        let config = watched(dir.path());
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "step,lr\n").unwrap();
        let error = try_run(&config, false, None).err().expect(section).to_string();
        let begin = format!(
            "test: {section}.job_name: its folder {} holds the curves of another run",
            path.parent().unwrap().display()
        );
        assert!(error.starts_with(&begin) && error.contains(&format!("--set {section}.job_name=")), "{error}");
        assert!(!dir.path().join("run").exists());
        assert_eq!(fs::read_to_string(&path).unwrap(), "step,lr\n");
    }
}

#[test]
fn a_folder_that_cannot_be_one_is_refused() {
    let dir = tempdir().unwrap();
    let config = watched(dir.path());
    fs::write(dir.path().join("tb"), "").unwrap();
    let error = try_run(&config, false, None).err().unwrap().to_string();
    assert!(
        error.starts_with("test: tensorboard.output_path: its folder is ") && error.ends_with("it must be a folder"),
        "{error}"
    );
    assert!(!dir.path().join("run").exists());
}

#[test]
fn a_run_that_is_watched_gives_the_bits_of_one_that_is_not() {
    let dir = tempdir().unwrap();
    let mut watched = watched(dir.path());
    set(&mut watched, "flops_profiler", json!({ "enabled": true, "profile_step": 3 }));
    let mut plain = small(&dir.path().join("plain"));
    set(&mut plain, "data.validation", json!({ "split": 0.001 }));
    set(&mut plain, "run.eval_every", json!(5));
    assert_eq!(run(&watched, false, None).losses(), run(&plain, false, None).losses());
    let weights = |name: &str| common::weights(&dir.path().join(name));
    assert_eq!(weights("run"), weights("plain"));
}

//! What is written comes back, whoever wrote it and whatever part is asked for.

use super::{LONG, assert_holds, bits, head, owned, specs, value, write_step};
use safetensors::SafeTensors;
use std::fs;
use tempfile::tempdir;
use train::checkpoint::{Checkpoint, CheckpointError, Staging, TensorSpec};

#[test]
fn every_value_and_every_counter_comes_back_bit_for_bit() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 500).unwrap();
    assert_eq!(folder, dir.path().join("step-00000500"));
    let checkpoint = Checkpoint::open(&folder).unwrap();
    checkpoint.verify().unwrap();
    assert_holds(&checkpoint, 500);
}

#[test]
fn any_range_of_elements_can_be_read_alone() {
    let dir = tempdir().unwrap();
    let checkpoint = Checkpoint::open(&write_step(dir.path(), 1).unwrap()).unwrap();
    for range in [0..0, 0..1, 262_143..262_145, 7..LONG, LONG - 1..LONG, LONG..LONG] {
        let want: Vec<f32> = range.clone().map(|element| value(1, 2, element)).collect();
        let got = checkpoint.read_range("weight", "long.weight", range).unwrap();
        assert!(bits(&got) == bits(&want));
    }
}

#[test]
fn a_tensor_that_is_not_there_is_named() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 1).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let error = checkpoint.read("exp_avg_sq", "wte.weight").unwrap_err();
    let want = format!("{}: the checkpoint holds no exp_avg_sq/wte.weight", folder.display());
    assert_eq!(error.to_string(), want);
    assert!(checkpoint.tensor("exp_avg_sq", "wte.weight").is_none());
    assert_eq!(checkpoint.tensor("exp_avg", "wte.weight").unwrap().shape, [5, 7]);
}

#[test]
fn the_file_of_a_rank_is_a_safetensors_file_and_the_manifest_points_into_it() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 2).unwrap();
    let bytes = fs::read(folder.join("rank-00000.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor("exp_avg/wte.weight").unwrap();
    assert_eq!(view.shape(), [5, 7]);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let piece = &checkpoint.tensor("exp_avg", "wte.weight").unwrap().pieces[0];
    let start = piece.offset as usize;
    assert_eq!((piece.start, piece.length, start % 4), (0, 35, 0));
    assert_eq!(&bytes[start..start + 35 * 4], view.data());
    assert_eq!(crc32c::crc32c(view.data()), piece.crc32c);
    // The tensor without elements has no piece and stands in no file.
    assert_eq!(file.len(), 4);
    assert_eq!(checkpoint.tensor("weight", "none").unwrap().pieces, []);
}

/// The specs of two ranks that share each tensor unevenly, in runs that alternate.
fn shares() -> [Vec<TensorSpec>; 2] {
    let share = |runs: [Vec<std::ops::Range<usize>>; 3]| {
        let specs = specs().into_iter().zip(runs.into_iter().chain([vec![], vec![]]));
        specs.map(|(spec, runs)| TensorSpec { runs, ..spec }).collect()
    };
    let mut first: Vec<TensorSpec> = share([vec![0..3, 20..35], vec![], vec![1..250_000, 299_000..LONG]]);
    let second = share([vec![3..19, 19..20], vec![0..20, 20..35], vec![0..1, 250_000..250_000, 250_000..299_000]]);
    first[3].runs.push(0..1);
    [first, second]
}

#[test]
fn pieces_of_two_ranks_make_whole_tensors() {
    let dir = tempdir().unwrap();
    let staging = Staging::create(dir.path(), 3).unwrap();
    let mut entries = Vec::new();
    for (rank, specs) in shares().iter().enumerate() {
        let mut read = |index: usize| Ok::<_, CheckpointError>(owned(3, &specs[index], index));
        entries.extend(staging.write_rank(rank, specs, &mut read).unwrap());
    }
    let folder = staging.commit(&head(3), entries).unwrap();
    assert_eq!(super::names(&folder), ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    checkpoint.verify().unwrap();
    assert_holds(&checkpoint, 3);
    let starts: Vec<_> = checkpoint.tensor("weight", "wte.weight").unwrap().pieces.iter().map(|p| p.start).collect();
    assert_eq!(starts, [0, 3, 19, 20]);
    for range in [2..21, 3..20, 19..35, 0..35] {
        let want: Vec<f32> = range.clone().map(|element| value(3, 0, element)).collect();
        assert_eq!(bits(&checkpoint.read_range("weight", "wte.weight", range).unwrap()), bits(&want));
    }
}

#[test]
#[should_panic(expected = "exp_avg/wte.weight has pieces for 0 elements; the shape [5, 7] has 35")]
fn ranks_that_leave_elements_out_are_a_bug_of_ours_and_nothing_is_committed() {
    let dir = tempdir().unwrap();
    let staging = Staging::create(dir.path(), 3).unwrap();
    let specs = &shares()[0][1..2];
    let entries = staging.write_rank(0, specs, &mut |_| Ok::<Vec<f32>, CheckpointError>(Vec::new())).unwrap();
    let _ = staging.commit(&head(3), entries);
}

#[test]
fn a_tensor_is_asked_for_once_and_in_order() {
    let dir = tempdir().unwrap();
    let (specs, mut asked) = (specs(), Vec::new());
    let mut read = |index: usize| {
        asked.push(index);
        Ok::<_, CheckpointError>(owned(4, &specs[index], index))
    };
    train::checkpoint::write(dir.path(), &head(4), &specs, &mut read).unwrap();
    assert_eq!(asked, [0, 1, 2, 3, 4]);
}

//! Damage of every kind is found, named and passed over.

use super::{assert_holds, flip, head, write_step};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use tempfile::tempdir;
use train::checkpoint::{Checkpoint, CheckpointError, Manifest, Piece, newest};

const RANK_FILE: &str = "rank-00000.safetensors";

/// Writes steps 10 and 20, damages the folder of 20, and returns the one notice about it; 10 must be used.
fn notice_after(damage: impl Fn(&Path)) -> String {
    let dir = tempdir().unwrap();
    write_step(dir.path(), 10).unwrap();
    let folder = write_step(dir.path(), 20).unwrap();
    damage(&folder);
    let (checkpoint, notices) = newest(dir.path()).unwrap().expect("step 10");
    assert_holds(&checkpoint, 10);
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    let notice = notice.strip_prefix(&format!("{}/step-00000020/", dir.path().display())).expect("the file at fault");
    let used = format!("; {}/step-00000010 is used instead", dir.path().display());
    notice.strip_suffix(&used).expect("the one that is used").to_owned()
}

fn set_len(path: PathBuf, change: i64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len.strict_add_signed(change)).unwrap();
}

#[test]
fn a_file_of_the_wrong_length_is_named_with_both() {
    let dir = tempdir().unwrap();
    let len = fs::metadata(write_step(dir.path(), 20).unwrap().join(RANK_FILE)).unwrap().len();
    for change in [-1, 1] {
        let want = format!(
            "rank-00000.safetensors: it is {} bytes long; the manifest says {len}: the file is damaged",
            len.strict_add_signed(change)
        );
        assert_eq!(notice_after(|folder| set_len(folder.join(RANK_FILE), change)), want);
    }
}

#[test]
fn a_missing_file_is_named() {
    for name in [RANK_FILE, "manifest.json"] {
        let want = format!("{name}: the file is missing; a checkpoint is whole only with it");
        assert_eq!(notice_after(|folder| fs::remove_file(folder.join(name)).unwrap()), want);
    }
}

#[test]
fn a_flipped_bit_is_named_with_its_tensor_and_both_checksums() {
    let notice = notice_after(|folder| {
        let offset = Checkpoint::open(folder).unwrap().tensor("exp_avg", "wte.weight").unwrap().pieces[0].offset;
        flip(&folder.join(RANK_FILE), offset as i64 + 77);
    });
    let start = "rank-00000.safetensors: exp_avg/wte.weight: the 35 elements from 0 on, at byte ";
    assert!(notice.starts_with(start), "{notice}");
    assert!(notice.contains(" have crc32c 0x") && notice.contains("; the manifest says 0x"), "{notice}");
}

#[test]
fn a_flipped_bit_is_found_by_whoever_reads_the_piece_and_only_by_them() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 10).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    // The scalar is the last of the file.
    flip(&folder.join(RANK_FILE), -1);
    assert!(matches!(checkpoint.read("weight", "scale"), Err(CheckpointError::Damaged { .. })));
    assert!(matches!(checkpoint.verify(), Err(CheckpointError::Damaged { .. })));
    assert!(checkpoint.read("weight", "long.weight").is_ok());
    // Of a range, the whole piece is checked.
    let offset = checkpoint.tensor("weight", "long.weight").unwrap().pieces[0].offset;
    flip(&folder.join(RANK_FILE), offset as i64);
    let error = checkpoint.read_range("weight", "long.weight", 299_000..299_001).unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { .. }));
}

#[test]
fn a_flipped_bit_anywhere_in_the_manifest_is_found() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 10).unwrap();
    let path = folder.join("manifest.json");
    let whole = fs::read_to_string(&path).unwrap();
    assert!(Manifest::from_json(&whole).is_ok());
    for place in 0..whole.len() {
        let mut bytes = whole.clone().into_bytes();
        bytes[place] ^= 4;
        let text = String::from_utf8(bytes).unwrap();
        assert!(Manifest::from_json(&text).is_err(), "byte {place} of {}", whole.len());
    }
    for len in 0..whole.len() - 1 {
        assert!(Manifest::from_json(&whole[..len]).is_err(), "cut after {len} bytes of {}", whole.len());
    }
    // Not text any more.
    let mut bytes = whole.into_bytes();
    bytes[100] ^= 0x80;
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    let start = format!("{}: it is not the manifest of a checkpoint: ", path.display());
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn when_all_are_damaged_the_error_names_each() {
    let dir = tempdir().unwrap();
    for step in [10, 20] {
        let folder = write_step(dir.path(), step).unwrap();
        fs::remove_file(folder.join(RANK_FILE)).unwrap();
    }
    let error = newest(dir.path()).unwrap_err().to_string();
    let dir = dir.path().display();
    let missing = "the file is missing; a checkpoint is whole only with it";
    let want = format!(
        "{dir}: no checkpoint here is whole: {dir}/step-00000020/{RANK_FILE}: {missing}; \
         {dir}/step-00000010/{RANK_FILE}: {missing}. Copy one back, or move this folder away to start anew"
    );
    assert_eq!(error, want);
}

/// The error of opening a checkpoint whose manifest was written with `change`, after the manifest's path.
fn error_of(change: impl Fn(&mut Manifest)) -> String {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 10).unwrap();
    let path = folder.join("manifest.json");
    let mut manifest = Manifest::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(manifest.head, head(10));
    change(&mut manifest);
    fs::write(&path, manifest.to_json()).unwrap();
    let error = Checkpoint::open(&folder).unwrap_err().to_string();
    error.strip_prefix(&format!("{}: ", path.display())).expect("the manifest is named").to_owned()
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused_with_tensor_and_numbers() {
    assert_eq!(
        error_of(|manifest| manifest.format_version = 2),
        "format_version is 2; this version of Bessemer reads 1"
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[0].dtype = "BF16".to_owned()),
        "weight/wte.weight is stored as BF16; it must be F32"
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[1].pieces.clear()),
        "exp_avg/wte.weight has pieces for 0 elements; the shape [5, 7] has 35"
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[0].pieces[0].start = 1),
        "weight/wte.weight has a piece of 35 elements from element 1 on in rank-00000.safetensors; the pieces before it \
         end at 0, and the shape [5, 7] has 35"
    );
    let twice = |manifest: &mut Manifest| {
        let piece = manifest.tensors[0].pieces[0].clone();
        manifest.tensors[0].pieces.push(Piece { length: 1, start: 34, ..piece });
    };
    assert_eq!(
        error_of(twice),
        "weight/wte.weight has a piece of 1 elements from element 34 on in rank-00000.safetensors; the pieces before it \
         end at 35, and the shape [5, 7] has 35"
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[0].pieces[0].file = "../latest".to_owned()),
        "weight/wte.weight lies in ../latest; that must be the name of a file in the same folder"
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[0].shape = vec![usize::MAX, 2]),
        format!("weight/wte.weight has the impossible shape {:?}", [usize::MAX, 2])
    );
    assert_eq!(
        error_of(|manifest| manifest.tensors[1].kind = "weight".to_owned()),
        "weight/wte.weight stands in it twice"
    );
}

#[test]
fn offsets_that_no_file_can_have_are_an_error() {
    let dir = tempdir().unwrap();
    let folder = write_step(dir.path(), 10).unwrap();
    let path = folder.join("manifest.json");
    let mut manifest = Manifest::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    manifest.tensors[0].pieces[0].offset = u64::MAX - 1;
    fs::write(&path, manifest.to_json()).unwrap();
    assert!(matches!(Checkpoint::open(&folder), Err(CheckpointError::Damaged { .. })));
}

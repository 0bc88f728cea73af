//! Reading and writing the weights of Hugging Face folders: whole ones, sharded ones and damaged ones.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::families::ModelConfig;
use models::hf::{Dtype, HfError, NameRules, WantedWeight, WeightFiles, WeightSpec, WeightWriter, match_weights};
use tempfile::TempDir;

const FIXTURES: [&str; 3] = ["gpt2", "llama", "llama3-rope"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(folder: &Path) -> WeightFiles {
    WeightFiles::open(folder).unwrap()
}

fn refusal(folder: &Path) -> String {
    WeightFiles::open(folder).unwrap_err().to_string()
}

fn path(folder: &TempDir, file: &str) -> String {
    folder.path().join(file).display().to_string()
}

/// A tensor of a small file: name, type, shape and bytes.
struct Tensor(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn f32s(name: &'static str, shape: &[usize], start: f32) -> Tensor {
    let len = shape.iter().product::<usize>();
    let bytes = (0..len).flat_map(|i| (start + i as f32).to_le_bytes()).collect();
    Tensor(name, Dtype::F32, shape.to_vec(), bytes)
}

fn write(folder: &Path, tensors: &[Tensor], max_shard_bytes: u64) -> Vec<PathBuf> {
    let specs = tensors.iter().map(|Tensor(name, dtype, shape, _)| WeightSpec {
        name: (*name).to_owned(),
        dtype: *dtype,
        shape: shape.clone(),
    });
    let bytes: HashMap<&str, &[u8]> = tensors.iter().map(|Tensor(name, _, _, bytes)| (*name, &bytes[..])).collect();
    let writer = WeightWriter::new(folder).max_shard_bytes(max_shard_bytes);
    writer.write(&specs.collect::<Vec<_>>(), |name| Ok::<_, HfError>(Cow::Borrowed(bytes[name]))).unwrap()
}

fn gpt2_rules() -> NameRules<'static> {
    ModelConfig::from_folder(&fixture("gpt2")).unwrap().name_rules()
}

/// What a two-tensor "GPT-2" wants.
fn wanted() -> Vec<WantedWeight> {
    let weight = |name: &str, shape: &[usize], axes: &str| WantedWeight {
        name: name.to_owned(),
        shape: shape.to_vec(),
        axes: axes.to_owned(),
    };
    vec![
        weight("transformer.wte.weight", &[3, 2], "vocab_size x n_embd"),
        weight("transformer.h.0.attn.c_attn.bias", &[6], ""),
    ]
}

fn mismatch(tensors: &[Tensor]) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    write(folder.path(), tensors, u64::MAX);
    let error = match_weights(&open(folder.path()), &gpt2_rules(), &wanted()).unwrap_err();
    assert!(matches!(error, HfError::Mismatch { .. }));
    (folder, error.to_string())
}

#[test]
fn every_fixture_opens_and_its_tensors_are_read_as_f32() {
    for name in FIXTURES {
        let files = open(&fixture(name));
        assert!(files.entries().count() >= 20, "{name}");
        for entry in files.entries() {
            assert_eq!(entry.dtype, Dtype::F32);
            let len = entry.shape.iter().product();
            let values = files.read_f32(entry.name, 0..len).unwrap();
            assert!(values.iter().all(|x| x.is_finite()), "{name} {}", entry.name);
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(bytes, files.read(entry.name).unwrap());
        }
    }
}

#[test]
fn a_range_of_elements_is_read_without_the_rest() {
    let files = open(&fixture("llama"));
    let name = "model.embed_tokens.weight";
    let whole = files.read_f32(name, 0..131 * 48).unwrap();
    assert_eq!(files.read_f32(name, 48..96).unwrap(), whole[48..96]);
    assert_eq!(files.read_f32(name, 131 * 48 - 1..131 * 48).unwrap(), whole[131 * 48 - 1..]);
    assert_eq!(files.read_f32(name, 7..7).unwrap(), [0.0; 0]);
}

#[test]
fn a_tensor_longer_than_one_chunk_is_read_whole() {
    let folder = TempDir::new().unwrap();
    // 300,001 f32 are 1.14 MiB: a whole chunk and a part of one.
    write(folder.path(), &[f32s("x", &[300_001], 0.0)], u64::MAX);
    let values = open(folder.path()).read_f32("x", 1..300_001).unwrap();
    assert!(values.iter().enumerate().all(|(i, &x)| x == (i + 1) as f32));
}

#[test]
fn bf16_f16_and_f64_become_f32() {
    let folder = TempDir::new().unwrap();
    let tensors = [
        Tensor("b", Dtype::BF16, vec![2], vec![0x80, 0x3f, 0x00, 0xc0]),
        Tensor("h", Dtype::F16, vec![2], vec![0x00, 0x3c, 0x00, 0xc0]),
        Tensor("d", Dtype::F64, vec![2], [1.0f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect()),
    ];
    write(folder.path(), &tensors, u64::MAX);
    let files = open(folder.path());
    for name in ["b", "h", "d"] {
        assert_eq!(files.read_f32(name, 0..2).unwrap(), [1.0, -2.0], "{name}");
        assert_eq!(files.read_f32(name, 1..2).unwrap(), [-2.0], "{name}");
    }
}

#[test]
fn a_fixture_written_again_holds_the_same_bytes_under_the_same_names() {
    for name in FIXTURES {
        let files = open(&fixture(name));
        let specs: Vec<WeightSpec> = files
            .entries()
            .map(|entry| WeightSpec { name: entry.name.to_owned(), dtype: entry.dtype, shape: entry.shape.to_vec() })
            .collect();
        for max_shard_bytes in [u64::MAX, 40_000] {
            let folder = TempDir::new().unwrap();
            let writer = WeightWriter::new(folder.path()).max_shard_bytes(max_shard_bytes);
            writer.write(&specs, |name| files.read(name).map(Cow::Owned)).unwrap();
            let again = open(folder.path());
            assert!(again.entries().map(|e| (e.name, e.shape)).eq(files.entries().map(|e| (e.name, e.shape))));
            for entry in files.entries() {
                assert_eq!(again.read(entry.name).unwrap(), files.read(entry.name).unwrap());
            }
            if max_shard_bytes == u64::MAX {
                // Transformers sorts by name, as `entries` does, and writes the same header: the file is the same.
                let [ours, theirs] = [folder.path(), &fixture(name)].map(|f| fs::read(f.join("model.safetensors")));
                assert!(ours.unwrap() == theirs.unwrap(), "{name}: the file differs from Transformers' own");
            }
        }
    }
}

#[test]
fn a_file_is_its_header_padded_to_eight_bytes_and_the_tensors_with_larger_types_first() {
    let folder = TempDir::new().unwrap();
    let tensors = [
        Tensor("half", Dtype::BF16, vec![1], vec![1, 2]),
        Tensor("full", Dtype::F32, vec![1], vec![3, 4, 5, 6]),
        Tensor("none", Dtype::F32, vec![0, 3], vec![]),
    ];
    write(folder.path(), &tensors, u64::MAX);
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"full":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"none":{"dtype":"F32","shape":[0,3],"data_offsets":[4,4]},"half":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}"#;
    let padded = format!("{header:<0$}", header.len().next_multiple_of(8));
    assert_eq!(bytes[..8], (padded.len() as u64).to_le_bytes());
    assert_eq!(std::str::from_utf8(&bytes[8..8 + padded.len()]).unwrap(), padded);
    assert_eq!(bytes[8 + padded.len()..], [3, 4, 5, 6, 1, 2]);
    assert_eq!(open(folder.path()).read_f32("none", 0..0).unwrap(), [0.0; 0]);
}

#[test]
fn shards_are_cut_at_the_limit_and_listed_with_totals() {
    let folder = TempDir::new().unwrap();
    let tensors = [f32s("a", &[2], 0.0), f32s("b", &[2], 2.0), f32s("c", &[5], 4.0), f32s("d", &[1], 9.0)];
    let files = write(folder.path(), &tensors, 16);
    let names = [1, 2, 3].map(|n| folder.path().join(format!("model-0000{n}-of-00003.safetensors")));
    assert_eq!(files, names); // a and b fill the first, c is larger than the limit, d begins the third
    let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(
        index,
        r#"{
  "metadata": {
    "total_parameters": 10,
    "total_size": 40
  },
  "weight_map": {
    "a": "model-00001-of-00003.safetensors",
    "b": "model-00001-of-00003.safetensors",
    "c": "model-00002-of-00003.safetensors",
    "d": "model-00003-of-00003.safetensors"
  }
}
"#
    );
    assert_eq!(open(folder.path()).read_f32("c", 0..5).unwrap(), [4.0, 5.0, 6.0, 7.0, 8.0]);
}

#[test]
fn weights_of_an_earlier_model_do_not_stay_beside_the_new_ones() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("notes.txt"), "kept").unwrap();
    let tensors = [f32s("a", &[2], 0.0), f32s("b", &[2], 2.0)];
    for max_shard_bytes in [8, u64::MAX, 8] {
        write(folder.path(), &tensors, max_shard_bytes);
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let sharded = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "notes.txt",
        ];
        let whole = ["model.safetensors", "notes.txt"];
        assert_eq!(names, if max_shard_bytes == 8 { &sharded[..] } else { &whole });
        assert_eq!(open(folder.path()).read_f32("b", 0..2).unwrap(), [2.0, 3.0]);
    }
}

#[test]
fn a_write_that_fails_leaves_the_folder_as_it_was() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), &[f32s("a", &[2], 0.0)], u64::MAX);
    let before = fs::read(folder.path().join("model.safetensors")).unwrap();
    let specs = ["a", "b"].map(|name| WeightSpec { name: name.to_owned(), dtype: Dtype::F32, shape: vec![1] });
    let no_b = |name: &str| match name {
        "a" => Ok(Cow::Owned(vec![0; 4])),
        _ => Err(HfError::Mismatch { path: "x".into(), problem: "no b today".to_owned() }),
    };
    let error = WeightWriter::new(folder.path()).max_shard_bytes(4).write(&specs, no_b).unwrap_err();
    assert_eq!(error.to_string(), "x: no b today");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read(folder.path().join("model.safetensors")).unwrap(), before);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let specs = [WeightSpec { name: "a".to_owned(), dtype: Dtype::F32, shape: vec![0] }];
    let target = file.join("model");
    let error = WeightWriter::new(&target).write(&specs, |_| Ok::<_, HfError>(Cow::Borrowed(&[][..]))).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with(&format!("{}: cannot create the folder: ", target.display())), "{message}");
}

#[test]
fn a_truncated_file_is_named_with_both_lengths() {
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(fixture("gpt2").join("model.safetensors")).unwrap();
    assert_eq!(bytes.len(), 266_624);
    let cut = |len: usize| {
        fs::write(folder.path().join("model.safetensors"), &bytes[..len]).unwrap();
        refusal(folder.path())
    };
    let file = path(&folder, "model.safetensors");
    assert_eq!(
        cut(177_749),
        format!(
            "{file}: it is 177749 bytes long but its header describes 266624: the file is truncated; copy it again"
        )
    );
    assert_eq!(
        cut(1000),
        format!(
            "{file}: it is 1000 bytes long but its header alone claims 2616: the file is truncated or corrupt; copy it \
             again"
        )
    );
    assert_eq!(
        cut(5),
        format!("{file}: it is 5 bytes long; a safetensors file has at least 8: the file is truncated; copy it again")
    );
    fs::write(folder.path().join("model.safetensors"), [&bytes[..], b"more"].concat()).unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!(
            "{file}: it is 266628 bytes long but its header describes 266624: the file is followed by something else; \
             copy it again"
        )
    );
}

#[test]
fn a_corrupt_header_is_refused_before_memory_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let file = path(&folder, "model.safetensors");
    let with_header = |length: u64, header: &str| {
        let bytes = [&length.to_le_bytes(), header.as_bytes()].concat();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        refusal(folder.path())
    };
    assert_eq!(
        with_header(u64::MAX, "{}"),
        format!(
            "{file}: its header claims to be 18446744073709551615 bytes long; at most 100000000 are possible: this is \
             not a safetensors file, or it is corrupt"
        )
    );
    let not_json = with_header(6, "not it");
    assert!(not_json.starts_with(&format!("{file}: its header is not that of a safetensors file (")), "{not_json}");
    // Offsets that overlap, contradict the shape, or overflow; a type nobody knows.
    for entry in [
        r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
        r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#,
        r#"{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}"#,
        r#"{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#,
    ] {
        let header = format!(r#"{{"x":{entry}}}"#);
        let message = with_header(header.len() as u64, &header);
        assert!(message.starts_with(&format!("{file}: its header is not that of a safetensors file (")), "{message}");
    }
}

#[test]
fn a_folder_without_safetensors_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let name = folder.path().display();
    assert_eq!(
        refusal(folder.path()),
        format!("{name}: it holds neither model.safetensors nor model.safetensors.index.json")
    );
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!(
            "{name}: the weights are in pytorch_model.bin, a Python pickle that Bessemer does not run; convert them to \
             safetensors: load the model in Transformers and save_pretrained() it"
        )
    );
    let absent = folder.path().join("absent");
    assert_eq!(refusal(&absent), format!("{}: there is no such folder", absent.display()));
}

#[test]
fn shards_and_index_that_contradict_each_other_are_named() {
    let folder = TempDir::new().unwrap();
    let [first, second] = [1, 2].map(|n| format!("model-0000{n}-of-00002.safetensors"));
    write(folder.path(), &[f32s("a", &[2], 0.0), f32s("b", &[2], 2.0)], 8);
    let index = folder.path().join("model.safetensors.index.json");
    let set_index = |map: &str| fs::write(&index, format!(r#"{{"weight_map": {map}}}"#)).unwrap();

    set_index(&format!(r#"{{"a": "{first}", "c": "{second}"}}"#));
    assert_eq!(
        refusal(folder.path()),
        format!("{}: it does not hold c; model.safetensors.index.json says that it does", path(&folder, &second))
    );
    for bad in ["\"../secret.safetensors\"", "\"\"", "3"] {
        set_index(&format!(r#"{{"a": {bad}}}"#));
        assert_eq!(
            refusal(folder.path()),
            format!("{}: weight_map.a is {bad}; it must be the name of a file in the same folder", index.display())
        );
    }
    fs::write(&index, "{}").unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!("{}: weight_map is missing; it must be an object of tensor names and file names", index.display())
    );

    set_index(&format!(r#"{{"a": "{first}", "b": "{second}"}}"#));
    fs::copy(folder.path().join(&first), folder.path().join(&second)).unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!("{}: it holds a, and so does {}", path(&folder, &second), path(&folder, &first))
    );
    fs::remove_file(folder.path().join(&second)).unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!("{}: the file is missing; model.safetensors.index.json says that it holds b", path(&folder, &second))
    );
}

#[test]
fn names_match_with_and_without_the_prefix_and_old_buffers_are_passed_over() {
    for prefix in ["transformer.", ""] {
        let folder = TempDir::new().unwrap();
        let name = |rest: &str| &*format!("{prefix}{rest}").leak();
        let tensors = [
            f32s(name("wte.weight"), &[3, 2], 0.0),
            f32s(name("h.0.attn.c_attn.bias"), &[6], 0.0),
            f32s(name("h.0.attn.bias"), &[1, 1, 4, 4], 0.0),
            Tensor(name("h.0.attn.masked_bias"), Dtype::BOOL, vec![1], vec![1]),
        ];
        write(folder.path(), &tensors, u64::MAX);
        let files = open(folder.path());
        let found = match_weights(&files, &gpt2_rules(), &wanted()).unwrap();
        let names: Vec<&str> = found.iter().map(|entry| entry.name).collect();
        assert_eq!(names, [name("wte.weight"), name("h.0.attn.c_attn.bias")]);
    }
}

#[test]
fn a_shape_that_disagrees_is_named_with_both_and_the_keys_it_comes_from() {
    let (folder, message) =
        mismatch(&[f32s("transformer.wte.weight", &[2, 2], 0.0), f32s("transformer.h.0.attn.c_attn.bias", &[6], 0.0)]);
    assert_eq!(
        message,
        format!(
            "{}: transformer.wte.weight is [2, 2]; config.json asks for [3, 2] (vocab_size x n_embd)",
            path(&folder, "model.safetensors")
        )
    );
}

#[test]
fn missing_and_unwanted_tensors_are_named() {
    let (folder, message) = mismatch(&[f32s("wte.weight", &[3, 2], 0.0)]);
    assert_eq!(
        message,
        format!(
            "{}: the weights lack transformer.h.0.attn.c_attn.bias, which config.json asks for",
            folder.path().display()
        )
    );
    let (folder, message) = mismatch(&[
        f32s("wte.weight", &[3, 2], 0.0),
        f32s("h.0.attn.c_attn.bias", &[6], 0.0),
        f32s("h.1.attn.c_attn.bias", &[6], 0.0),
        f32s("h.1.ln_1.bias", &[2], 0.0),
        f32s("h.1.ln_1.weight", &[2], 0.0),
        f32s("score.weight", &[2, 2], 0.0),
    ]);
    assert_eq!(
        message,
        format!(
            "{}: it holds h.1.attn.c_attn.bias, h.1.ln_1.bias, h.1.ln_1.weight and 1 more, which a model of this \
             config.json does not have; remove the tensor or correct the configuration",
            path(&folder, "model.safetensors")
        )
    );
}

#[test]
fn a_weight_that_is_not_floating_point_is_named() {
    let (folder, message) =
        mismatch(&[Tensor("wte.weight", Dtype::I8, vec![3, 2], vec![0; 6]), f32s("h.0.attn.c_attn.bias", &[6], 0.0)]);
    let file = path(&folder, "model.safetensors");
    assert_eq!(message, format!("{file}: wte.weight is stored as I8; weights must be F32, BF16, F16 or F64"));
    let error = open(folder.path()).read_f32("wte.weight", 0..6).unwrap_err();
    assert_eq!(error.to_string(), message);
}

#[test]
fn a_tied_head_may_be_stored_twice_if_it_is_the_embedding() {
    let bias = || f32s("transformer.h.0.attn.c_attn.bias", &[6], 0.0);
    let folder = TempDir::new().unwrap();
    let embedding = |start| f32s("transformer.wte.weight", &[3, 2], start);
    let head = || f32s("lm_head.weight", &[3, 2], 1.0);
    write(folder.path(), &[embedding(1.0), head(), bias()], u64::MAX);
    let files = open(folder.path());
    assert_eq!(match_weights(&files, &gpt2_rules(), &wanted()).unwrap()[0].name, "transformer.wte.weight");

    let (folder, message) = mismatch(&[embedding(2.0), head(), bias()]);
    assert_eq!(
        message,
        format!(
            "{}: lm_head.weight differs from transformer.wte.weight, but config.json ties them (tie_word_embeddings); \
             set tie_word_embeddings to false",
            path(&folder, "model.safetensors")
        )
    );
    // Without the embedding the head stands for both, as in Transformers.
    let folder = TempDir::new().unwrap();
    write(folder.path(), &[head(), bias()], u64::MAX);
    let files = open(folder.path());
    assert_eq!(match_weights(&files, &gpt2_rules(), &wanted()).unwrap()[0].name, "lm_head.weight");
}

#[test]
fn json_is_written_indented_with_a_final_newline() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    models::hf::write_json(&file, &serde_json::json!({"b": [1, 2], "a": 0.5})).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": 0.5\n}\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let absent = folder.path().join("absent/config.json");
    let message = models::hf::write_json(&absent, &serde_json::json!({})).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: cannot create the file: ", absent.display())), "{message}");
}

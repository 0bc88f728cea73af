//! What MODEL may be, and what is said when it is not.

use std::fs;
use std::path::Path;

use generate::{LoadError, LoadOptions, LoadedModel, ModelLocation, TokenizedRow, locate, score};
use tensor::DType;
use testing::fixtures::Fixture;

const MAY_BE: &str = "; MODEL must be a folder in the Hugging Face layout (config.json, model.safetensors or shards with \
                      an index, tokenizer.json), a Bessemer checkpoint, or the `output` folder of a run";

fn message(path: &Path) -> String {
    match LoadedModel::open(path, LoadOptions::default()) {
        Ok(_) => panic!("{} is a model", path.display()),
        Err(error) => error.to_string(),
    }
}

/// A folder with the model fixture in its `model` sub-folder, as a run leaves it.
fn run_output() -> tempfile::TempDir {
    let output = tempfile::tempdir().expect("a folder");
    let model = output.path().join("model");
    fs::create_dir(&model).expect("a folder");
    for file in ["config.json", "model.safetensors", "generation_config.json"] {
        fs::copy(Fixture::folder("llama").join(file), model.join(file)).expect("a file of the fixture");
    }
    fs::write(output.path().join("run.json"), "{}").expect("a file");
    output
}

#[test]
fn the_output_of_a_run_means_its_final_model() {
    let output = run_output();
    let options = LoadOptions { positions: Some(24), ..LoadOptions::default() };
    let loaded = LoadedModel::open(output.path(), options).expect("a model");
    assert_eq!((loaded.positions, loaded.dtype, loaded.config.vocab_size), (24, DType::F32, Some(131)));
    assert!(loaded.tokenizer.is_none());
    let rows = [TokenizedRow { input_ids: vec![1; 25], labels: None }];
    assert_eq!(
        score(&loaded.forward(), &rows).unwrap_err().to_string(),
        "row 1 has 25 tokens and the model 24 positions; shorten the row"
    );
}

#[test]
fn the_newest_checkpoint_stands_in_for_a_model_that_is_not_there_yet() {
    let output = run_output();
    fs::remove_dir_all(output.path().join("model")).expect("a folder");
    let unfinished = "it is the output of a run that has neither a model nor a complete checkpoint yet";
    assert_eq!(message(output.path()), format!("{}: {unfinished}{MAY_BE}", output.path().display()));
    let checkpoint = output.path().join("checkpoints/step-00000500");
    fs::create_dir_all(&checkpoint).expect("a folder");
    fs::write(output.path().join("checkpoints/latest"), "step-00000500\n").expect("a file");
    assert!(matches!(locate(output.path()), Err(LoadError::NotAModel { .. })), "it has no manifest");
    fs::write(checkpoint.join("manifest.json"), "{}").expect("a file");
    for path in [output.path(), &checkpoint] {
        assert_eq!(locate(path).expect("a checkpoint"), ModelLocation::Checkpoint(checkpoint.clone()));
    }
}

#[test]
fn what_is_no_model_is_named_with_what_it_may_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gpt2");
    assert_eq!(message(&path), format!("{}: there is no such folder{MAY_BE}", path.display()));
    fs::write(&path, "").expect("a file");
    assert_eq!(message(&path), format!("{}: it is a file{MAY_BE}", path.display()));
    assert_eq!(message(folder.path()), format!("{}: it has no config.json{MAY_BE}", folder.path().display()));
}

#[test]
fn a_folder_without_weights_or_vocabulary_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.json");
    fs::copy(Fixture::folder("gpt2").join("config.json"), &config).expect("a file of the fixture");
    let text = message(folder.path());
    assert!(
        text.starts_with(&format!("{}: ", folder.path().display())) && text.contains("model.safetensors"),
        "{text}"
    );
    fs::write(&config, r#"{"model_type": "gpt2"}"#).expect("a file");
    assert_eq!(
        message(folder.path()),
        format!(
            "{}: config.json has no vocab_size and there is no tokenizer.json beside it to take it from; set it",
            folder.path().display()
        )
    );
}

#[test]
fn bf16_gives_the_loss_of_f32_to_three_digits() {
    let fixture = Fixture::read("llama");
    let options = LoadOptions { dtype: Some(DType::BF16), ..LoadOptions::default() };
    let loaded = LoadedModel::open(&Fixture::folder("llama"), options).expect("a model");
    let row = |(ids, labels): (&Vec<u32>, &Vec<i64>)| TokenizedRow {
        input_ids: ids.clone(),
        labels: Some(labels.iter().map(|&label| label as i32).collect()),
    };
    let rows: Vec<TokenizedRow> = fixture.input_ids.iter().zip(&fixture.labels).map(row).collect();
    let loss = score(&loaded.forward(), &rows).expect("scores").loss.expect("labels that count");
    assert!((loss - fixture.loss).abs() < 5e-3, "loss {loss}, want {}", fixture.loss);
}

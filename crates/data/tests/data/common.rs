//! Shared by the tests of this crate.

use std::path::{Path, PathBuf};

use data::{CHUNK_BYTES, DataConfig, Dataset, Event, OpenOptions, Packing, Result, Sample, Tokenizer};

/// A folder for sources and another for the cache.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) chunk_bytes: usize,
    pub(crate) threads: usize,
    pub(crate) vocab_size: Option<usize>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), chunk_bytes: CHUNK_BYTES, threads: 2, vocab_size: None }
    }

    /// Writes a source and returns its path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub(crate) fn config(&self, json: serde_json::Value) -> DataConfig {
        serde_json::from_value(json).unwrap()
    }

    /// Opens what `json` (a `data` section with `sequence_length`) says.
    pub(crate) fn open(
        &self,
        json: serde_json::Value,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(Dataset, Option<Dataset>)> {
        self.open_watched(json, tokenizer, &|_| {})
    }

    pub(crate) fn open_watched(
        &self,
        json: serde_json::Value,
        tokenizer: Option<&Tokenizer>,
        on_event: &dyn Fn(Event<'_>),
    ) -> Result<(Dataset, Option<Dataset>)> {
        let config = self.config(json);
        let options = OpenOptions {
            sequence_length: config.sequence_length.unwrap(),
            packing: config.packing,
            cache: self.cache(),
            threads: self.threads,
            chunk_bytes: self.chunk_bytes,
            vocab_size: self.vocab_size,
            classes: None,
            on_event,
        };
        let (train, sets) = data::open(&config, tokenizer, &options)?;
        Ok((train, sets.into_iter().next().map(|set| set.dataset)))
    }

    /// The ids of a text file that is one document, as they come out of the whole path from file to samples.
    pub(crate) fn ids(&self, path: &str, tokenizer: &Tokenizer) -> Vec<u32> {
        let json = serde_json::json!({"train": path, "validation": path, "sequence_length": 1 << 30});
        let options = OpenOptions {
            sequence_length: 1 << 30,
            packing: Packing::Concat,
            cache: self.cache(),
            threads: self.threads,
            chunk_bytes: self.chunk_bytes,
            vocab_size: None,
            classes: None,
            on_event: &|_| {},
        };
        let config = self.config(json);
        let dataset = data::open_evaluation(&config.train, Some(tokenizer), &options, "--data").unwrap();
        assert_eq!(dataset.num_samples(), 1);
        let sample = dataset.get(0);
        let mut ids = sample.input_ids;
        ids.push(*sample.targets.last().unwrap() as u32);
        ids
    }
}

/// All samples of a dataset.
pub(crate) fn samples(dataset: &Dataset) -> Vec<Sample> {
    (0..dataset.num_samples()).map(|index| dataset.get(index)).collect()
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn gpt2() -> Tokenizer {
    Tokenizer::load(&fixture("tokenizer.json")).unwrap()
}

pub(crate) fn shakespeare_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tinyshakespeare.txt")
}

pub(crate) fn shakespeare() -> String {
    std::fs::read_to_string(shakespeare_path()).unwrap()
}

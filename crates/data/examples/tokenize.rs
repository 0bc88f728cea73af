//! How fast a corpus becomes ids, and in how much memory; the `tokenizers` library's own batch encoding beside it.
//!
//!     cargo run --release -p bessemer-data --example tokenize -- tokenizer.json corpus.txt [chunk bytes | library]

use std::path::Path;
use std::time::Instant;

use data::{CHUNK_BYTES, OpenOptions, Packing, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, corpus, rest @ ..] = arguments.as_slice() else {
        return Err("tokenizer.json corpus [chunk|library]".into());
    };
    let num_bytes = std::fs::metadata(corpus)?.len();
    let start = Instant::now();
    let num_tokens = match rest.first().map(String::as_str) {
        Some("library") => library(tokenizer, corpus)?,
        chunk => ours(tokenizer, corpus, chunk.map_or(Ok(CHUNK_BYTES), str::parse)?)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("peak unknown");
    println!("{num_tokens} tokens, {seconds:.1} s, {:.2} MB/s, {peak}", num_bytes as f64 / seconds / 1e6);
    Ok(())
}

fn ours(tokenizer: &str, corpus: &str, chunk_bytes: usize) -> Result<u64, Box<dyn std::error::Error>> {
    let tokenizer = Tokenizer::load(Path::new(tokenizer))?;
    let cache = std::env::temp_dir().join(format!("tokenize-{}", std::process::id()));
    let options = OpenOptions {
        sequence_length: 1024,
        packing: Packing::Concat,
        cache: cache.clone(),
        threads: 0,
        chunk_bytes,
        vocab_size: None,
        classes: None,
        on_event: &|_| {},
    };
    let dataset = data::open_evaluation(&corpus.into(), Some(&tokenizer), &options, "corpus")?;
    let file = std::fs::read_dir(&cache)?.find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.is_file()));
    println!("cache file: {}", file.map_or(0, |path| path.metadata().map_or(0, |metadata| metadata.len())));
    std::fs::remove_dir_all(cache)?;
    Ok(dataset.num_tokens())
}

/// The corpus in lines, a thousand lines a batch, as users of the library do it.
fn library(tokenizer: &str, corpus: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).map_err(|error| error.to_string())?;
    let text = std::fs::read_to_string(corpus)?;
    let mut num_tokens = 0;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for batch in lines.chunks(1000) {
        let encodings = tokenizer.encode_batch(batch.to_vec(), false).map_err(|error| error.to_string())?;
        num_tokens += encodings.iter().map(|encoding| encoding.len() as u64).sum::<u64>();
    }
    Ok(num_tokens)
}

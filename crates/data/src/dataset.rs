//! Opening: from the `data` section to a [`Dataset`], whose samples can be asked for by number.
//!
//! # Order of events, per source
//! Find the files; hash them (remembered); look for the cache file of content, part and tokenizer; write it if it is not there or
//! damaged; map it; lay rows over it; refuse what gives no sample.
//!
//! Parts: `{ "split": x }` cuts each training source by itself, its files taken as one: the first floor((1 - x) n) characters
//! (text) or rows are trained on, the rest validates. As in nanoGPT the two sides are tokenised each by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::cache::{TokenStore, Writer};
use crate::config::{DataConfig, DataSource, Format, NamedSources, Packing, Sources, Validation};
use crate::error::{DataError, Result};
use crate::mix::Mix;
use crate::packing::{Rows, Sample};
use crate::source::labels::Classes;
use crate::source::text::{CharSet, Span, byte_of_character};
use crate::source::{Files, Scan, content_hash};
use crate::tokenize::{RowRange, Workers};
use crate::tokenizer::Tokenizer;

/// What opening needs besides the run file's `data` section; every number final.
pub struct OpenOptions<'a> {
    /// Inputs of one sample, at least 1.
    pub sequence_length: usize,
    /// How documents become samples.
    pub packing: Packing,
    /// Folder of the token cache; made when needed.
    pub cache: PathBuf,
    /// Threads that tokenise; 0 = all cores.
    pub threads: usize,
    /// Bytes of text one thread encodes at a time ([`crate::CHUNK_BYTES`]); the ids do not depend on it.
    pub chunk_bytes: usize,
    /// The model's vocabulary, if known: every id must lie below it.
    pub vocab_size: Option<usize>,
    /// Rows have classes, one sample each: data of a classifier. `packing` must then be [`Packing::None`].
    pub classes: Option<Classes<'a>>,
    /// Told what takes time or went wrong and was mended.
    pub on_event: &'a dyn Fn(Event<'_>),
}

/// What happens while data is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Text is being tokenised: bytes of the source done and in all. Sent once more when done.
    Tokenizing {
        /// The source's path or glob.
        source: &'a str,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A cache file was damaged and is written again.
    CacheDamaged {
        /// The source's path or glob.
        source: &'a str,
        /// What was wrong with the cache file.
        reason: &'a str,
    },
}

/// `$XDG_CACHE_HOME/bessemer`, else `~/.cache/bessemer`.
pub fn default_cache() -> Result<PathBuf> {
    let folder = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("bessemer")).ok_or_else(|| DataError::Config {
        key: "data.cache".to_owned(),
        value: "absent, and so are the environment's HOME and XDG_CACHE_HOME".to_owned(),
        rule:
            "set data.cache in the run file, or for a command without one XDG_CACHE_HOME or HOME in the environment, \
               to a folder that can be written"
                .to_owned(),
    })
}

/// The tokenizer that `config` means. `models_own` is that of the model folder. `None`: there is none, which only rows of tokens can do without.
pub fn choose_tokenizer(
    config: &DataConfig,
    models_own: Option<&Tokenizer>,
    cache: &Path,
) -> Result<Option<Tokenizer>> {
    match config.tokenizer.as_deref() {
        None => Ok(models_own.cloned()),
        Some("byte") => Ok(Some(Tokenizer::byte())),
        Some("char") => char_tokenizer(config, cache).map(Some),
        Some(name) if !Path::new(name).exists() => Err(DataError::Config {
            key: "data.tokenizer".to_owned(),
            value: format!("{name:?}"),
            rule: "there is no such file; it must be the path of a tokenizer.json or of a folder that holds one, \
                   \"char\" or \"byte\""
                .to_owned(),
        }),
        Some(path) => Tokenizer::load(Path::new(path)).map(Some).map_err(|error| error.under("data.tokenizer")),
    }
}

fn char_tokenizer(config: &DataConfig, cache: &Path) -> Result<Tokenizer> {
    let mut all = CharSet::new();
    let validation = config.validation.iter().flat_map(Validation::sources);
    for (key, sources) in std::iter::once(("data.train".to_owned(), &config.train)).chain(validation) {
        for source in &sources.0 {
            let characters = Files::resolve(source).and_then(|files| files.characters(cache));
            all.add(&characters.map_err(|error| error.under(&key))?);
        }
    }
    let characters = all.sorted();
    if characters.is_empty() {
        return Err(DataError::Config {
            key: "data.tokenizer".to_owned(),
            value: "\"char\"".to_owned(),
            rule: "it takes the characters of the text, and data.train has none (rows of tokens or empty documents)"
                .to_owned(),
        });
    }
    Ok(Tokenizer::char([characters.as_str()]))
}

/// A validation set.
#[derive(Clone, Debug)]
pub struct ValidationSet {
    /// Its name, if the run file has several by name.
    pub name: Option<String>,
    /// Its samples, all of which count.
    pub dataset: Dataset,
}

impl ValidationSet {
    /// Where it stands in the run file: `data.validation.wiki`.
    pub fn key(&self) -> String {
        validation_key(self.name.as_deref())
    }
}

/// Where the validation set of this name stands in the run file.
pub(crate) fn validation_key(name: Option<&str>) -> String {
    name.map_or(VALIDATION.to_owned(), |name| format!("{VALIDATION}.{name}"))
}

/// Where validation data stand in a run file.
const VALIDATION: &str = "data.validation";

/// Opens training and validation data; the sets in the order of the file, none without `data.validation`.
///
/// # Errors
/// Whatever is wrong with a file, a row or a value, or too little text for one sample of `sequence_length`.
pub fn open(
    config: &DataConfig,
    tokenizer: Option<&Tokenizer>,
    options: &OpenOptions<'_>,
) -> Result<(Dataset, Vec<ValidationSet>)> {
    let split = match config.validation {
        Some(Validation::Split { split }) => Some(split),
        _ => None,
    };
    if let Some(split) = split
        && !(split > 0.0 && split < 1.0)
    {
        let rule = "it must be above 0 and below 1, the share that is held out".to_owned();
        return Err(DataError::Config { key: "data.validation.split".to_owned(), value: split.to_string(), rule });
    }
    let opener = Opener { tokenizer, options, has_run_file: true };
    let train_part = split.map_or(Part::All, Part::First);
    let train = opener.dataset(&config.train, train_part, false, "data.train")?;
    let of_sources = |name: Option<&String>, sources: &Sources| {
        let key = validation_key(name.map(String::as_str));
        let dataset = opener.dataset(sources, Part::All, true, &key)?;
        Ok(ValidationSet { name: name.cloned(), dataset })
    };
    let validation = match &config.validation {
        None => Vec::new(),
        Some(Validation::Split { split }) => {
            let dataset = opener.dataset(&config.train, Part::Last(*split), true, "data.validation.split")?;
            vec![ValidationSet { name: None, dataset }]
        }
        Some(Validation::Sources(sources)) => vec![of_sources(None, sources)?],
        Some(Validation::Named(NamedSources(sets))) => {
            sets.iter().map(|(name, sources)| of_sources(Some(name), sources)).collect::<Result<_>>()?
        }
    };
    Ok((train, validation))
}

/// Whether any source holds rows of tokens, which are samples as they are, rather than text to be packed.
///
/// # Errors
/// A file is missing or its format cannot be told.
pub fn holds_token_rows(sources: &Sources) -> Result<bool> {
    let formats = sources.0.iter().map(|source| Files::resolve(source).map(|files| files.format));
    Ok(formats.collect::<Result<Vec<Format>>>()?.contains(&Format::Tokenized))
}

/// Opens data to be evaluated: every sample counts, the short last one too. `key` is what errors call it, e.g. `--data`.
pub fn open_evaluation(
    sources: &Sources,
    tokenizer: Option<&Tokenizer>,
    options: &OpenOptions<'_>,
    key: &str,
) -> Result<Dataset> {
    Opener { tokenizer, options, has_run_file: false }.dataset(sources, Part::All, true, key)
}

/// Samples by number, from one or more sources. Cloning shares the maps.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(crate) sources: Vec<Rows>,
    pub(crate) mix: Option<Mix>,
}

impl Dataset {
    /// Samples in all sources: an epoch.
    pub fn num_samples(&self) -> u64 {
        self.sources.iter().map(Rows::num_samples).sum()
    }

    /// Sample `index` of all, source by source, in file order.
    ///
    /// # Panics
    /// If `index` is not below [`Dataset::num_samples`].
    pub fn get(&self, index: u64) -> Sample {
        let (source, index) = self.locate(index);
        self.sources[source].get(index)
    }

    /// Tokens of the text or rows, end-of-text tokens between documents included.
    pub fn num_tokens(&self) -> u64 {
        let tokens = |rows: &Rows| match rows.packing {
            Packing::Concat => rows.num_stream_tokens(),
            Packing::None => rows.store.num_tokens(),
        };
        self.sources.iter().map(tokens).sum()
    }

    /// Bytes of the whole UTF-8 text, the divisor of bits per byte. `None` if some of it came as tokens, or is predicted
    /// as a class.
    pub fn text_bytes(&self) -> Option<u64> {
        self.sources
            .iter()
            .map(|rows| Some(rows.store.text_bytes()).filter(|&bytes| bytes > 0 && !rows.has_classes))
            .sum()
    }

    /// Documents, or rows.
    pub fn num_documents(&self) -> u64 {
        self.sources.iter().map(|rows| rows.store.num_documents() as u64).sum()
    }

    /// 16 hexadecimal digits of a SHA-256 over all that determines the samples: content (every byte), parts and list of the sources,
    /// tokenizer, packing, sequence length, and the proportion of the weights. Not over where files lie.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for Rows { store, packing, sequence_length, keep_short, separator: _, has_classes: _ } in &self.sources {
            hasher.update(store.key()); // the tokenizer's hash, and so the separator, is in it
            hasher.update(format!("{packing:?} {sequence_length} {keep_short};"));
        }
        hasher.update(format!("{:?}", self.mix));
        let mut digits = format!("{:x}", hasher.finalize());
        digits.truncate(16);
        digits
    }

    pub(crate) fn locate(&self, mut index: u64) -> (usize, u64) {
        for (source, rows) in self.sources.iter().enumerate() {
            if index < rows.num_samples() {
                return (source, index);
            }
            index -= rows.num_samples();
        }
        panic!("Dataset::locate: {index} samples beyond the last of {}", self.num_samples());
    }
}

/// Which side of a split.
#[derive(Clone, Copy, Debug)]
enum Part {
    All,
    First(f64),
    Last(f64),
}

impl Part {
    /// The units of `n` that belong to this part.
    fn range(self, n: u64) -> std::ops::Range<u64> {
        let cut = |split: f64| ((1.0 - split) * n as f64) as u64; // nanoGPT: int(n * 0.9)
        match self {
            Self::All => 0..n,
            Self::First(split) => 0..cut(split),
            Self::Last(split) => cut(split)..n,
        }
    }
}

struct Opener<'a> {
    tokenizer: Option<&'a Tokenizer>,
    options: &'a OpenOptions<'a>,
    /// Whether errors may advise to change keys of the run file.
    has_run_file: bool,
}

impl Opener<'_> {
    fn dataset(&self, sources: &Sources, part: Part, keep_short: bool, key: &str) -> Result<Dataset> {
        let key_of = |index: usize| if sources.0.len() == 1 { key.to_owned() } else { format!("{key}[{index}]") };
        let mut weights = Vec::new();
        for (index, source) in sources.0.iter().enumerate() {
            let weight = source.weight.unwrap_or(1.0);
            if !(weight.is_finite() && weight > 0.0) {
                let (key, rule) = (format!("{}.weight", key_of(index)), "it must be a number above 0".to_owned());
                return Err(DataError::Config { key, value: weight.to_string(), rule });
            }
            weights.push(weight);
        }
        let open = |(index, source)| self.source(source, part, keep_short).map_err(|error| error.under(key_of(index)));
        let rows = sources.0.iter().enumerate().map(open).collect::<Result<Vec<Rows>>>()?;
        let is_weighted = rows.len() > 1 && sources.0.iter().any(|source| source.weight.is_some());
        Ok(Dataset { sources: rows, mix: is_weighted.then(|| Mix::new(&weights)) })
    }

    fn source(&self, source: &DataSource, part: Part, keep_short: bool) -> Result<Rows> {
        let files = Files::resolve(source)?;
        let has_classes = self.options.classes.is_some();
        if has_classes && files.format == Format::Text {
            return Err(DataError::Unlabelled { path: source.path.clone() });
        }
        let tokenizer = self.tokenizer_for(&files)?;
        let scans = files.scan(&self.options.cache)?;
        let store = self.store(source, &files, &scans, part, tokenizer)?;
        // Rows of tokens are joined as they are: whoever made them decided what ends a document.
        let separator = tokenizer.and_then(Tokenizer::end_of_text);
        let (packing, sequence_length) = (self.options.packing, self.options.sequence_length);
        let rows = Rows { store: Arc::new(store), packing, sequence_length, separator, keep_short, has_classes };
        match packing {
            Packing::Concat => self.check_length(&rows, source)?,
            Packing::None => self.check_documents(&rows, source, &files, &scans, part)?,
        }
        Ok(rows)
    }

    /// The tokenizer of a source of text; `None` for rows of tokens.
    fn tokenizer_for(&self, files: &Files) -> Result<Option<&Tokenizer>> {
        if files.format == Format::Tokenized {
            return Ok(None);
        }
        let tokenizer = self.tokenizer.ok_or(DataError::NoTokenizer)?;
        if let Some(vocab_size) = self.options.vocab_size
            && tokenizer.vocab_size() > vocab_size
        {
            return Err(DataError::Config {
                key: "data.tokenizer".to_owned(),
                value: format!("a tokenizer of {} ids", tokenizer.vocab_size()),
                rule: format!("the model's vocab_size is {vocab_size}, which must be at least as large"),
            });
        }
        Ok(Some(tokenizer))
    }

    fn store(
        &self,
        source: &DataSource,
        files: &Files,
        scans: &[Scan],
        part: Part,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<TokenStore> {
        let OpenOptions { cache, vocab_size, on_event, .. } = self.options;
        let mut key = Sha256::new();
        key.update(content_hash(files, scans));
        key.update(format!("{part:?}"));
        match tokenizer {
            Some(tokenizer) => key.update(tokenizer.hash()),
            None => key.update(format!("{vocab_size:?} with soft labels")), // ids were checked against it
        }
        if let Some(classes) = self.options.classes {
            key.update(format!("{classes:?}"));
        }
        let key = key.finalize().into();
        match TokenStore::open(cache, key)? {
            Ok(store) => return Ok(store),
            Err(Some(reason)) => on_event(Event::CacheDamaged { source: &source.path, reason: &reason }),
            Err(None) => {}
        }
        self.tokenize(source, files, scans, part, tokenizer, key)?;
        let store = TokenStore::open(cache, key)?;
        Ok(store.unwrap_or_else(|why| panic!("Opener::store: a cache file just written is not good: {why:?}")))
    }

    fn tokenize(
        &self,
        source: &DataSource,
        files: &Files,
        scans: &[Scan],
        part: Part,
        tokenizer: Option<&Tokenizer>,
        key: [u8; 32],
    ) -> Result<()> {
        let OpenOptions { cache, threads, chunk_bytes, vocab_size, classes, on_event, .. } = self.options;
        let total = scans.iter().map(|scan| scan.bytes).sum();
        let progress = |done| on_event(Event::Tokenizing { source: &source.path, done, total });
        let workers = Workers::new(*threads, *chunk_bytes, &progress)?;
        let width = tokenizer.map(Tokenizer::vocab_size).or(*vocab_size);
        let mut writer = Writer::create(cache, key, width)?;
        match (files.format, tokenizer) {
            (Format::Text, Some(tokenizer)) => workers.text(&spans(files, scans, part)?, tokenizer, &mut writer)?,
            (Format::Jsonl, Some(tokenizer)) => {
                workers.jsonl(&row_ranges(files, scans, part), &files.text_field, tokenizer, *classes, &mut writer)?;
            }
            _ => workers.tokenized(&row_ranges(files, scans, part), *vocab_size, *classes, &mut writer)?,
        }
        writer.finish()?;
        progress(total);
        Ok(())
    }

    fn check_length(&self, rows: &Rows, source: &DataSource) -> Result<()> {
        let (tokens, sequence_length) = (rows.num_stream_tokens(), self.options.sequence_length);
        let needed = if rows.keep_short { 2 } else { sequence_length as u64 + 1 };
        if tokens < needed {
            return Err(self.too_short(source, tokens, needed));
        }
        Ok(())
    }

    fn too_short(&self, source: &DataSource, tokens: u64, needed: u64) -> DataError {
        let (what, sequence_length) = (source.path.clone(), self.options.sequence_length);
        if self.has_run_file {
            DataError::TooShort { what, tokens, sequence_length, needed }
        } else {
            DataError::NothingToEvaluate { what, tokens, needed }
        }
    }

    /// With packing `none` each document must be a sample: at least one token, at most `sequence_length`.
    fn check_documents(
        &self,
        rows: &Rows,
        source: &DataSource,
        files: &Files,
        scans: &[Scan],
        part: Part,
    ) -> Result<()> {
        let (store, sequence_length) = (&rows.store, rows.sequence_length);
        if store.num_documents() == 0 {
            return Err(self.too_short(source, 0, 1));
        }
        for index in 0..store.num_documents() {
            let tokens = store.document(index);
            let num_tokens = tokens.end - tokens.start;
            let problem = match (num_tokens, self.has_run_file) {
                (1.., _) if num_tokens <= sequence_length as u64 => continue,
                (0, true) => "has no token; with data.packing \"none\" every row must have at least one".to_owned(),
                (0, false) => "has no token; every row must have at least one".to_owned(),
                (_, true) => format!(
                    "has {num_tokens} tokens; with data.packing \"none\" it must have at most data.sequence_length {sequence_length}: \
                     raise that, shorten the row, or set data.packing to \"concat\""
                ),
                (_, false) => format!(
                    "has {num_tokens} tokens; shorten the row; the model takes at most {sequence_length} tokens"
                ),
            };
            let (path, line) = place_of(files, scans, part, index as u64);
            return Err(DataError::Row { path, line, problem });
        }
        Ok(())
    }
}

/// The documents of text files that lie in `part` of the files taken as one.
fn spans(files: &Files, scans: &[Scan], part: Part) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for (path, scan, units) in units_per_file(files, scans, part) {
        let byte_at = |unit: u64| if unit == scan.units { Ok(scan.bytes) } else { byte_of_character(path, unit) };
        let start = if units.start == 0 { 0 } else { byte_at(units.start)? };
        spans.push(Span { path: path.clone(), start, end: byte_at(units.end)? });
    }
    Ok(spans)
}

fn row_ranges(files: &Files, scans: &[Scan], part: Part) -> Vec<RowRange> {
    units_per_file(files, scans, part).map(|(path, _, rows)| RowRange { path: path.clone(), rows }).collect()
}

/// Which characters or rows of each file lie in `part`; files without any are left out.
fn units_per_file<'a>(
    files: &'a Files,
    scans: &'a [Scan],
    part: Part,
) -> impl Iterator<Item = (&'a PathBuf, &'a Scan, std::ops::Range<u64>)> {
    let wanted = part.range(scans.iter().map(|scan| scan.units).sum());
    let mut before = 0;
    files.paths.iter().zip(scans).filter_map(move |(path, scan)| {
        let here = wanted.start.clamp(before, before + scan.units) - before
            ..wanted.end.clamp(before, before + scan.units) - before;
        before += scan.units;
        (!here.is_empty()).then_some((path, scan, here))
    })
}

/// The file and line of document `index`; for text the line is 1, where the document begins.
fn place_of(files: &Files, scans: &[Scan], part: Part, mut index: u64) -> (PathBuf, u64) {
    for (path, _, units) in units_per_file(files, scans, part) {
        let num_documents = if files.format == Format::Text { 1 } else { units.end - units.start };
        if index < num_documents {
            let line = if files.format == Format::Text { 1 } else { units.start + index + 1 };
            return (path.clone(), line);
        }
        index -= num_documents;
    }
    panic!("place_of: {index} documents beyond the last");
}

//! What a user's data can do wrong, one sentence each: where, the value found, what it must be, what to do.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` of this crate.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Why data could not be used. The text of each names file, place and value.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An error below a key of the run file, e.g. `data.train`.
    #[error("{key}: {error}")]
    Under {
        /// The key, as the user writes it.
        key: String,
        /// What went wrong there.
        error: Box<DataError>,
    },
    /// There is no such file.
    #[error("{path}: no such file; give the path of a file that exists, or a glob")]
    Missing {
        /// The path as the user wrote it.
        path: PathBuf,
    },
    /// A glob that no file matches.
    #[error("{pattern}: no file matches this glob; give the path of a file that exists, or a glob that matches one")]
    NoMatch {
        /// The glob.
        pattern: String,
    },
    /// A folder where a file is needed.
    #[error("{path}: is a folder; it must be a file, or a glob such as {path}/*.txt")]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A file without a byte.
    #[error("{path}: is empty (0 bytes); it must hold at least one {what}")]
    Empty {
        /// The file.
        path: PathBuf,
        /// "character" or "row".
        what: &'static str,
    },
    /// Bytes that are not UTF-8.
    #[error(
        "{path}: not UTF-8 at byte offset {offset} (byte 0x{byte:02x}); text must be UTF-8: convert it, e.g. `iconv -f ISO-8859-1 -t UTF-8`"
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte, from 0.
        offset: u64,
        /// Its value.
        byte: u8,
    },
    /// A row of a JSONL file that cannot be used.
    #[error("{path}: line {line}: {problem}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What is wrong, the value found, what it must be.
        problem: String,
    },
    /// Files of one source that are of different formats.
    #[error(
        "{first} is {first_format} and {second} is {second_format}; the files of one source must have one format: list them as two sources, or set `format`"
    )]
    MixedFormats {
        /// A file of the source.
        first: PathBuf,
        /// Its format.
        first_format: &'static str,
        /// Another file.
        second: PathBuf,
        /// Its format.
        second_format: &'static str,
    },
    /// Fewer tokens than one sample needs.
    #[error(
        "{what} holds {tokens} token{s}; data.sequence_length {sequence_length} needs at least {needed}: give more text or a shorter sequence_length",
        s = if *tokens == 1 { "" } else { "s" }
    )]
    TooShort {
        /// Which data.
        what: String,
        /// Tokens found.
        tokens: u64,
        /// The key's value.
        sequence_length: usize,
        /// The least that will do.
        needed: u64,
    },
    /// Fewer tokens than can be evaluated.
    #[error("{what} holds {tokens} token{s}; it must hold at least {needed}: give more text", s = if *tokens == 1 { "" } else { "s" })]
    NothingToEvaluate {
        /// Which data.
        what: String,
        /// Tokens found.
        tokens: u64,
        /// The least that will do.
        needed: u64,
    },
    /// A value of the run file that cannot be.
    #[error("{key} is {value}; {rule}")]
    Config {
        /// The key, as the user writes it.
        key: String,
        /// The value found.
        value: String,
        /// What it must be, as the end of a sentence.
        rule: String,
    },
    /// Text without rows, for a classifier.
    #[error(
        "{path}: is plain text, which has no labels; a classifier needs rows {{\"text\", \"label\"}} (jsonl) or {{\"input_ids\", \"label\"}} (tokenized)"
    )]
    Unlabelled {
        /// The path or glob.
        path: String,
    },
    /// Text is to be tokenised and nothing says how.
    #[error(
        "data.tokenizer is absent and the model folder has no tokenizer.json; set it to the path of a tokenizer.json, \"char\" or \"byte\""
    )]
    NoTokenizer,
    /// A tokenizer file that cannot be used.
    #[error("{path}: {problem}; it must be a tokenizer.json of the Hugging Face `tokenizers` library")]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A character that a character tokenizer has not seen.
    #[error(
        "the character {character:?} is not among the {known} characters of the tokenizer, which are those of the training and validation text"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// How many it knows.
        known: usize,
    },
    /// The `tokenizers` library refused.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A tokenizer whose ids near a place depend on text far behind it, so that no text can be cut for it.
    #[error(
        "{path}: the tokenizer gives other ids for the text before byte {offset} when more text follows; such a tokenizer cannot be used on a file this long: cut the file into documents"
    )]
    NotLocal {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// The system refused.
    #[error("{path}: could not {action}: {error}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// The system refused something in the token cache.
    #[error(
        "{path}: could not {action} (token cache): {error}; set data.cache in the run file, or for a command without one XDG_CACHE_HOME or HOME in the environment, to a folder that can be written"
    )]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "write", ...
        action: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

impl DataError {
    /// A closure for `map_err`: the system refused to do `action` to `path`.
    pub(crate) fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |error| Self::Io { path: path.to_owned(), action, error }
    }

    /// The same for a file or folder of the token cache.
    pub(crate) fn cache<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |error| Self::Cache { path: path.to_owned(), action, error }
    }

    /// The same error, saying under which key of the run file it arose.
    pub(crate) fn under(self, key: impl Into<String>) -> Self {
        Self::Under { key: key.into(), error: Box::new(self) }
    }
}

//! The training and validation samples of a run.

use crate::config::RunConfig;
use crate::error::{Result, TrainError};
use crate::evaluation;
use crate::event::{Event, Observer};
use crate::model_source::ModelOrigin;
use crate::plan;
use crate::task::check_classification;
use data::{Classes, DataError, Dataset, Loader, OpenOptions, Tokenizer, ValidationSet};
use std::cell::RefCell;

/// What a run trains and validates on.
pub struct TrainingData {
    /// Training samples in the order of the run.
    pub loader: Loader,
    /// Validation sets in the order of the run file, with all their samples; none without `data.validation`.
    pub validation: Vec<ValidationSet>,
    /// How text became tokens; none where the data came as tokens.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens of a full row.
    pub sequence_length: usize,
}

impl TrainingData {
    /// Opens the `data` section of a run file. Text is tokenised into the cache if it is not there yet.
    ///
    /// - `models_own`: the tokenizer of the model's folder, used where the section names none.
    /// - `max_positions`: the longest row the model takes, if it has a limit.
    /// - `vocab_size`: ids must lie below it, if it is settled.
    pub fn open(
        config: &RunConfig,
        models_own: Option<&Tokenizer>,
        max_positions: Option<usize>,
        vocab_size: Option<usize>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        Self::open_with(config, models_own, max_positions, vocab_size, None, observer)
    }

    /// The same for the model of a run: with classes where it is a classifier.
    ///
    /// # Errors
    /// As [`TrainingData::open`], and what makes no sense for a classifier.
    pub fn for_model(config: &RunConfig, origin: &ModelOrigin, observer: &mut dyn Observer) -> Result<Self> {
        if origin.config.task.labels().is_some() {
            check_classification(config)?;
        }
        let (own, limit) = (origin.tokenizer.as_ref(), Some(origin.config.max_positions()));
        Self::open_with(config, own, limit, origin.config.vocab_size, Some(origin), observer)
    }

    fn open_with(
        config: &RunConfig,
        models_own: Option<&Tokenizer>,
        max_positions: Option<usize>,
        vocab_size: Option<usize>,
        origin: Option<&ModelOrigin>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let (_, section, _) = config.for_training()?;
        let sequence_length = plan::sequence_length(config, max_positions)?;
        let cache = section.cache.clone().map_or_else(data::default_cache, Ok)?;
        let tokenizer = data::choose_tokenizer(section, models_own, &cache).map_err(|error| at_fault(config, error))?;
        let observer = RefCell::new(observer);
        let on_event = |event: data::Event<'_>| tell(event, *observer.borrow_mut());
        let options = OpenOptions {
            sequence_length,
            packing: section.packing,
            cache,
            threads: config.run.threads,
            chunk_bytes: data::CHUNK_BYTES,
            vocab_size,
            classes: origin.and_then(|origin| {
                let names = origin.config.task.labels()?.names();
                Some(Classes { names, pad: origin.pad(tokenizer.as_ref()) })
            }),
            on_event: &on_event,
        };
        let is_classifier = options.classes.is_some();
        let opened = data::open(section, tokenizer.as_ref(), &options);
        let (train, validation) = opened.map_err(|error| at_fault(config, error))?;
        check_targets(config, "data.train", &train)?;
        validation.iter().try_for_each(|set| check_targets(config, &set.key(), &set.dataset))?;
        evaluation::check(config, &validation, is_classifier)?;
        let loader = Loader::new(train, config.run.seed, section.shuffle);
        Ok(Self { loader, validation, tokenizer, sequence_length })
    }

    /// Ids that the tokenizer gives.
    pub fn vocab_size(&self) -> Option<usize> {
        self.tokenizer.as_ref().map(Tokenizer::vocab_size)
    }
}

/// The same error, saying in which file, or in which words of the command line, the key at fault stands.
pub(crate) fn at_fault(config: &RunConfig, error: DataError) -> TrainError {
    match error {
        DataError::Under { error, .. } if matches!(*error, DataError::NoTokenizer | DataError::Config { .. }) => {
            config.error(error).into()
        }
        DataError::Under { key, error } => config.error_at(&key, error).into(),
        error => config.error(error).into(),
    }
}

/// Refuses data in which no target counts. Nearly always the first sample has one.
fn check_targets(config: &RunConfig, key: &str, dataset: &Dataset) -> Result<()> {
    if (0..dataset.num_samples()).any(|index| dataset.get(index).num_targets() > 0) {
        return Ok(());
    }
    let problem = "no target counts: every label is -100 or every row has one token; some labels must be token ids";
    Err(config.error_at(key, problem).into())
}

/// Tells an observer what the data crate does.
pub fn tell(event: data::Event<'_>, observer: &mut dyn Observer) {
    match event {
        data::Event::Tokenizing { source, done, total } => observer.on(Event::Tokenizing { source, done, total }),
        data::Event::CacheDamaged { source, reason } => {
            observer.on(Event::Notice(&format!("the token cache of {source} is damaged ({reason}) and is made again")));
        }
    }
}

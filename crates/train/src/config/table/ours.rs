//! Our own sections: `model`, `data`, `run`.

use super::{ABOVE_ZERO, BELOW_ONE, COUNT, Key, NOT_NEGATIVE, OPEN, POSITIVE, SECTION, keys};
use crate::config::keys::Kind::{self, Bool, Int, List, Names, Number, OneOf, Text};
use crate::config::keys::Status::Honoured;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// What a list of sources holds.
const SOURCES: Kind = List(&OneOf(&[Text, SECTION]));
const RECOMPUTE: Kind = OneOf(&[Bool, SECTION]);
const RECOMPUTED_OPS: Kind = Names(&["norm", "gelu", "silu_mul", "attention", "linear"]);
/// One validation set among several.
const NAMED_SET: Kind = OneOf(&[Text, SOURCES, SECTION]);
/// `split`, or sets by name.
const SETS: Kind = Kind::Section(Some(&NAMED_SET));
/// What a checkpoint or the end of a run may depend on: the figures of an evaluation.
const METRIC: Kind = Names(crate::evaluation::METRICS);
const MODE: Kind = Names(&["min", "max"]);

pub(super) static KEYS: &[Key] = keys! {
    "data", SECTION, "null", Honoured, "what is trained on";
    "data.cache", Text, "null", Honoured, "folder of the token cache; null: ~/.cache/bessemer";
    "data.packing", Names(&["concat", "none"]), "\"concat\"", Honoured, "concat joins documents into full sequences; none: one row, one sample";
    "data.sequence_length", POSITIVE, "null", Honoured, "tokens of one sample; null: the smaller of 1024 and the model's";
    "data.shuffle", Bool, "true", Honoured, "false: file order, again and again";
    "data.tokenizer", Text, "null", Honoured, "tokenizer.json, \"char\" or \"byte\"; null: the model folder's own";
    "data.train", OneOf(&[Text, SOURCES]), "null", Honoured, "a path, a glob or a list of sources";
    "data.train[].format", Names(&["text", "jsonl", "tokenized"]), "null", Honoured, "null: by the file's ending";
    "data.train[].path", Text, "null", Honoured, "a path or a glob";
    "data.train[].text_field", Text, "\"text\"", Honoured, "the field of a jsonl row that holds the document";
    "data.train[].weight", ABOVE_ZERO, "null", Honoured, "share of the samples against the other sources; null everywhere: each sample once";
    "data.validation", OneOf(&[Text, SOURCES, SETS]), "null", Honoured, "as data.train, {\"split\": 0.1}, the last tenth, or several sets by name: {\"wiki\": \"w.txt\", \"code\": [...]}";
    "data.validation.*.format", Names(&["text", "jsonl", "tokenized"]), "null", Honoured, "of a set; null: by the file's ending";
    "data.validation.*.path", Text, "null", Honoured, "a path or a glob; a set may also be a path or a list of sources";
    "data.validation.*.text_field", Text, "\"text\"", Honoured, "the field of a jsonl row that holds the document";
    "data.validation.*.weight", ABOVE_ZERO, "null", Honoured, "not used in evaluation";
    "data.validation.*[].format", Names(&["text", "jsonl", "tokenized"]), "null", Honoured, "null: by the file's ending";
    "data.validation.*[].path", Text, "null", Honoured, "a path or a glob";
    "data.validation.*[].text_field", Text, "\"text\"", Honoured, "the field of a jsonl row that holds the document";
    "data.validation.*[].weight", ABOVE_ZERO, "null", Honoured, "not used in evaluation";
    "data.validation.split", Number(Excluded(0.0), Excluded(1.0)), "null", Honoured, "share of the training data, from its end";
    "data.validation[].format", Names(&["text", "jsonl", "tokenized"]), "null", Honoured, "null: by the file's ending";
    "data.validation[].path", Text, "null", Honoured, "a path or a glob";
    "data.validation[].text_field", Text, "\"text\"", Honoured, "the field of a jsonl row that holds the document";
    "data.validation[].weight", ABOVE_ZERO, "null", Honoured, "not used in evaluation";
    "model", SECTION, "null", Honoured, "what is trained: one of path, preset and config";
    "model.config", OPEN, "null", Honoured, "a Hugging Face config.json; random weights";
    "model.path", Text, "null", Honoured, "a folder in the Hugging Face layout, a checkpoint or a run's output";
    "model.preset", Text, "null", Honoured, "a known architecture; random weights";
    "run", SECTION, "{}", Honoured, "how long, where to and how often";
    "run.batch_ramp", SECTION, "null", Honoured, "early steps take fewer samples; null: every step takes train_batch_size";
    "run.batch_ramp.start", POSITIVE, "null", Honoured, "samples of the first step, whole micro-batches on every rank";
    "run.batch_ramp.steps", Int { min: 1, max: 1_000_000 }, "null", Honoured, "steps until train_batch_size";
    "run.checkpoint_async", Bool, "null", Honoured, "checkpoints are written while training goes on, from a copy of the state in memory; null: where there is memory for it";
    "run.checkpoint_every", COUNT, "0", Honoured, "steps between checkpoints; 0: one at the end";
    "run.clip_value", ABOVE_ZERO, "null", Honoured, "largest magnitude of an element of the mean gradient, before gradient_clipping; null: any";
    "run.comm_timeout", Number(Excluded(0.0), Included(86400.0)), "60.0", Honoured, "seconds after which a rank that does not answer is lost, and the run ends with its name";
    "run.deterministic", Bool, "false", Honoured, "same bits on any number of data-parallel ranks";
    "run.device", Names(&["auto", "cpu"]), "\"auto\"", Honoured, "where the run computes";
    "run.early_stop", SECTION, "null", Honoured, "the run ends when evaluations bring no gain any more; null: it does not";
    "run.early_stop.metric", METRIC, "\"eval_loss\"", Honoured, "the figure that must gain";
    "run.early_stop.min_gain", NOT_NEGATIVE, "0.0", Honoured, "a gain must be above this";
    "run.early_stop.mode", MODE, "null", Honoured, "min: lower is better; max: higher; null: by the metric";
    "run.early_stop.patience", POSITIVE, "3", Honoured, "evaluations in a row without gain that end the run";
    "run.ema_decay", BELOW_ONE, "null", Honoured, "decay of a running average of the weights (f32), which is evaluated and exported; null: none";
    "run.epochs", ABOVE_ZERO, "null", Honoured, "length in passes over the training data; 1 when no length is given";
    "run.eval_every", COUNT, "0", Honoured, "steps between evaluations; 0: one at the end";
    "run.eval_set", Text, "null", Honoured, "the validation set that early_stop, keep_best and reduce_lr_on_plateau follow; null: the first";
    "run.gradient_noise", NOT_NEGATIVE, "0.0", Honoured, "eta of normal noise of variance eta / (1 + t)^0.55 at update t, added to the clipped mean gradient; 0: none";
    "run.isa", Names(&["portable", "avx2", "avx512", "avx512_bf16"]), "null", Honoured, "highest instruction set used; null: the machine's";
    "run.keep_best", SECTION, "null", Honoured, "checkpoints of the best evaluations, kept beside the newest; null: none";
    "run.keep_best.count", POSITIVE, "1", Honoured, "how many; each is saved when its evaluation is made";
    "run.keep_best.metric", METRIC, "\"eval_loss\"", Honoured, "the figure they are chosen by";
    "run.keep_best.mode", MODE, "null", Honoured, "min: lower is better; max: higher; null: by the metric";
    "run.keep_checkpoints", COUNT, "3", Honoured, "newest checkpoints kept; 0 = all";
    "run.l1_penalty", NOT_NEGATIVE, "0.0", Honoured, "times the sign of each weight outside optimizer.no_decay, added to the gradient";
    "run.l2_penalty", NOT_NEGATIVE, "0.0", Honoured, "times each weight outside optimizer.no_decay, added to the gradient; unlike decoupled decay it passes through the moments";
    "run.load_best_at_end", Bool, "false", Honoured, "a finished run exports the best checkpoint of keep_best rather than the last weights";
    "run.log_every", POSITIVE, "null", Honoured, "steps between log lines; null: steps_per_print, else 10";
    "run.loss_spike", SECTION, "null", Honoured, "a guard against a batch whose loss leaps; null: none";
    "run.loss_spike.action", Names(&["skip", "stop"]), "\"skip\"", Honoured, "skip the batch's update and say so, or stop the run before it";
    "run.loss_spike.factor", Number(Excluded(1.0), Unbounded), "2.0", Honoured, "a loss above this many times the mean of the window is a spike";
    "run.loss_spike.window", Int { min: 1, max: 10_000 }, "20", Honoured, "steps of the mean; there is no spike before them, and as many in a row stop the run";
    "run.norms_every", COUNT, "0", Honoured, "steps between norms of gradient and weights of every block in metrics.jsonl and the monitors; 0: never";
    "run.output", Text, "null", Honoured, "folder of the run; null: runs/<the file's name>";
    "run.recompute", RECOMPUTE, "false", Honoured, "true: keeps each layer's input alone and runs the layer again in backward; or a section with one of every, segment and ops";
    "run.recompute.every", POSITIVE, "null", Honoured, "one layer in so many is run again from its input, of the others everything is kept";
    "run.recompute.ops", List(&RECOMPUTED_OPS), "null", Honoured, "outputs of these ops, where the model has them, are not kept but computed again from their inputs; norm, gelu and silu_mul cost next to nothing, attention and linear their work";
    "run.recompute.segment", POSITIVE, "null", Honoured, "keeps the input of every so many layers and runs that many again at a time; 1: as true";
    "run.sample_every", COUNT, "0", Honoured, "steps between printed samples; 0: one at the end";
    "run.sample_prompt", Text, "null", Honoured, "text that samples go on from; null: no samples";
    "run.sample_tokens", POSITIVE, "128", Honoured, "tokens of a sample";
    "run.seed", COUNT, "42", Honoured, "seed of weights, order and dropout";
    "run.steps", POSITIVE, "null", Honoured, "length in optimizer steps";
    "run.threads", Int { min: 0, max: 1024 }, "0", Honoured, "threads; 0 = all cores";
    "run.tokens", POSITIVE, "null", Honoured, "length in training tokens";
};

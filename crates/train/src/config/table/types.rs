//! The keys of `optimizer.params` and `scheduler.params`, which depend on the type beside them.

use super::{BELOW_ONE, COUNT, Key, NOT_NEGATIVE, NOT_YET, POSITIVE, SHARE, keys};
use crate::config::keys::Kind::{Bool, Int, List, Names, Null, Number, OneOf, Pair, Text};
use crate::config::keys::Status::{Honoured, NoEffect};
use crate::config::keys::{Kind, TypeKeys};
use std::ops::Bound::{Included, Unbounded};

const RATE_OR_OPTIMIZERS: Kind = OneOf(&[NOT_NEGATIVE, Null]);
/// One for all groups of weights, or a list with one for each.
const RATES: Kind = OneOf(&[NOT_NEGATIVE, List(&NOT_NEGATIVE)]);
const RATES_OR_OPTIMIZERS: Kind = OneOf(&[NOT_NEGATIVE, List(&NOT_NEGATIVE), Null]);
const MOMENTA: Kind = OneOf(&[BELOW_ONE, List(&BELOW_ONE)]);
/// -1: with the run.
const LAST_STEP: Kind = Int { min: -1, max: i64::MAX };
const CURVE: Kind = Names(&["linear", "cosine", "1-sqrt"]);

/// Optimizers and schedules that are built, by the name of their type.
pub(crate) static TYPES: &[TypeKeys] = &[
    TypeKeys { section: "optimizer", name: "Adam", keys: ADAM },
    TypeKeys { section: "optimizer", name: "AdamW", keys: ADAM },
    TypeKeys { section: "optimizer", name: "SGD", keys: SGD },
    TypeKeys { section: "optimizer", name: "Adagrad", keys: ADAGRAD },
    TypeKeys { section: "optimizer", name: "RMSprop", keys: RMSPROP },
    TypeKeys { section: "optimizer", name: "Adadelta", keys: ADADELTA },
    TypeKeys { section: "optimizer", name: "Adamax", keys: ADAMAX },
    TypeKeys { section: "optimizer", name: "NAdam", keys: NADAM },
    TypeKeys { section: "optimizer", name: "RAdam", keys: RADAM },
    TypeKeys { section: "optimizer", name: "Lion", keys: LION },
    TypeKeys { section: "optimizer", name: "Lamb", keys: LAMB },
    TypeKeys { section: "optimizer", name: "Muon", keys: MUON },
    TypeKeys { section: "optimizer", name: "Adafactor", keys: ADAFACTOR },
    TypeKeys { section: "optimizer", name: "AdamWScheduleFree", keys: SCHEDULE_FREE },
    TypeKeys { section: "optimizer", name: "custom", keys: CUSTOM },
    TypeKeys { section: "scheduler", name: "WarmupLR", keys: WARMUP },
    TypeKeys { section: "scheduler", name: "WarmupDecayLR", keys: WARMUP_DECAY },
    TypeKeys { section: "scheduler", name: "WarmupCosineLR", keys: WARMUP_COSINE },
    TypeKeys { section: "scheduler", name: "constant", keys: CONSTANT },
    TypeKeys { section: "scheduler", name: "constant_with_warmup", keys: CONSTANT_WITH_WARMUP },
    TypeKeys { section: "scheduler", name: "linear", keys: LINEAR },
    TypeKeys { section: "scheduler", name: "cosine", keys: COSINE },
    TypeKeys { section: "scheduler", name: "cosine_with_restarts", keys: COSINE_WITH_RESTARTS },
    TypeKeys { section: "scheduler", name: "cosine_with_min_lr", keys: COSINE_WITH_MIN_LR },
    TypeKeys { section: "scheduler", name: "polynomial", keys: POLYNOMIAL },
    TypeKeys { section: "scheduler", name: "inverse_sqrt", keys: INVERSE_SQRT },
    TypeKeys { section: "scheduler", name: "warmup_stable_decay", keys: WARMUP_STABLE_DECAY },
    TypeKeys { section: "scheduler", name: "reduce_lr_on_plateau", keys: REDUCE_LR_ON_PLATEAU },
    TypeKeys { section: "scheduler", name: "OneCycle", keys: ONE_CYCLE },
    TypeKeys { section: "scheduler", name: "LRRangeTest", keys: LR_RANGE_TEST },
];

/// Types of DeepSpeed, PyTorch and Transformers that are refused for now and whose keys are not known.
pub(crate) static TYPES_NOT_YET: &[(&str, &[&str])] = &[
    ("optimizer", &["MuAdam", "MuAdamW", "MuSGD", "ASGD", "LBFGS", "Rprop", "SparseAdam"]),
    (
        "scheduler",
        &[
            "StepLR",
            "MultiStepLR",
            "ConstantLR",
            "LinearLR",
            "ExponentialLR",
            "PolynomialLR",
            "CosineAnnealingLR",
            "CosineAnnealingWarmRestarts",
            "CyclicLR",
            "OneCycleLR",
            "ReduceLROnPlateau",
            "LambdaLR",
            "MultiplicativeLR",
            "SequentialLR",
            "ChainedScheduler",
        ],
    ),
];

static ADAM: &[Key] = keys! {
    "optimizer.params.adam_w_mode", Bool, "true", Honoured, "decay apart from the gradient; false: L2 in the gradient (AdamW ignores it)";
    "optimizer.params.amsgrad", Bool, "false", Honoured, "divides by the largest second moment so far";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", Honoured, "divides the moments by 1 - beta^step";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.fp32_optimizer_states", Bool, "true", Honoured, "false: optimizer.moments is bf16 unless it is given";
    "optimizer.params.fused", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.torch_adam", Bool, "false", NoEffect, "PyTorch's own, where the default decay of AdamW is 0.01";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static SGD: &[Key] = keys! {
    "optimizer.params.dampening", BELOW_ONE, "0.0", Honoured, "share of the gradient kept out of the momentum";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.fused", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.momentum", NOT_NEGATIVE, "0.0", Honoured, "share of the last update that is kept";
    "optimizer.params.nesterov", Bool, "false", Honoured, "looks ahead along the momentum";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static ADAGRAD: &[Key] = keys! {
    "optimizer.params.eps", NOT_NEGATIVE, "1e-10", Honoured, "added to the root of the sum of squares";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.initial_accumulator_value", NOT_NEGATIVE, "0.0", Honoured, "first value of the sum of squares";
    "optimizer.params.lr", NOT_NEGATIVE, "0.01", Honoured, "learning rate";
    "optimizer.params.lr_decay", NOT_NEGATIVE, "0.0", Honoured, "the rate is divided by 1 + (step - 1) lr_decay";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static RMSPROP: &[Key] = keys! {
    "optimizer.params.alpha", BELOW_ONE, "0.99", Honoured, "decay of the mean square";
    "optimizer.params.centered", Bool, "false", Honoured, "divides by the root of the variance";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the mean square";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.01", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.momentum", NOT_NEGATIVE, "0.0", Honoured, "share of the last update that is kept";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static ADADELTA: &[Key] = keys! {
    "optimizer.params.eps", NOT_NEGATIVE, "1e-6", Honoured, "added to both mean squares";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "1.0", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.rho", BELOW_ONE, "0.9", Honoured, "decay of the two mean squares";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static ADAMAX: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the first moment and of the largest gradient";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the size of each gradient";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.002", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static NADAM: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the two moments";
    "optimizer.params.decoupled_weight_decay", Bool, "false", Honoured, "decay apart from the gradient";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.002", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.momentum_decay", NOT_NEGATIVE, "0.004", Honoured, "how fast the momentum rises to beta1";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static RADAM: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the two moments";
    "optimizer.params.decoupled_weight_decay", Bool, "false", Honoured, "decay apart from the gradient";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static LION: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "share of the momentum in the step, and what is kept of it";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static LAMB: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", Honoured, "divides the moments by 1 - beta^step";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.max_coeff", NOT_NEGATIVE, "10.0", Honoured, "highest ratio of the norms of weight and update";
    "optimizer.params.min_coeff", NOT_NEGATIVE, "0.01", Honoured, "lowest ratio";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "part of the update, outside optimizer.no_decay";
};

static MUON: &[Key] = keys! {
    "optimizer.params.adam_lr", RATE_OR_OPTIMIZERS, "null", Honoured, "rate of AdamW for embeddings, head, norms and biases; null: lr";
    "optimizer.params.adjust_lr_fn", Names(&["original", "match_rms_adamw"]), "\"original\"", Honoured, "rate times sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns))";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.95]", Honoured, "decay of the two moments of AdamW";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-10", Honoured, "added to the root of the second moment of AdamW";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.momentum", BELOW_ONE, "0.95", Honoured, "share of the momentum that is kept";
    "optimizer.params.muon_lr", RATE_OR_OPTIMIZERS, "null", Honoured, "rate of hidden matrices; null: lr";
    "optimizer.params.nesterov", Bool, "true", Honoured, "looks ahead along the momentum";
    "optimizer.params.ns_method", Names(&["gram", "standard"]), "\"gram\"", NoEffect, "the order of the products, not their result";
    "optimizer.params.ns_steps", Int { min: 1, max: 100 }, "5", Honoured, "Newton-Schulz steps";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static ADAFACTOR: &[Key] = keys! {
    "optimizer.params.beta2_decay", Number(Unbounded, Included(0.0)), "-0.8", Honoured, "new squares enter with the share step^beta2_decay";
    "optimizer.params.d", Number(Included(1.0), Unbounded), "1.0", Honoured, "largest root mean square of the update";
    "optimizer.params.eps", Pair(&RATE_OR_OPTIMIZERS), "[null, 0.001]", Honoured, "floor of the root of the second moment (null: the last digit of 1), and of the weights' root mean square";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.01", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static SCHEDULE_FREE: &[Key] = keys! {
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "place of the weights between steps and average; decay of the second moment";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.0025", Honoured, "learning rate";
    "optimizer.params.warmup_steps", COUNT, "0", Honoured, "steps over which the rate rises";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static CUSTOM: &[Key] = keys! {
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "what the program's own rule does with it, outside optimizer.no_decay";
};

static WARMUP: &[Key] = keys! {
    "scheduler.params.last_batch_iteration", LAST_STEP, "-1", Honoured, "steps of the schedule, less one, that were before the run; the first step then has the optimizer's own rate";
    "scheduler.params.warmup_max_lr", RATES_OR_OPTIMIZERS, "null", Honoured, "rate after the warm-up, a list: one for each group of weights; null: the optimizer's";
    "scheduler.params.warmup_min_lr", RATES, "0.0", Honoured, "first rate";
    "scheduler.params.warmup_num_steps", POSITIVE, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", Text, "\"log\"", Honoured, "curve of the warm-up, log or linear; DeepSpeed takes any other word for log";
};

static WARMUP_DECAY: &[Key] = keys! {
    "scheduler.params.last_batch_iteration", LAST_STEP, "-1", Honoured, "steps of the schedule, less one, that were before the run; the first step then has the optimizer's own rate";
    "scheduler.params.total_num_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.warmup_max_lr", RATES_OR_OPTIMIZERS, "0.001", Honoured, "rate after the warm-up, a list: one for each group of weights; null: the optimizer's";
    "scheduler.params.warmup_min_lr", RATES, "0.0", Honoured, "first and last rate";
    "scheduler.params.warmup_num_steps", POSITIVE, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", Text, "\"log\"", Honoured, "curve of the warm-up, log or linear; DeepSpeed takes any other word for log";
};

static WARMUP_COSINE: &[Key] = keys! {
    "scheduler.params.cos_min_ratio", SHARE, "0.0001", Honoured, "last rate, as a share of the optimizer's";
    "scheduler.params.last_batch_iteration", LAST_STEP, "-1", Honoured, "steps of the schedule, less one, that were before the run; the first step then has the optimizer's own rate";
    "scheduler.params.total_num_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.warmup_min_ratio", SHARE, "0.0", Honoured, "second rate, as a share of the optimizer's; the first is 0";
    "scheduler.params.warmup_num_steps", POSITIVE, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", Text, "\"log\"", Honoured, "curve of the warm-up, log or linear; DeepSpeed takes any other word for log";
};

static CONSTANT: &[Key] = keys! {
    "scheduler.params.num_training_steps", COUNT, "null", NoEffect, "the rate does not change";
    "scheduler.params.num_warmup_steps", COUNT, "0", NoEffect, "constant_with_warmup has one";
};

static CONSTANT_WITH_WARMUP: &[Key] = keys! {
    "scheduler.params.num_training_steps", COUNT, "null", NoEffect, "the rate does not change after the warm-up";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
};

static LINEAR: &[Key] = keys! {
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
};

static COSINE: &[Key] = keys! {
    "scheduler.params.num_cycles", NOT_NEGATIVE, "0.5", Honoured, "periods of the cosine; 0.5 ends at 0";
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
};

static COSINE_WITH_RESTARTS: &[Key] = keys! {
    "scheduler.params.num_cycles", POSITIVE, "1", Honoured, "decays, each from the full rate to 0";
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
};

static COSINE_WITH_MIN_LR: &[Key] = keys! {
    "scheduler.params.min_lr", NOT_NEGATIVE, "null", Honoured, "lowest rate of the decay; this or min_lr_rate is given";
    "scheduler.params.min_lr_rate", NOT_NEGATIVE, "null", Honoured, "the same as a share of the optimizer's rate";
    "scheduler.params.num_cycles", NOT_NEGATIVE, "0.5", Honoured, "periods of the cosine; 0.5 ends at the lowest rate";
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
};

static POLYNOMIAL: &[Key] = keys! {
    "scheduler.params.lr_end", NOT_NEGATIVE, "1e-7", Honoured, "last rate; below the optimizer's";
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
    "scheduler.params.power", NOT_NEGATIVE, "1.0", Honoured, "power of what is left of the decay; 1: a line";
};

static INVERSE_SQRT: &[Key] = keys! {
    "scheduler.params.num_training_steps", COUNT, "null", NoEffect, "the decay has no end";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
    "scheduler.params.timescale", POSITIVE, "null", Honoured, "steps after which the rate has fallen by the root of 2; null: those of the warm-up, else 10000";
};

static WARMUP_STABLE_DECAY: &[Key] = keys! {
    "scheduler.params.decay_type", CURVE, "\"cosine\"", Honoured, "curve of the decay";
    "scheduler.params.min_lr_ratio", SHARE, "0.0", Honoured, "first and last rate, as a share of the optimizer's";
    "scheduler.params.num_cycles", NOT_NEGATIVE, "0.5", Honoured, "periods of a cosine decay; 0.5 ends at the lowest rate";
    "scheduler.params.num_decay_steps", COUNT, "null", Honoured, "steps of the decay; must be given";
    "scheduler.params.num_stable_steps", COUNT, "null", Honoured, "steps at the full rate; null: what warm-up and decay leave of the total";
    "scheduler.params.num_training_steps", COUNT, "null", Honoured, "steps of all three parts; null: the run's";
    "scheduler.params.num_warmup_steps", COUNT, "0", Honoured, "steps of the warm-up";
    "scheduler.params.warmup_type", CURVE, "\"linear\"", Honoured, "curve of the warm-up";
};

static REDUCE_LR_ON_PLATEAU: &[Key] = keys! {
    "scheduler.params.cooldown", COUNT, "0", Honoured, "evaluations after a reduction that do not count";
    "scheduler.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "a reduction by no more than this is left out";
    "scheduler.params.factor", BELOW_ONE, "0.1", Honoured, "what the rate is multiplied by";
    "scheduler.params.min_lr", NOT_NEGATIVE, "0.0", Honoured, "lowest rate";
    "scheduler.params.mode", Names(&["min"]), "\"min\"", NoEffect, "the validation loss must fall";
    "scheduler.params.patience", COUNT, "10", Honoured, "evaluations without gain that are borne; the next one reduces the rate";
    "scheduler.params.threshold", NOT_NEGATIVE, "0.0001", Honoured, "smallest gain that counts";
    "scheduler.params.threshold_mode", Names(&["rel", "abs"]), "\"rel\"", Honoured, "whether the threshold is a share of the best loss or an amount";
};

static ONE_CYCLE: &[Key] = keys! {
    "scheduler.params.cycle_first_stair_count", COUNT, "0", Honoured, "stairs on the way up; 0: a line";
    "scheduler.params.cycle_first_step_size", POSITIVE, "2000", Honoured, "steps up";
    "scheduler.params.cycle_max_lr", RATES, "null", Honoured, "rate at the top; must be given";
    "scheduler.params.cycle_max_mom", MOMENTA, "0.9", Honoured, "first beta at both ends of the cycle";
    "scheduler.params.cycle_min_lr", RATES, "null", Honoured, "rate at both ends of the cycle; must be given";
    "scheduler.params.cycle_min_mom", MOMENTA, "0.8", Honoured, "first beta at the top, and of the very first step";
    "scheduler.params.cycle_momentum", Bool, "true", Honoured, "the optimizer's first beta follows the cycle, its second is 0.99";
    "scheduler.params.cycle_second_stair_count", COUNT, "null", Honoured, "stairs on the way down; null: as many as up";
    "scheduler.params.cycle_second_step_size", COUNT, "null", Honoured, "steps down; null: as many as up";
    "scheduler.params.decay_lr_rate", NOT_NEGATIVE, "0.0", Honoured, "after the cycle the rate is divided by 1 + this x intervals";
    "scheduler.params.decay_mom_rate", NOT_NEGATIVE, "0.0", Honoured, "after the cycle the first beta is multiplied by 1 + this x intervals, up to 0.999";
    "scheduler.params.decay_step_size", COUNT, "0", Honoured, "steps of an interval of the decay; 0: no decay";
    "scheduler.params.last_batch_iteration", LAST_STEP, "-1", Honoured, "steps of the schedule, less one, that were before the run; the first step then has the optimizer's own rate";
};

static LR_RANGE_TEST: &[Key] = keys! {
    "scheduler.params.last_batch_iteration", LAST_STEP, "-1", Honoured, "steps of the schedule, less one, that were before the run; the first step then has the optimizer's own rate";
    "scheduler.params.lr_range_test_min_lr", RATES, "0.001", Honoured, "first rate";
    "scheduler.params.lr_range_test_staircase", Bool, "false", Honoured, "the rate rises between intervals alone";
    "scheduler.params.lr_range_test_step_rate", NOT_NEGATIVE, "1.0", Honoured, "what an interval adds, as a multiple of the first rate";
    "scheduler.params.lr_range_test_step_size", POSITIVE, "2000", Honoured, "steps of an interval";
};

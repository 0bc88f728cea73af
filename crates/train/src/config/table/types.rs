//! The keys of `optimizer.params` and `scheduler.params`, which depend on the type beside them.

use super::{ANY_INT, BELOW_ONE, COUNT, Key, NOT_NEGATIVE, NOT_YET, POSITIVE, SHARE, keys};
use crate::config::keys::Kind::{Bool, Names, Null, OneOf, Pair};
use crate::config::keys::Status::{Honoured, NoEffect};
use crate::config::keys::{Kind, TypeKeys};

const RATE_OR_OPTIMIZERS: Kind = OneOf(&[NOT_NEGATIVE, Null]);
const WARMUP_TYPE: Kind = Names(&["log", "linear"]);

/// Optimizers and schedules that are built, by the name of their type.
pub(crate) static TYPES: &[TypeKeys] = &[
    TypeKeys { section: "optimizer", name: "Adam", keys: ADAM },
    TypeKeys { section: "optimizer", name: "AdamW", keys: ADAM },
    TypeKeys { section: "optimizer", name: "SGD", keys: SGD },
    TypeKeys { section: "scheduler", name: "WarmupLR", keys: WARMUP },
    TypeKeys { section: "scheduler", name: "WarmupDecayLR", keys: WARMUP_DECAY },
    TypeKeys { section: "scheduler", name: "WarmupCosineLR", keys: WARMUP_COSINE },
    TypeKeys { section: "scheduler", name: "constant", keys: CONSTANT },
    TypeKeys { section: "scheduler", name: "constant_with_warmup", keys: CONSTANT_WITH_WARMUP },
    TypeKeys { section: "scheduler", name: "linear", keys: LINEAR },
    TypeKeys { section: "scheduler", name: "cosine", keys: COSINE },
];

/// Types of DeepSpeed, PyTorch and Transformers that are refused for now.
pub(crate) static TYPES_NOT_YET: &[(&str, &[&str])] = &[
    (
        "optimizer",
        &[
            "Adagrad",
            "Lamb",
            "OneBitAdam",
            "OneBitLamb",
            "ZeroOneAdam",
            "MuAdam",
            "MuAdamW",
            "MuSGD",
            "Lion",
            "Muon",
            "Adadelta",
            "Adafactor",
            "Adamax",
            "ASGD",
            "LBFGS",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
            "SparseAdam",
        ],
    ),
    (
        "scheduler",
        &[
            "OneCycle",
            "LRRangeTest",
            "cosine_with_restarts",
            "polynomial",
            "inverse_sqrt",
            "cosine_with_min_lr",
            "warmup_stable_decay",
            "reduce_lr_on_plateau",
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
    "optimizer.params.amsgrad", Bool, "false", NOT_YET, "divides by the largest second moment so far";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", Honoured, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", Honoured, "divides the moments by 1 - beta^step";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", Honoured, "added to the root of the second moment";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.fp32_optimizer_states", Bool, "true", NOT_YET, "false: moments in bf16";
    "optimizer.params.fused", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.torch_adam", Bool, "false", NoEffect, "PyTorch's own, where the default decay of AdamW is 0.01";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "decay of every trained weight outside optimizer.no_decay";
};

static SGD: &[Key] = keys! {
    "optimizer.params.dampening", BELOW_ONE, "0.0", NOT_YET, "share of the gradient kept out of the momentum";
    "optimizer.params.foreach", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.fused", OneOf(&[Bool, Null]), "null", NoEffect, "which PyTorch kernel";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", Honoured, "learning rate";
    "optimizer.params.maximize", Bool, "false", NOT_YET, "climbs";
    "optimizer.params.momentum", NOT_NEGATIVE, "0.0", Honoured, "share of the last update that is kept";
    "optimizer.params.nesterov", Bool, "false", Honoured, "looks ahead along the momentum";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", Honoured, "L2 in the gradient, outside optimizer.no_decay";
};

static WARMUP: &[Key] = keys! {
    "scheduler.params.last_batch_iteration", ANY_INT, "-1", NOT_YET, "where the count begins";
    "scheduler.params.warmup_max_lr", RATE_OR_OPTIMIZERS, "null", Honoured, "rate after the warm-up; null: the optimizer's";
    "scheduler.params.warmup_min_lr", NOT_NEGATIVE, "0.0", Honoured, "first rate";
    "scheduler.params.warmup_num_steps", POSITIVE, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", WARMUP_TYPE, "\"log\"", Honoured, "curve of the warm-up";
};

static WARMUP_DECAY: &[Key] = keys! {
    "scheduler.params.last_batch_iteration", ANY_INT, "-1", NOT_YET, "where the count begins";
    "scheduler.params.total_num_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.warmup_max_lr", RATE_OR_OPTIMIZERS, "0.001", Honoured, "rate after the warm-up; null: the optimizer's";
    "scheduler.params.warmup_min_lr", NOT_NEGATIVE, "0.0", Honoured, "first and last rate";
    "scheduler.params.warmup_num_steps", POSITIVE, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", WARMUP_TYPE, "\"log\"", Honoured, "curve of the warm-up";
};

static WARMUP_COSINE: &[Key] = keys! {
    "scheduler.params.cos_min_ratio", SHARE, "0.0001", Honoured, "last rate, as a share of the optimizer's";
    "scheduler.params.last_batch_iteration", ANY_INT, "-1", NOT_YET, "where the count begins";
    "scheduler.params.total_num_steps", COUNT, "null", Honoured, "steps of warm-up and decay; null: the run's";
    "scheduler.params.warmup_min_ratio", SHARE, "0.0", Honoured, "second rate, as a share of the optimizer's; the first is 0";
    "scheduler.params.warmup_num_steps", COUNT, "1000", Honoured, "steps of the warm-up; fewer than 2 count as 2";
    "scheduler.params.warmup_type", WARMUP_TYPE, "\"log\"", Honoured, "curve of the warm-up";
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

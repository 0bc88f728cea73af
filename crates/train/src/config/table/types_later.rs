//! Types of optimizer that are refused for now: their keys are checked, `plan` shows them.

use super::{BELOW_ONE, COUNT, Key, NOT_NEGATIVE, NOT_YET, OPEN as ANY_KEYS, POSITIVE, keys};
use crate::config::keys::Kind::{Bool, Names, Pair};
use crate::config::keys::Status::Honoured;
use crate::config::keys::{Kind, TypeKeys};

const BACKEND: Kind = Names(&["nccl", "mpi", "hccl", "compressed"]);

/// DeepSpeed's optimizers that compress what ranks exchange.
pub(crate) static TYPES: &[TypeKeys] = &[
    TypeKeys { section: "optimizer", name: "OneBitAdam", keys: ONE_BIT_ADAM },
    TypeKeys { section: "optimizer", name: "ZeroOneAdam", keys: ZERO_ONE_ADAM },
    TypeKeys { section: "optimizer", name: "OneBitLamb", keys: ONE_BIT_LAMB },
];

/// A type of another library, whose keys are not known here.
pub(crate) fn open(section: &'static str, name: &'static str) -> TypeKeys {
    let keys = if section == "optimizer" { OPEN_OPTIMIZER } else { OPEN_SCHEDULER };
    TypeKeys { section, name, keys }
}

static OPEN_OPTIMIZER: &[Key] = keys! {
    "optimizer.params", ANY_KEYS, "{}", Honoured, "settings of the rule, which are not checked";
};

static OPEN_SCHEDULER: &[Key] = keys! {
    "scheduler.params", ANY_KEYS, "{}", Honoured, "settings of the schedule, which are not checked";
};

static ONE_BIT_ADAM: &[Key] = keys! {
    "optimizer.params.amsgrad", Bool, "false", NOT_YET, "divides by the largest second moment so far";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", NOT_YET, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", NOT_YET, "divides the moments by 1 - beta^step";
    "optimizer.params.comm_backend_name", BACKEND, "\"nccl\"", NOT_YET, "library that ranks talk through";
    "optimizer.params.cuda_aware", Bool, "false", NOT_YET, "MPI reads device memory";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", NOT_YET, "added to the root of the second moment";
    "optimizer.params.freeze_step", COUNT, "100000", NOT_YET, "steps before momentum is sent in one bit";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", NOT_YET, "learning rate";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", NOT_YET, "decay of the weights";
};

static ZERO_ONE_ADAM: &[Key] = keys! {
    "optimizer.params.amsgrad", Bool, "false", NOT_YET, "divides by the largest second moment so far";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", NOT_YET, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", NOT_YET, "divides the moments by 1 - beta^step";
    "optimizer.params.comm_backend_name", BACKEND, "\"nccl\"", NOT_YET, "library that ranks talk through";
    "optimizer.params.cuda_aware", Bool, "false", NOT_YET, "MPI reads device memory";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", NOT_YET, "added to the root of the second moment";
    "optimizer.params.local_step_clipper", POSITIVE, "16", NOT_YET, "most steps between exchanges";
    "optimizer.params.local_step_scaler", POSITIVE, "32678", NOT_YET, "steps after which their interval doubles";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", NOT_YET, "learning rate";
    "optimizer.params.var_freeze_step", COUNT, "100000", NOT_YET, "steps before the second moment stays as it is";
    "optimizer.params.var_update_scaler", POSITIVE, "16", NOT_YET, "updates of it after which their interval doubles";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", NOT_YET, "decay of the weights";
};

static ONE_BIT_LAMB: &[Key] = keys! {
    "optimizer.params.amsgrad", Bool, "false", NOT_YET, "divides by the largest second moment so far";
    "optimizer.params.betas", Pair(&BELOW_ONE), "[0.9, 0.999]", NOT_YET, "decay of the two moments";
    "optimizer.params.bias_correction", Bool, "true", NOT_YET, "divides the moments by 1 - beta^step";
    "optimizer.params.coeff_beta", BELOW_ONE, "0.9", NOT_YET, "decay of the average of the trust ratio";
    "optimizer.params.comm_backend_name", BACKEND, "\"nccl\"", NOT_YET, "library that ranks talk through";
    "optimizer.params.cuda_aware", Bool, "false", NOT_YET, "MPI reads device memory";
    "optimizer.params.eps", NOT_NEGATIVE, "1e-8", NOT_YET, "added to the root of the second moment";
    "optimizer.params.factor_max", NOT_NEGATIVE, "4.0", NOT_YET, "largest factor of the frozen second moment";
    "optimizer.params.factor_min", NOT_NEGATIVE, "0.5", NOT_YET, "smallest factor of it";
    "optimizer.params.factor_threshold", NOT_NEGATIVE, "0.1", NOT_YET, "most that the factor changes in a step";
    "optimizer.params.freeze_step", COUNT, "100000", NOT_YET, "steps before momentum is sent in one bit";
    "optimizer.params.lr", NOT_NEGATIVE, "0.001", NOT_YET, "learning rate";
    "optimizer.params.max_coeff", NOT_NEGATIVE, "10.0", NOT_YET, "largest trust ratio";
    "optimizer.params.min_coeff", NOT_NEGATIVE, "0.01", NOT_YET, "smallest trust ratio";
    "optimizer.params.weight_decay", NOT_NEGATIVE, "0.0", NOT_YET, "decay of the weights";
};

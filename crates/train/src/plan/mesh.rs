//! How ranks are divided: each axis of the mesh that a run file asks for, and what is left for data.
//!
//! DeepSpeed computes batches with the data-parallel ranks alone: all ranks over those that share one sequence, one layer's
//! matrices or the layers of one model.

use crate::config::{ConfigError, RunConfig, tensor_ranks};
use std::collections::BTreeMap;

/// Ranks along each axis; their product is the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Replicas, each with samples of its own.
    pub data: u64,
    /// Ranks that share one sequence.
    pub sequence: u64,
    /// Ranks that split each matrix.
    pub tensor: u64,
    /// Stages that the layers are cut into.
    pub pipeline: u64,
}

/// Keys that say how ranks are divided.
const AXES: [&str; 5] = [
    "data_parallel_size",
    "sequence_parallel_size",
    "tensor_parallel.autotp_size",
    "tensor_parallel.tp.tp_size",
    "pipeline.stages",
];

impl Mesh {
    /// Divides `ranks` as the run file says.
    ///
    /// # Errors
    /// They are not a multiple of what one replica takes, or other than `data_parallel_size` replicas come out.
    pub fn of(config: &RunConfig, ranks: u64) -> Result<Self, ConfigError> {
        let number = |path: &str| config.value(path).and_then(|value| value.as_u64()).unwrap_or(1).max(1);
        let sequence = number("sequence_parallel_size");
        let tensor = tensor_ranks(number);
        let pipeline = number("pipeline.stages");
        let replica = sequence.saturating_mul(tensor).saturating_mul(pipeline);
        if !ranks.is_multiple_of(replica) {
            return Err(config.error_of(&AXES, format!(
                "{ranks} ranks cannot be divided into sequence_parallel_size {sequence} x tensor_parallel.autotp_size \
                 {tensor} x pipeline.stages {pipeline}; --ranks must be a multiple of {replica}"
            )));
        }
        let mesh = Self { data: ranks / replica, sequence, tensor, pipeline };
        match config.value("data_parallel_size").and_then(|value| value.as_u64()) {
            Some(wanted) if wanted != mesh.data => Err(config.error_of(&AXES, format!(
                "data_parallel_size is {wanted}, but {ranks} ranks over sequence {sequence} x tensor {tensor} x pipeline \
                 {pipeline} are {} replicas; make --ranks {}",
                mesh.data,
                wanted.saturating_mul(replica)
            ))),
            _ => Ok(mesh),
        }
    }

    /// Whether ranks share nothing but data.
    pub fn is_data_alone(&self) -> bool {
        self.sequence * self.tensor * self.pipeline == 1
    }

    /// The axes by name: data, and every other one along which there is more than one rank.
    pub fn axes(&self) -> BTreeMap<&'static str, u64> {
        let others = [("sequence", self.sequence), ("tensor", self.tensor), ("pipeline", self.pipeline)];
        std::iter::once(("data", self.data)).chain(others.into_iter().filter(|(_, size)| *size > 1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mesh(file: Value, ranks: u64) -> Result<Mesh, String> {
        Mesh::of(&RunConfig::from_value(file, "r.json").unwrap(), ranks).map_err(|error| error.to_string())
    }

    #[test]
    fn data_ranks_are_what_sequence_tensor_and_pipeline_leave() {
        assert_eq!(mesh(json!({}), 4), Ok(Mesh { data: 4, sequence: 1, tensor: 1, pipeline: 1 }));
        let file = json!({"sequence_parallel_size": 2, "tensor_parallel": {"autotp_size": 4},
                          "pipeline": {"stages": 3}, "data_parallel_size": 5});
        assert_eq!(mesh(file, 120), Ok(Mesh { data: 5, sequence: 2, tensor: 4, pipeline: 3 }));
    }

    #[test]
    fn ranks_that_do_not_divide_are_refused_with_the_number_that_would() {
        assert_eq!(
            mesh(json!({"sequence_parallel_size": 4}), 6).unwrap_err(),
            "r.json: 6 ranks cannot be divided into sequence_parallel_size 4 x tensor_parallel.autotp_size 1 x \
             pipeline.stages 1; --ranks must be a multiple of 4"
        );
        assert_eq!(
            mesh(json!({"sequence_parallel_size": 2, "data_parallel_size": 2}), 8).unwrap_err(),
            "r.json: data_parallel_size is 2, but 8 ranks over sequence 2 x tensor 1 x pipeline 1 are 4 replicas; \
             make --ranks 4"
        );
    }
}

//! A model is a list of blocks.
//!
//! The block is at once the unit of reading, of pipeline cut, of ZeRO gather, of recompute and of checkpoint keys. A block
//! names parameters by id and regions by name; it knows nothing of ranks.

use crate::families::ModelConfig;
use crate::param::{Dim, Init, ParamSpec};
use crate::task::Labels;
use ops::{Cx, Flow, Linear, ParamId, Result, WeightLayout};

/// One block: hidden states in, hidden states out.
pub trait Block: Send + Sync {
    /// Runs forward on the tape; backward comes from the ops.
    fn forward(&self, cx: &mut Cx<'_>, flow: Flow) -> Result<Flow>;
}

/// A block in its place.
pub struct NamedBlock {
    /// As the Hugging Face names have it: `transformer.h.0`.
    pub name: String,
    /// The parameters it reads, in order of declaration. A tied one is listed by every block that reads it.
    pub params: Vec<ParamId>,
    /// What it does.
    pub block: Box<dyn Block>,
}

/// A model: shapes only, nothing is allocated.
pub struct Model {
    /// All parameters; a [`ParamId`] is an index here.
    pub params: Vec<ParamSpec>,
    /// In the order they run. The first makes hidden states, the last one is the head.
    pub blocks: Vec<NamedBlock>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens a row may have, where the family has a limit.
    pub max_positions: Option<usize>,
    /// The configuration to save with the weights; a model of a user's own may have none.
    pub config: Option<ModelConfig>,
}

impl Model {
    /// Numbers that are trained or loaded: computed tables do not count.
    pub fn num_parameters(&self) -> usize {
        self.params.iter().filter(|spec| !spec.is_table()).map(ParamSpec::elements).sum()
    }

    /// The classes, if it is a classifier.
    pub fn labels(&self) -> Option<&Labels> {
        self.config.as_ref().and_then(|config| config.task.labels())
    }

    /// The id of a parameter.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.params.iter().position(|spec| spec.name == name).map(|index| ParamId(index as u32))
    }

    /// All ids with their specifications.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &ParamSpec)> {
        self.params.iter().enumerate().map(|(index, spec)| (ParamId(index as u32), spec))
    }
}

/// Collects parameters and blocks while a family describes itself.
#[derive(Default)]
pub struct ModelBuilder {
    params: Vec<ParamSpec>,
    blocks: Vec<NamedBlock>,
    current: Vec<ParamId>,
}

impl ModelBuilder {
    /// Declares a parameter of the current block.
    pub fn param(&mut self, name: impl Into<String>, dims: impl Into<Vec<Dim>>, init: Init) -> ParamId {
        let id = ParamId(self.params.len() as u32);
        self.params.push(ParamSpec { name: name.into(), dims: dims.into(), init });
        self.current.push(id);
        id
    }

    /// The current block reads a parameter that another one declared: tied weights, shared tables.
    pub fn share(&mut self, id: ParamId) -> ParamId {
        self.current.push(id);
        id
    }

    /// Declares `PREFIX.weight` in the given layout and, if asked, `PREFIX.bias`.
    pub fn linear(&mut self, prefix: &str, input: Dim, output: Dim, spec: LinearSpec) -> Linear {
        let dims = match spec.layout {
            WeightLayout::OutIn => [output.clone(), input],
            WeightLayout::InOut => [input, output.clone()],
        };
        let weight = self.param(format!("{prefix}.weight"), dims, Init::Normal { std: spec.std });
        let bias = spec.bias.then(|| self.param(format!("{prefix}.bias"), [output], Init::Constant(0.0)));
        Linear { weight, bias, layout: spec.layout }
    }

    /// Ends the current block.
    pub fn block(&mut self, name: impl Into<String>, block: impl Block + 'static) {
        let params = std::mem::take(&mut self.current);
        self.blocks.push(NamedBlock { name: name.into(), params, block: Box::new(block) });
    }

    /// The model.
    ///
    /// # Panics
    /// If a parameter was declared after the last block: nobody would gather it.
    pub fn build(self, vocab_size: usize, max_positions: Option<usize>, config: Option<ModelConfig>) -> Model {
        assert!(self.current.is_empty(), "ModelBuilder::build: parameters after the last block");
        Model { params: self.params, blocks: self.blocks, vocab_size, max_positions, config }
    }
}

/// How a family makes its matrices.
#[derive(Clone, Copy, Debug)]
pub struct LinearSpec {
    /// Orientation in the file.
    pub layout: WeightLayout,
    /// Whether there is a bias.
    pub bias: bool,
    /// Standard deviation at the start.
    pub std: f32,
}

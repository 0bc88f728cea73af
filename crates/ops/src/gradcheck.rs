//! Gradients against finite differences, for our ops and for users' own.
//!
//! A directional derivative: for a random direction `d`, the slope of `f(x + h d)` at 0, by the five-point rule, is compared
//! with `<gradient, d>`. One number checks every element of a gradient at once, and in f32 the rule's error (`h^4`) and
//! rounding (`1e-7 / h`) leave about 1e-4 of the gradient's norm.

use crate::{Batch, Cx, Document, Env, HeadRequest, ParamId, ParamStore, Params, Result, Role, Single, Var};
use tensor::rng::Stream;
use tensor::{DType, MemoryKind, Queue, Shape, Tensor};

/// What an op is tried on. Inputs and weights are standard normal numbers.
pub struct Case<'a> {
    /// Shapes of the inputs.
    pub inputs: &'a [Shape],
    /// Shapes of the weights.
    pub params: &'a [Shape],
    /// Weights that are not trained, such as tables: shape and values.
    pub constants: &'a [(Shape, Vec<f32>)],
    /// Token ids, one a token.
    pub ids: &'a [u32],
    /// Targets, one a token.
    pub targets: &'a [i32],
    /// Lengths of the documents; they cover the tokens.
    pub documents: &'a [usize],
    /// Whether dropout is on.
    pub dropout: bool,
    /// What the head is asked for.
    pub head: HeadRequest,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self {
            inputs: &[],
            params: &[],
            constants: &[],
            ids: &[],
            targets: &[],
            documents: &[],
            dropout: false,
            head: HeadRequest::AllLogits,
        }
    }
}

const H: f32 = 1.0 / 64.0;
/// The five-point rule: offsets in units of `H`, and weights over `12 H`.
const STENCIL: [(f32, f64); 4] = [(-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0)];

struct Check<'a, F> {
    queue: &'a Queue,
    case: &'a Case<'a>,
    op: F,
    batch: Batch,
}

/// The largest error over inputs and weights, relative to the norm of the gradient.
///
/// `op` gets the inputs and the ids of weights and constants (weights first) and returns one value.
pub fn worst_error<F>(queue: &Queue, case: &Case<'_>, op: F) -> Result<f64>
where
    F: Fn(&mut Cx<'_>, &[Var], &[ParamId]) -> Result<Var>,
{
    let documents: Vec<Document> = (case.documents.iter().enumerate())
        .map(|(i, &len)| Document { len, sample: i as u32, row_position: 0, position: 0 })
        .collect();
    let batch = Batch::new(queue, case.ids, Some(case.targets), &documents)?;
    let check = Check { queue, case, op, batch };
    let shapes: Vec<Shape> = case.inputs.iter().chain(case.params).copied().collect();
    let values: Vec<Vec<f32>> = (shapes.iter().enumerate()).map(|(i, shape)| normal(i, "value", *shape)).collect();
    let gradients = check.gradients(&values)?;
    let mut worst = 0.0f64;
    for (i, gradient) in gradients.iter().enumerate() {
        let direction = normal(i, "direction", shapes[i]);
        let mut slope = 0.0;
        for (offset, weight) in STENCIL {
            let mut moved = values.clone();
            moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += offset * H * d);
            slope += weight * check.value(&moved)?;
        }
        slope /= 12.0 * f64::from(H);
        let dot: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        worst = worst.max((slope - dot).abs() / norm.max(1e-3));
    }
    Ok(worst)
}

fn normal(index: usize, what: &str, shape: Shape) -> Vec<f32> {
    let stream = Stream::new(7, &format!("{what}{index}"));
    (0..shape.elements() as u64).map(|i| stream.normal(i) as f32).collect()
}

impl<F> Check<'_, F>
where
    F: Fn(&mut Cx<'_>, &[Var], &[ParamId]) -> Result<Var>,
{
    fn store(&self, values: &[Vec<f32>]) -> Result<(ParamStore, Vec<ParamId>)> {
        let mut store = ParamStore::default();
        let trained = self.case.params.iter().zip(values).map(|(shape, values)| (*shape, values, Role::Trained));
        let constants = self.case.constants.iter().map(|(shape, values)| (*shape, values, Role::Frozen));
        let mut ids = Vec::new();
        for (shape, values, role) in trained.chain(constants) {
            let id = store.declare("gradcheck", shape, role);
            store.set_weight(id, Some(self.queue.upload(MemoryKind::Weights, shape, values)?));
            ids.push(id);
        }
        store.allocate_gradients(self.queue)?;
        Ok((store, ids))
    }

    /// Runs the op; returns the output and a fixed random projection of it, and hands both to `then`.
    fn run<T>(
        &self,
        values: &[Vec<f32>],
        record: bool,
        then: impl FnOnce(&Env<'_>, Cx<'_>, &[Var], Var, Vec<f32>, &ParamStore) -> Result<T>,
    ) -> Result<T> {
        let num_inputs = self.case.inputs.len();
        let (store, ids) = self.store(&values[num_inputs..])?;
        let env = Env {
            queue: self.queue,
            params: &store,
            regions: &Single,
            batch: &self.batch,
            dtype: DType::F32,
            precision: None,
            head: self.case.head,
            dropout: self.case.dropout.then_some((1, 1)),
            cache: None,
            probe: None,
        };
        let mut cx = Cx::new(&env, 0, record);
        let mut vars = Vec::new();
        for (shape, values) in self.case.inputs.iter().zip(values) {
            vars.push(cx.input(self.queue.upload(MemoryKind::Activations, *shape, values)?, true));
        }
        let out = (self.op)(&mut cx, &vars, &ids)?;
        let projection = match self.case.head {
            HeadRequest::TokenLogprobs { seed: Some(seed), .. } => vec![seed; cx.value(out).shape().elements()],
            _ => normal(0, "projection", cx.value(out).shape()),
        };
        then(&env, cx, &vars, out, projection, &store)
    }

    fn value(&self, values: &[Vec<f32>]) -> Result<f64> {
        self.run(values, false, |env, cx, _, out, projection, _| {
            let out: Vec<f32> = env.queue.read(cx.value(out))?;
            Ok(out.iter().zip(&projection).map(|(x, p)| f64::from(*x) * f64::from(*p)).sum())
        })
    }

    fn gradients(&self, values: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        self.run(values, true, |env, cx, vars, out, projection, store| {
            let shape = cx.value(out).shape();
            let seed: Tensor = env.queue.upload(MemoryKind::Activations, shape, &projection)?;
            let (segment, _) = cx.finish(&[]);
            let inputs = segment.backward(env, vec![(out, seed)], vars)?.grads;
            let mut gradients = Vec::new();
            for (grad, shape) in inputs.into_iter().zip(self.case.inputs) {
                gradients.push(grad.map_or(Ok(vec![0.0; shape.elements()]), |grad| env.queue.read(&grad))?);
            }
            for (_, gradient) in store.gradients(env.queue)? {
                gradients.push(env.queue.read(&gradient)?);
            }
            debug_assert!(store.ids().all(|id| store.shape(id).elements() > 0));
            Ok(gradients)
        })
    }
}

//! Parameters by name, with named axes.
//!
//! A parameter keeps its Hugging Face name, shape and orientation everywhere. What its axes mean is said here, once; which
//! of them ranks split is said by one table elsewhere. A dimension may be composite: `[q | k | v]` heads of one width.

use ops::Part;
use std::ops::Range;
use std::sync::Arc;
use tensor::Shape;
use tensor::rng::Stream;

/// Rows of an embedding or a head.
pub const VOCAB: &str = "vocab";
/// Rows of a classification head.
pub const LABELS: &str = "labels";
/// Query heads.
pub const HEADS: &str = "heads";
/// Key-value heads.
pub const KV_HEADS: &str = "kv_heads";
/// Width of the feed-forward part.
pub const MLP: &str = "mlp";
/// Experts of a mixture.
pub const EXPERTS: &str = "experts";
/// The hidden size: never split by tensor parallelism.
pub const EMBED: &str = "embed";
/// Positions of a learned table.
pub const POSITIONS: &str = "positions";

/// One dimension: named parts in order, each a count along an axis, all times `unit` elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// (axis, count).
    pub parts: Vec<(&'static str, usize)>,
    /// Elements of one count: the head width; else 1.
    pub unit: usize,
}

impl Dim {
    /// `count` elements along one axis.
    pub fn new(axis: &'static str, count: usize) -> Self {
        Self { parts: vec![(axis, count)], unit: 1 }
    }

    /// Several parts side by side, each a number of heads of width `unit`.
    pub fn heads(parts: &[(&'static str, usize)], unit: usize) -> Self {
        Self { parts: parts.to_vec(), unit }
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, count)| count * self.unit).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements that belong to one share, as ranges in order.
    ///
    /// # Panics
    /// If the shares do not divide a part: plans check that before.
    fn share(&self, part_of: &dyn Fn(&str) -> Part) -> Vec<Range<usize>> {
        let mut start = 0;
        let mut ranges = Vec::new();
        for (axis, count) in &self.parts {
            let part = part_of(axis);
            assert!(count.is_multiple_of(part.count), "Dim::share: {count} {axis} on {} ranks", part.count);
            let len = count / part.count * self.unit;
            ranges.push(start + part.index * len..start + (part.index + 1) * len);
            start += count * self.unit;
        }
        ranges
    }
}

/// How a parameter starts out.
#[derive(Clone, Debug)]
pub enum Init {
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// The same number everywhere.
    Constant(f32),
    /// Fixed values that are computed, not trained and not saved: rotary tables.
    Table(Arc<[f32]>),
}

/// A parameter of a model: everything but its values.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// The Hugging Face name.
    pub name: String,
    /// The axes, outermost first, in the orientation of the Hugging Face file.
    pub dims: Vec<Dim>,
    /// Random or constant start.
    pub init: Init,
}

impl ParamSpec {
    /// The whole shape.
    pub fn shape(&self) -> Shape {
        Shape::new(&self.dims.iter().map(Dim::len).collect::<Vec<_>>())
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.shape().elements()
    }

    /// A computed table: in f32, neither trained nor saved.
    pub fn is_table(&self) -> bool {
        matches!(self.init, Init::Table(_))
    }

    /// The shape of one rank's share.
    pub fn share_shape(&self, part_of: &dyn Fn(&str) -> Part) -> Shape {
        let len = |dim: &Dim| dim.share(part_of).iter().map(Range::len).sum();
        Shape::new(&self.dims.iter().map(len).collect::<Vec<usize>>())
    }

    /// The global row-major index of every element of one rank's share, as runs in order.
    pub fn share_runs(&self, part_of: &dyn Fn(&str) -> Part) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = std::iter::once(0..1).collect();
        for dim in &self.dims {
            let (len, ranges) = (dim.len(), dim.share(part_of));
            let whole = ranges.iter().map(Range::len).sum::<usize>() == len;
            runs = if whole {
                runs.into_iter().map(|run| run.start * len..run.end * len).collect()
            } else {
                let each = runs.into_iter().flatten();
                each.flat_map(|i| ranges.iter().map(move |r| i * len + r.start..i * len + r.end)).collect()
            };
        }
        runs
    }

    /// Initial values of global elements `range`: a function of (seed, name, global index).
    pub fn initial(&self, seed: u64, range: Range<usize>) -> Vec<f32> {
        match &self.init {
            Init::Constant(value) => vec![*value; range.len()],
            Init::Table(values) => values[range].to_vec(),
            Init::Normal { std } => {
                let stream = Stream::new(seed, &self.name);
                range.map(|i| (f64::from(*std) * stream.normal(i as u64)) as f32).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fused() -> ParamSpec {
        // [q: 4 heads | k: 2 | v: 2] of width 3, by 5 inputs
        let out = Dim::heads(&[(HEADS, 4), (KV_HEADS, 2), (KV_HEADS, 2)], 3);
        ParamSpec { name: "w".into(), dims: vec![out, Dim::new(EMBED, 5)], init: Init::Normal { std: 1.0 } }
    }

    #[test]
    fn a_share_of_a_fused_projection_holds_its_own_heads_of_each_part() {
        let second_of_two = |axis: &str| match axis {
            HEADS | KV_HEADS => Part { index: 1, count: 2 },
            _ => Part::WHOLE,
        };
        let spec = fused();
        assert_eq!(spec.share_shape(&second_of_two).dims(), [12, 5]);
        // heads 2..4 of q, 1 of k, 1 of v: rows 6..12, 15..18, 21..24
        let rows: Vec<usize> = spec.share_runs(&second_of_two).into_iter().flatten().map(|i| i / 5).collect();
        let want: Vec<usize> = (6..12).chain(15..18).chain(21..24).flat_map(|row| [row; 5]).collect();
        assert_eq!(rows, want);
    }

    #[test]
    fn splitting_the_last_axis_takes_the_same_columns_of_every_row() {
        let mut spec = fused();
        spec.dims.reverse();
        let first_of_two = |axis: &str| if axis == EMBED { Part::WHOLE } else { Part { index: 0, count: 2 } };
        let runs: Vec<Range<usize>> = spec.share_runs(&first_of_two);
        assert_eq!(runs[..3], [0..6, 12..15, 18..21]);
        assert_eq!(runs[3], 24..30);
    }

    #[test]
    fn initial_values_do_not_depend_on_who_makes_them() {
        let spec = fused();
        let whole = spec.initial(42, 0..120);
        let parts: Vec<f32> = [0..7, 7..50, 50..120].into_iter().flat_map(|range| spec.initial(42, range)).collect();
        assert_eq!(whole, parts);
    }
}

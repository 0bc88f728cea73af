//! Who owns what: a function of model, rules and number of ranks alone.
//!
//! Each block is shared by itself, so that every rank gives and gets about as much in its turn. The elements of a block's
//! weights, in order, are cut into as many runs as there are ranks, at the multiples of 4,096 elements (counted from the
//! start of each weight) that come nearest to equal runs; norms, 8-bit moments and sums use the same unit, so that nothing
//! depends on where the cuts are. Shares may be uneven, and empty; nothing is padded.
//!
//! A weight whose rule needs all of it at once (`Granularity::Matrix`) goes whole to the rank that has least so far.

use comm::Flat;
use models::Model;
use ops::ParamId;
use optim::Granularity;
use std::cmp::Reverse;
use std::ops::Range;
use tensor::{SUM_SQUARES_UNIT, Tensor};

/// What data-parallel ranks share instead of keeping it whole: the stages of ZeRO.
/// Source: Rajbhandari et al. 2020, arXiv:1910.02054, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// 0: nothing. Gradients are summed, and every rank makes the whole update.
    Nothing,
    /// 1: optimizer state and masters.
    Optimizer,
    /// 2: the sums of gradients too.
    Gradients,
    /// 3: weights too.
    Parameters,
}

impl Stage {
    /// By the number that `zero_optimization.stage` has.
    pub fn numbered(stage: u64) -> Option<Self> {
        [Self::Nothing, Self::Optimizer, Self::Gradients, Self::Parameters].get(stage as usize).copied()
    }
}

/// Which elements of each weight a rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    ranks: usize,
    params: Vec<Shares>,
    /// By block: the weights it is home to, tables left out.
    homes: Vec<Vec<ParamId>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shares {
    /// The first block that lists it.
    home: usize,
    is_trained: bool,
    /// By rank; empty where the weight is a computed table, which every rank has whole.
    ranges: Vec<Range<usize>>,
}

impl Partition {
    /// `granularity`: that of the rule that trains a weight; none where it is frozen.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn new(model: &Model, granularity: &dyn Fn(ParamId) -> Option<Granularity>, ranks: usize) -> Self {
        assert!(ranks > 0, "Partition::new: no ranks");
        let home = |id: ParamId| model.blocks.iter().position(|block| block.params.contains(&id));
        let mut params: Vec<Shares> = (model.iter())
            .map(|(id, _)| {
                let home = home(id).expect("ModelBuilder::build: every parameter is in a block");
                Shares { home, is_trained: granularity(id).is_some(), ranges: Vec::new() }
            })
            .collect();
        let mut homes = vec![Vec::new(); model.blocks.len()];
        for (id, _) in model.iter().filter(|(_, spec)| !spec.is_table()) {
            homes[params[id.index()].home].push(id);
        }
        // What each rank owns so far.
        let mut loads = vec![0usize; ranks];
        for ids in &homes {
            let elements = |id: &ParamId| model.params[id.index()].elements();
            let is_whole = |id: &&ParamId| granularity(**id) == Some(Granularity::Matrix);
            let mut whole: Vec<ParamId> = ids.iter().filter(is_whole).copied().collect();
            whole.sort_by_key(|id| (Reverse(elements(id)), *id));
            for id in whole {
                let owner = (0..ranks).min_by_key(|&rank| (loads[rank], rank)).expect("there are ranks");
                let ranges = (0..ranks).map(|rank| if rank == owner { 0..elements(&id) } else { 0..0 });
                params[id.index()].ranges = ranges.collect();
                loads[owner] += elements(&id);
            }
            let cut: Vec<ParamId> = ids.iter().filter(|id| !is_whole(id)).copied().collect();
            let lens: Vec<usize> = cut.iter().map(elements).collect();
            for (id, ranges) in cut.iter().zip(cut_evenly(&lens, ranks)) {
                ranges.iter().zip(&mut loads).for_each(|(range, load)| *load += range.len());
                params[id.index()].ranges = ranges;
            }
        }
        Self { ranks, params, homes }
    }

    /// Ranks that share.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The elements of a weight that a rank owns; of a computed table none.
    pub fn share(&self, id: ParamId, rank: usize) -> Range<usize> {
        self.params[id.index()].ranges.get(rank).cloned().unwrap_or(0..0)
    }

    /// Elements of a weight; of a computed table none.
    pub fn elements_of(&self, id: ParamId) -> usize {
        self.params[id.index()].ranges.iter().map(Range::len).sum()
    }

    /// Weights of the model, computed tables among them.
    pub fn num_params(&self) -> usize {
        self.params.len()
    }

    /// Whether a weight is a computed table, which every rank has whole.
    pub fn is_table(&self, id: ParamId) -> bool {
        self.params[id.index()].ranges.is_empty()
    }

    /// Whether a weight has a gradient.
    pub fn is_trained(&self, id: ParamId) -> bool {
        self.params[id.index()].is_trained
    }

    /// Blocks of the model.
    pub fn num_blocks(&self) -> usize {
        self.homes.len()
    }

    /// The weights that a block is home to, frozen ones too, tables not.
    pub fn at_home(&self, block: usize) -> &[ParamId] {
        &self.homes[block]
    }

    /// The trained weights that a block is home to.
    pub fn trained_at_home(&self, block: usize) -> Vec<ParamId> {
        self.homes[block].iter().copied().filter(|id| self.is_trained(*id)).collect()
    }

    /// All weights in the order of the model, tables left out.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> {
        (0..self.params.len() as u32).map(ParamId).filter(|id| !self.is_table(*id))
    }

    /// Elements that a rank owns.
    pub fn elements(&self, rank: usize) -> usize {
        self.ids().map(|id| self.share(id, rank).len()).sum()
    }

    /// Elements of some weights that each rank owns.
    pub fn counts(&self, ids: &[ParamId]) -> Vec<usize> {
        (0..self.ranks).map(|rank| ids.iter().map(|id| self.share(*id, rank).len()).sum()).collect()
    }

    /// Whole tensors of some weights as one, in the order of owners: what [`Partition::counts`] cuts.
    pub fn by_owner(&self, ids: &[ParamId], whole: impl Fn(ParamId) -> Tensor) -> Flat {
        let tensors: Vec<Tensor> = ids.iter().map(|id| flat(&whole(*id))).collect();
        let of_rank = |rank: usize| {
            let shares = ids.iter().zip(&tensors).map(move |(id, tensor)| (self.share(*id, rank), tensor));
            shares.filter(|(share, _)| !share.is_empty()).map(|(share, tensor)| tensor.rows(share))
        };
        Flat::new((0..self.ranks).flat_map(of_rank))
    }
}

/// The same elements in one row.
pub(crate) fn flat(tensor: &Tensor) -> Tensor {
    tensor.reshape([tensor.shape().elements()])
}

/// Weights of these lengths, end to end, as `ranks` runs: the range of each weight that each rank has.
fn cut_evenly(lens: &[usize], ranks: usize) -> Vec<Vec<Range<usize>>> {
    let total: usize = lens.iter().sum();
    // Where a run may end: after each unit, and a unit ends with its weight.
    let mut ends = vec![0];
    for &len in lens {
        let start = ends[ends.len() - 1];
        ends.extend((0..len).step_by(SUM_SQUARES_UNIT).map(|at| start + (at + SUM_SQUARES_UNIT).min(len)));
    }
    let nearest = |wanted: usize| {
        let above = ends.partition_point(|&end| end < wanted);
        let below = ends[above.saturating_sub(1)];
        if ends[above] - wanted < wanted - below { ends[above] } else { below }
    };
    let cuts: Vec<usize> =
        (0..=ranks).map(|rank| if rank == ranks { total } else { nearest(rank * total / ranks) }).collect();
    let mut start = 0;
    lens.iter()
        .map(|&len| {
            let inside = |at: usize| at.clamp(start, start + len) - start;
            let ranges = cuts.windows(2).map(|run| inside(run[0])..inside(run[1])).collect();
            start += len;
            ranges
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::families::presets::preset;
    use models::registry;

    const UNIT: usize = SUM_SQUARES_UNIT;

    fn gpt2() -> Model {
        let config = preset("gpt2-124m", "model").expect("a preset");
        registry::build(&config, config.max_positions())
    }

    fn elementwise(model: &Model, ranks: usize) -> Partition {
        Partition::new(model, &|_| Some(Granularity::Element), ranks)
    }

    #[test]
    fn runs_end_at_the_units_nearest_to_equal_shares() {
        assert_eq!(cut_evenly(&[3 * UNIT], 2), [[0..UNIT, UNIT..3 * UNIT]].map(|r| r.to_vec()));
        let want = [vec![0..700, 700..700], vec![0..UNIT, UNIT..2 * UNIT]];
        assert_eq!(cut_evenly(&[700, 2 * UNIT], 2), want);
        assert_eq!(cut_evenly(&[5], 3), [[0..0, 0..5, 5..5]].map(|r| r.to_vec()));
        assert_eq!(cut_evenly(&[], 3), Vec::<Vec<Range<usize>>>::new());
    }

    #[test]
    fn every_element_has_one_owner_and_every_cut_is_at_a_unit() {
        let model = gpt2();
        for ranks in 1..=9 {
            let partition = elementwise(&model, ranks);
            for (id, spec) in model.iter() {
                let mut at = 0;
                for rank in 0..ranks {
                    let share = partition.share(id, rank);
                    if !share.is_empty() {
                        assert_eq!((share.start, share.start % UNIT), (at, 0), "{} on rank {rank}", spec.name);
                        at = share.end;
                    }
                }
                assert_eq!(at, spec.elements(), "{}", spec.name);
            }
        }
    }

    #[test]
    fn ranks_own_equal_parts_of_gpt2_to_one_unit_a_block() {
        let model = gpt2();
        let (total, num_blocks) = (model.num_parameters(), model.blocks.len());
        for ranks in [2, 3, 8] {
            let partition = elementwise(&model, ranks);
            let owned: Vec<usize> = (0..ranks).map(|rank| partition.elements(rank)).collect();
            assert_eq!(owned.iter().sum::<usize>(), total);
            for owned in owned {
                assert!(owned.abs_diff(total / ranks) <= num_blocks * UNIT, "{owned} of {total} on {ranks}");
            }
        }
    }

    #[test]
    fn a_tied_weight_is_at_home_where_it_is_listed_first() {
        let model = gpt2();
        let partition = elementwise(&model, 2);
        let wte = model.find("transformer.wte.weight").expect("the embedding");
        assert!(partition.at_home(0).contains(&wte));
        assert!(!partition.at_home(model.blocks.len() - 1).contains(&wte));
    }

    #[test]
    fn a_matrix_goes_whole_to_the_rank_that_has_least() {
        let model = gpt2();
        let is_matrix = |id: ParamId| model.params[id.index()].dims.len() == 2;
        let rule = |id| Some(if is_matrix(id) { Granularity::Matrix } else { Granularity::Element });
        let partition = Partition::new(&model, &rule, 2);
        for (id, spec) in model.iter().filter(|(id, _)| is_matrix(*id)) {
            let lens = [0, 1].map(|rank| partition.share(id, rank).len());
            assert!(lens == [spec.elements(), 0] || lens == [0, spec.elements()], "{}: {lens:?}", spec.name);
        }
        // The embedding, 38.6 million of 124, on one side; the blocks make up for it.
        assert!(partition.elements(0).abs_diff(partition.elements(1)) < 3_000_000);
    }

    #[test]
    fn frozen_weights_are_shared_and_have_no_gradient() {
        let model = gpt2();
        let partition = Partition::new(&model, &|id| (id.0 > 0).then_some(Granularity::Element), 2);
        assert!(!partition.is_trained(ParamId(0)) && partition.share(ParamId(0), 1).len() > 10_000_000);
        assert!(!partition.trained_at_home(0).contains(&ParamId(0)));
    }
}

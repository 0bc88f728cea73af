//! Soft labels: distributions in place of single ids, as lists of ids and probabilities.

/// One list a target, end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabels {
    /// List `i` is entries `starts[i]` to `starts[i + 1]`; an empty one leaves the single label in force.
    pub starts: Vec<u32>,
    /// `[E]`: each at most once in a list.
    pub ids: Vec<u32>,
    /// `[E]`: they add up to 1 in each list that is not empty.
    pub probabilities: Vec<f32>,
}

impl Default for SoftLabels {
    fn default() -> Self {
        Self { starts: vec![0], ids: Vec::new(), probabilities: Vec::new() }
    }
}

impl SoftLabels {
    /// Lists.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there is no list.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a list.
    pub fn push(&mut self, list: impl IntoIterator<Item = (u32, f32)>) {
        let (ids, probabilities): (Vec<u32>, Vec<f32>) = list.into_iter().unzip();
        self.ids.extend(ids);
        self.probabilities.extend(probabilities);
        self.starts.push(self.ids.len() as u32);
    }

    /// The entries of a list.
    pub fn list(&self, index: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let entries = self.starts[index] as usize..self.starts[index + 1] as usize;
        self.ids[entries.clone()].iter().copied().zip(self.probabilities[entries].iter().copied())
    }

    /// Lists `range` by themselves.
    pub fn range(&self, range: std::ops::Range<usize>) -> Self {
        let mut part = Self::default();
        range.for_each(|index| part.push(self.list(index)));
        part
    }
}

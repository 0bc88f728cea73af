//! Why a collective did not happen.

use crate::Kind;
use std::fmt;
use std::sync::Arc;
use tensor::KernelError;

/// A call as messages name it: `all_reduce 17 of group data (ranks 0 to 3)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallName {
    /// What it does.
    pub kind: Kind,
    /// The how manieth of its group, from 0; of messages, between the two ranks.
    pub number: u64,
    /// Of the group.
    pub group: Arc<str>,
    /// Of the group, as the whole run counts them.
    pub ranks: Arc<[usize]>,
}

impl fmt::Display for CallName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of group {} ({})", self.kind, self.number, self.group, list(&self.ranks))
    }
}

/// `rank 3`, `ranks 0 to 3`, `ranks 0, 2, 4`.
pub(crate) fn list(ranks: &[usize]) -> String {
    let in_a_row = ranks.windows(2).all(|pair| pair[1] == pair[0] + 1);
    match ranks {
        [] => "no ranks".to_owned(),
        [rank] => format!("rank {rank}"),
        [first, .., last] if in_a_row && ranks.len() > 2 => format!("ranks {first} to {last}"),
        _ => format!("ranks {}", ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Why a collective did not happen. The first cause is told to every rank.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommError {
    /// A rank is gone, or did not answer in time.
    #[error("{call}: {how}")]
    Lost {
        /// What this rank was in.
        call: CallName,
        /// Who is lost, as the whole run counts ranks.
        rank: usize,
        /// A sentence that begins with the rank.
        how: String,
    },
    /// Ranks of a group made different calls.
    #[error("{call}: {how}")]
    Mismatch {
        /// What this rank was in.
        call: CallName,
        /// Both calls and who made them.
        how: String,
    },
    /// The device failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The transport itself failed.
    #[error("{call}: {how}")]
    Transport {
        /// What this rank was in.
        call: CallName,
        /// In the transport's words.
        how: String,
    },
}

impl CommError {
    /// Whether this is the end of another rank as this one saw it, and so not the cause of anything.
    pub fn is_consequence_of_rank(&self) -> Option<usize> {
        if let Self::Lost { rank, .. } = self { Some(*rank) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_with_number_group_and_ranks() {
        let name = |ranks: &[usize]| {
            CallName { kind: Kind::AllReduce, number: 17, group: "data".into(), ranks: ranks.into() }.to_string()
        };
        assert_eq!(name(&[0, 1, 2, 3]), "all_reduce 17 of group data (ranks 0 to 3)");
        assert_eq!(name(&[0, 2, 4]), "all_reduce 17 of group data (ranks 0, 2, 4)");
        assert_eq!(name(&[5]), "all_reduce 17 of group data (rank 5)");
    }
}

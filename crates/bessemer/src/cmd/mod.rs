//! The commands, one file each: read arguments, call the library, print.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod model;
pub(crate) mod numbers;
pub(crate) mod plan;
pub(crate) mod score;
pub(crate) mod train;
pub(crate) mod tune;
pub(crate) mod watch;

//! The program from outside, as a specification: words on the command line, exit status, what is written, what is said.
//!
//! | file | what |
//! | --- | --- |
//! | `run_file` | a wrong run file is refused and nothing is written |
//! | `deepspeed` | files of DeepSpeed's, unchanged |
//! | `classifier` | sequence classification |
//! | `data` | wrong data, tokenizers and rows of tokens |
//! | `model_folder` | wrong model folders, and wrong words for `eval`, `score`, `generate`, `export`, `bench` |
//! | `output` | where a run may write |
//! | `ranks` | several ranks in one process |
//! | `stopping` | failures while running, signals, kills, resuming |
//! | `watching` | what a run says of itself, and `watch` |
//! | `results` | what commands print, and what a run leaves |
//! | `tune` | short trials that find settings |
//! | `words` | help, logs, pipes, the start |

mod classifier;
mod common;
mod data;
mod deepspeed;
mod model_folder;
mod output;
mod ranks;
mod results;
mod run_file;
mod stopping;
mod tune;
mod watching;
mod words;

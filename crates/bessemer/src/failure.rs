//! How a command ends when it does not end well: one paragraph and an exit status.

use crate::LogFormat;
use crate::ui::to_stderr;
use std::io;
use std::process::ExitCode;
use train::TrainError;

/// Why a command did not succeed.
pub(crate) enum Failure {
    /// The request was wrong; nothing was written or changed. Exit status 2.
    Request(String),
    /// It failed while running. Exit status 1.
    Running(String),
    /// A signal came and the work is safe. Exit status 128 + signal.
    Signal(usize),
    /// Whoever read standard output has had enough: no error.
    PipeClosed,
}

impl Failure {
    pub(crate) fn request(error: impl std::fmt::Display) -> Self {
        Self::Request(error.to_string())
    }

    pub(crate) fn running(error: impl std::fmt::Display) -> Self {
        Self::Running(error.to_string())
    }

    /// Before anything was written every error is the request's, but for what the machine lacks.
    pub(crate) fn before(error: TrainError) -> Self {
        match error {
            TrainError::Op(_) => Self::running(error),
            _ => Self::request(error),
        }
    }

    /// Once a run has begun an error is the run's, unless it is about the request after all.
    pub(crate) fn during(error: TrainError) -> Self {
        match error {
            TrainError::Request(_) => Self::request(error),
            _ => Self::running(error),
        }
    }

    pub(crate) fn report(self, format: LogFormat) -> ExitCode {
        let (message, status) = match self {
            Self::PipeClosed => return ExitCode::SUCCESS,
            Self::Signal(signal) => return ExitCode::from(128u8.saturating_add(signal as u8)),
            Self::Request(message) => (message, 2),
            Self::Running(message) => (message, 1),
        };
        match format {
            LogFormat::Text => to_stderr(&format!("error: {message}")),
            LogFormat::Json => to_stderr(&serde_json::json!({"event": "error", "message": message}).to_string()),
        }
        ExitCode::from(status)
    }
}

/// What writing to standard output can fail at.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Running(format!("cannot write to standard output: {error}")),
        }
    }
}

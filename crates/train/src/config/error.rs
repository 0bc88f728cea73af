//! What is said to a user whose run file cannot be honoured.

use std::fmt;

/// A request that cannot be honoured, as one paragraph: where (file and key), the value found, what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    /// The whole paragraph, as the user reads it.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// A paragraph about `source`: a file's name, or the argument at fault.
    pub(crate) fn about(source: &str, message: impl fmt::Display) -> Self {
        Self(format!("{source}: {message}"))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

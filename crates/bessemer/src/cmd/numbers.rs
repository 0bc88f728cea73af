//! Numbers on the command line, refused in the words of the rest of the program.

use std::ops::RangeInclusive;

/// For clap: a whole number of at least 1.
pub(crate) fn at_least_one(text: &str) -> Result<u64, String> {
    whole(text, 1..=u64::MAX).map_err(|()| "it must be a whole number of at least 1".to_owned())
}

/// For clap: threads; 0 = all cores.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    const MOST: u64 = 1024;
    let threads = whole(text, 0..=MOST).map_err(|()| format!("it must be a whole number from 0 to {MOST}"))?;
    Ok(threads as usize)
}

/// For clap: a whole number of at least 0.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let count =
        whole(text, 0..=usize::MAX as u64).map_err(|()| "it must be a whole number of at least 0".to_owned())?;
    Ok(count as usize)
}

/// For clap: one token id.
pub(crate) fn token_id(text: &str) -> Result<u32, String> {
    let id = whole(text.trim(), 0..=u64::from(u32::MAX));
    id.map(|id| id as u32).map_err(|()| "token ids are whole numbers of at least 0 with commas between them".to_owned())
}

fn whole(text: &str, range: RangeInclusive<u64>) -> Result<u64, ()> {
    text.parse().ok().filter(|number| range.contains(number)).ok_or(())
}

//! Globs: `*`, `?`, `[abc]`, `[a-z]`, `[!a]` within a path component, `**` for any number of folders.
//!
//! Only files match; the result is sorted by path, so that it does not depend on the file system.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};

pub(super) fn is_glob(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// The files that match `pattern`; none is an error.
pub(super) fn files(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let root = if pattern.starts_with('/') { Path::new("/") } else { Path::new("") };
    let components: Vec<&str> = pattern.split('/').filter(|component| !component.is_empty()).collect();
    walk(root, &components, &mut found)?;
    found.sort();
    found.dedup();
    if found.is_empty() {
        return Err(DataError::NoMatch { pattern: pattern.to_owned() });
    }
    Ok(found)
}

fn walk(folder: &Path, components: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
    let Some((first, rest)) = components.split_first() else { return Ok(()) };
    if !is_glob(first) {
        return step(folder.join(first), rest, found);
    }
    if *first == "**" {
        walk(folder, rest, found)?;
    }
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for entry in fs::read_dir(listed).map_err(DataError::io(listed, "read the folder"))? {
        let name = entry.map_err(DataError::io(listed, "read the folder"))?.file_name();
        let Some(name) = name.to_str() else { continue }; // a pattern is text and cannot match it
        let path = folder.join(name);
        if *first == "**" {
            if path.is_dir() && !path.is_symlink() {
                walk(&path, components, found)?;
            }
        } else if (!name.starts_with('.') || first.starts_with('.')) && glob_matches(first, name) {
            step(path, rest, found)?;
        }
    }
    Ok(())
}

fn step(path: PathBuf, rest: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
    if rest.is_empty() {
        found.extend(Some(path).filter(|path| path.is_file()));
    } else if path.is_dir() {
        walk(&path, rest, found)?;
    }
    Ok(())
}

/// Whether a name matches a pattern: `*` is any run of characters, `?` one, `[a-z]` one of some, `[!a-z]` one of the others.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.as_bytes(), name.as_bytes());
    // Behind the last `*`, and what that may begin at next. An earlier one need not be tried again: whatever it could take
    // more, the last one can.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            (pattern, retry) = (rest, Some((rest, name)));
        } else if pattern.is_empty() && name.is_empty() {
            return true;
        } else if let Some(rests) = match_one(pattern, name) {
            (pattern, name) = rests;
        } else if let Some((behind, [_, rest @ ..])) = retry {
            (pattern, name, retry) = (behind, rest, Some((behind, rest)));
        } else {
            return false;
        }
    }
}

/// Matches one character of `name` by one element of `pattern`, which is no `*`; what is left of both.
fn match_one<'a>(pattern: &'a [u8], name: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let ((expected, pattern), (byte, rest)) = (pattern.split_first()?, name.split_first()?);
    match (expected, class(pattern)) {
        (b'?', _) => {
            // One character, however many bytes it has.
            let width = if *byte < 0x80 { 1 } else { byte.leading_ones().max(1) as usize };
            Some((pattern, &name[width.min(name.len())..]))
        }
        (b'[', Some((members, is_negated, pattern))) => {
            (in_class(members, *byte) != is_negated).then_some((pattern, rest))
        }
        _ => (expected == byte).then_some((pattern, rest)),
    }
}

/// Splits `abc]rest` or `!abc]rest` into members, whether negated, and rest.
fn class(pattern: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let is_negated = pattern.first() == Some(&b'!');
    let pattern = &pattern[usize::from(is_negated)..];
    let end = 1 + pattern.iter().skip(1).position(|&byte| byte == b']')?;
    Some((&pattern[..end], is_negated, &pattern[end + 1..]))
}

fn in_class(members: &[u8], byte: u8) -> bool {
    match members {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_class(rest, byte),
        [member, rest @ ..] => *member == byte || in_class(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_match_as_a_shell_would() {
        for (pattern, name, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("part-[0-9]?.jsonl", "part-07.jsonl", true),
            ("part-[0-9]?.jsonl", "part-x7.jsonl", false),
            ("[!a]*", "b", true),
            ("[!a]*", "ab", false),
            ("?", "é", true),
            ("a*b*c", "aXbYbZc", true),
            ("[", "[", true),
            ("*", "", true),
            ("h.?.ln", "h.13.ln", false),
            // Trying every length of every run would take longer than there is time.
            ("*************x", "transformer.h.11.attn.c_attn.weight.of.a.long.name", false),
            ("*a*a*a*a*a*a*a*a*a*a*a*ab", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", true),
        ] {
            assert_eq!(glob_matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn files_come_sorted_and_folders_are_walked() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("x/y")).unwrap();
        for name in ["b.txt", "a.txt", "x/c.txt", "x/y/d.txt", "x/y/e.md"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let found = |pattern: &str| -> Vec<String> {
            let pattern = format!("{}/{pattern}", folder.path().display());
            let relative = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned();
            files(&pattern).unwrap().into_iter().map(relative).collect()
        };
        assert_eq!(found("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(found("**/*.txt"), ["a.txt", "b.txt", "x/c.txt", "x/y/d.txt"]);
        assert_eq!(found("x/*/?.[dm]*"), ["x/y/e.md"]);
    }
}

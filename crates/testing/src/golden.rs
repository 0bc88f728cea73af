//! Golden files: numbers that must not move, as text under `golden/` at the root of the project, one file per claim.
//!
//! A file has one `name value` a line, in the order in which they were computed; lines that start with `#` say what the
//! claim is and are kept when the values are written anew. A test compares; it writes only when it is run with
//! `BESSEMER_BLESS=1`, and a missing file is a failure that says so.

use std::fs;
use std::path::{Path, PathBuf};

use crate::close::{Bound, assert_close};

/// The variable that turns a comparison into a new golden file.
const BLESS: &str = "BESSEMER_BLESS";

/// Fails unless `values` are those of `golden/{path}`, name by name and in that order, within `bound`.
///
/// With `BESSEMER_BLESS=1` the file is written instead, and its path printed.
///
/// # Panics
/// If the file is missing or is not `name value` lines, if the names differ, if a value is out of `bound`.
#[track_caller]
pub fn check(path: &str, values: &[(String, f64)], bound: Bound) {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden")).join(path);
    let bless = std::env::var_os(BLESS).is_some_and(|value| value == "1");
    check_file(&file, values, bound, bless);
}

#[track_caller]
fn check_file(file: &PathBuf, values: &[(String, f64)], bound: Bound, bless: bool) {
    for (name, _) in values {
        assert!(
            !name.is_empty() && !name.contains(char::is_whitespace) && !name.starts_with('#'),
            "golden: name {name:?}"
        );
    }
    if bless {
        write(file, values);
        return;
    }
    let text = fs::read_to_string(file).unwrap_or_else(|error| {
        panic!("golden file {}: {error}; run this test once with {BLESS}=1 to make it, then read it", file.display())
    });
    let want = parse(file, &text);
    let names: Vec<&str> = values.iter().map(|(name, _)| name.as_str()).collect();
    let want_names: Vec<&str> = want.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, want_names, "names computed (left) and in golden file {} (right)", file.display());
    let got: Vec<f64> = values.iter().map(|&(_, value)| value).collect();
    let want: Vec<f64> = want.iter().map(|&(_, value)| value).collect();
    assert_close(&format!("golden file {} (element 0 is the first value)", file.display()), &got, &want, bound);
}

fn parse(file: &Path, text: &str) -> Vec<(String, f64)> {
    let mut values = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.split_once(' ').and_then(|(name, value)| Some((name.to_string(), value.trim().parse().ok()?)));
        let Some(pair) = pair else {
            panic!("golden file {} line {}: {line:?} is not `name value`", file.display(), index + 1);
        };
        values.push(pair);
    }
    values
}

/// Writes the values in their shortest form that reads back to the same bits, under the comments the file already has.
fn write(file: &Path, values: &[(String, f64)]) {
    let old = fs::read_to_string(file).unwrap_or_default();
    let mut text: String = old.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for (name, value) in values {
        text.push_str(&format!("{name} {value:?}\n"));
    }
    fs::write(file, text).unwrap_or_else(|error| panic!("golden file {}: {error}", file.display()));
    eprintln!("golden file {} written", file.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this test alone, removed when it goes out of scope.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("bessemer-golden-{}-{name}.txt", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // It is not there when the test asserts that nothing was written.
            let _ = fs::remove_file(&self.0);
        }
    }

    fn losses(values: &[f64]) -> Vec<(String, f64)> {
        values.iter().enumerate().map(|(step, &loss)| (format!("loss.{step}"), loss)).collect()
    }

    fn message(file: &PathBuf, values: &[(String, f64)], bound: Bound) -> String {
        let panic = std::panic::catch_unwind(|| check_file(file, values, bound, false)).expect_err("check_file passed");
        panic.downcast_ref::<String>().expect("a formatted message").clone()
    }

    #[test]
    fn a_blessed_file_holds_the_same_bits_and_keeps_its_comments() {
        let file = Scratch::new("bless");
        fs::write(&file.0, "# GPT-2, five steps\nold 1.0\n").unwrap();
        let values = losses(&[5.2058024406433105, 1e-300, -0.1]);
        check_file(&file.0, &values, Bound::Absolute(0.0), true);
        check_file(&file.0, &values, Bound::Absolute(0.0), false);
        assert!(fs::read_to_string(&file.0).unwrap().starts_with("# GPT-2, five steps\nloss.0 5.2058024406433105\n"));
    }

    #[test]
    fn a_missing_file_fails_with_how_to_make_it_and_is_not_written() {
        let file = Scratch::new("missing");
        assert!(message(&file.0, &losses(&[1.0]), Bound::Absolute(1.0)).contains("with BESSEMER_BLESS=1 to make it"));
        assert!(!file.0.exists());
    }

    #[test]
    fn a_value_out_of_bound_another_name_and_a_broken_line_each_fail() {
        let file = Scratch::new("moved");
        fs::write(&file.0, "loss.0 2.0\nloss.1 1.0\n").unwrap();
        check_file(&file.0, &losses(&[2.25, 1.0]), Bound::Absolute(0.25), false);
        assert!(message(&file.0, &losses(&[2.5, 1.0]), Bound::Absolute(0.25)).contains("is 2.5, want 2.0"));
        assert!(message(&file.0, &losses(&[2.0]), Bound::Absolute(0.25)).contains("names computed"));
        fs::write(&file.0, "loss.0 2.0\nloss.1\n").unwrap();
        assert!(message(&file.0, &losses(&[2.0, 1.0]), Bound::Absolute(0.25)).contains("line 2"));
    }
}

//! The reference page of all keys (`docs/config.md`), from the table that the program itself reads.
//!
//! `cargo run --release -p bessemer-train --example config_reference` writes it; a test holds the file to [`page`].

use super::keys::{Key, Kind, Status, all_keys, alternatives};

const HEAD: &str = "\
# Keys of a run file

Written by `cargo run --release -p bessemer-train --example config_reference` from the table in `crates/train/src/config/table/`, which
is what the program reads: change the table, then run that.

A run file is HJSON: JSON, and with it comments (`#`, `//`, `/* */`), trailing commas, a line's end in place of a comma, keys and
texts without quotes (a text then ends with its line), `'''` texts of several lines. A key that stands twice in one section is an
error, and so is an unknown key. `\"auto\"` means: derive it, or take the default. In a key, `[]` stands for each item of a list and
`*` for a name of your own.

- **honoured**: it does what it says.
- **no effect**: it tunes something that has no counterpart here; the log lists it once.
- **not yet**: checked and shown by `bessemer plan`; `bessemer train` refuses it by name. Values in brackets are accepted: they ask
  for what happens anyway.
- **refused**: planned and refused by name likewise, with what to use instead.

DeepSpeed's older names are understood, with a notice: `bfloat16`, `zero_optimization: true`, `zero_optimization.cpu_offload`,
`zero_optimization.cpu_offload_param`, `zero_optimization.stage3_gather_fp16_weights_on_model_save`, `aio.thread_count`. Keys of
`zero_optimization` that begin with `stage3_` may be written without it.
";

/// The page as Markdown: one table for each section at the top of a file, and for the `params` of each type.
pub fn page() -> String {
    let mut tables: Vec<(String, String)> = Vec::new();
    for (of_type, key) in all_keys() {
        let heading = heading(of_type, key);
        let (path, cells) = (key.path, [kind(key), default(key), status(key), key.meaning.to_owned()]);
        let row = format!("| `{path}` | {} |\n", cells.map(|text| cell(&text)).join(" | "));
        match tables.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, rows)) => *rows += &row,
            None => tables.push((heading, row)),
        }
    }
    let columns = "| key | value | default | | meaning |\n| --- | --- | --- | --- | --- |";
    let tables = tables.into_iter().map(|(heading, rows)| format!("\n## {heading}\n\n{columns}\n{rows}"));
    std::iter::once(HEAD.to_owned()).chain(tables).collect()
}

/// The section a key is listed under. Plain keys at the top share one.
fn heading(of_type: Option<&str>, key: &Key) -> String {
    let top = key.path.split(['.', '[']).next().unwrap_or_default();
    match of_type {
        Some(name) => format!("{top}.params of {name}"),
        None if top == key.path && key.kind.section().is_none() => "At the top".to_owned(),
        None => top.to_owned(),
    }
}

fn kind(key: &Key) -> String {
    let or_null = key.default == "null" && !key.kind.accept(&mut serde_json::Value::Null);
    format!("{}{}", key.kind, if or_null && !matches!(key.kind, Kind::Section(_)) { ", or null" } else { "" })
}

fn default(key: &Key) -> String {
    match key.kind {
        Kind::Section(_) if key.default == "{}" => String::new(),
        _ => format!("`{}`", key.default),
    }
}

fn status(key: &Key) -> String {
    match key.status {
        Status::Honoured if matches!(key.kind, Kind::Section(_)) => String::new(),
        Status::Honoured => "honoured".into(),
        Status::NoEffect => "no effect".into(),
        Status::Refused { .. } => "refused".into(),
        Status::NotYet { except: [] } => "not yet".into(),
        Status::NotYet { except } => {
            format!("not yet ({})", alternatives(except.iter().map(|text| format!("`{text}`"))))
        }
    }
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}

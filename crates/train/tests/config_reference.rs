//! The reference page says what the program reads.

#[test]
fn the_reference_page_of_keys_is_what_the_table_gives() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let wanted = train::config::reference::page();
    let line = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "docs/config.md is not what the table of keys gives (first other line: {}); write it anew with\n\
         cargo run --release -p bessemer-train --example config_reference",
        line.unwrap_or_else(|| found.lines().count().min(wanted.lines().count())) + 1
    );
}

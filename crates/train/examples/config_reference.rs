//! Writes `docs/config.md`, the reference page of all keys of a run file: `cargo run -p bessemer-train --example config_reference`.

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
    std::fs::write(path, train::config::reference::page())?;
    println!("wrote docs/config.md");
    Ok(())
}

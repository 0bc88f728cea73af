#!/usr/bin/env bash
# Everything that must hold: format, lints, docs, the README's command on a short run, and all tests.
# Installs what is missing of the Rust toolchain. Needs nothing but Rust; where there is a python3, TensorBoard is installed
# under target/ and reads event files too. The tests come last, so that their summary closes.
set -euo pipefail
cd "$(dirname "$0")/.."

component() { # command, rustup component
  cargo "$1" --version >/dev/null 2>&1 || rustup component add "$2"
}
component fmt rustfmt
component clippy clippy

say() { printf '\n== %s\n' "$1"; }

say "format"
cargo fmt --all --check

say "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings

say "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

say "the README's command, cut to 20 steps"
output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT
cargo run --release --quiet -- train examples/shakespeare.json \
  --set run.output="$output/run" --set run.steps=20 --set run.sample_tokens=20 --set run.norms_every=5 \
  --set tensorboard.enabled=true --set tensorboard.output_path="$output" --set tensorboard.job_name=events
test -s "$output/run/model/model.safetensors"

say "TensorBoard's own reader on that run"
reads='from tensorboard.backend.event_processing import event_accumulator'
python=python3
if command -v python3 >/dev/null && ! python3 -c "$reads" 2>/dev/null; then
  python=target/tensorboard/bin/python
  "$python" -c "$reads" 2>/dev/null \
    || { python3 -m venv target/tensorboard && "$python" -m pip install --quiet tensorboard 'setuptools<81'; } || true
fi
if "$python" -c "$reads" 2>/dev/null; then
  "$python" scripts/check_tensorboard.py "$output/run" "$output/events"
else
  echo "skipped: there is no python3 with tensorboard, and it cannot be installed"
fi

say "tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo test --release --workspace --doc --quiet
  cargo nextest run --release --workspace --no-fail-fast
else
  cargo test --release --workspace --no-fail-fast
fi

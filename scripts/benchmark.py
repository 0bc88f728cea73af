#!/usr/bin/env python3
"""Runs our side and the peer's of every benchmark, in turn on this machine, and holds the ratios against what we ask.

    scripts/benchmark.py                               # every row
    scripts/benchmark.py gpt2-bf16 attention           # some rows; --help lists them
    scripts/benchmark.py --rounds 3 --json target/benchmark.json --markdown docs/benchmarks.md
    scripts/benchmark.py --quick                       # a few steps of each: shows that it runs, judges nothing

A round runs each side once: ours, peer, ours, peer. Of the rounds the best counts, since neighbours on a machine only
ever slow it down (`--statistic median` takes the median). Ratios count; absolute figures move with the machine.

Needs Rust, and for the rows with a peer PyTorch and Transformers: in the Python that PEER_PYTHON names, else in
target/peer, which is made when it is missing. The peers' programs are in scripts/peers.

Exit status: 0 every ratio holds, 1 one is missed or a program failed, 2 the request was wrong.
"""
import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

import machine
from report import Measure, described, table

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(__file__).resolve().parent / "peers"

BATCH, LENGTH = 4, 256
MODELS = {
    "GPT-2 124M": {
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    # As many parameters as GPT-2 124M: grouped queries and tied embeddings make room for a SwiGLU of 2432.
    "Llama 125M": {
        "model_type": "llama", "vocab_size": 50257, "max_position_embeddings": 1024, "hidden_size": 768,
        "intermediate_size": 2432, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    },
}
BF16_PEERS = {
    "PyTorch autocast": ["autocast"],
    "PyTorch autocast, compiled": ["autocast", "--compile"],
    "PyTorch pure bf16": ["bf16"],
}
F32_PEERS = {"PyTorch f32": ["f32"]}
OURS = "Bessemer"

# m x n x k of the bench `gemm`: a layer from k to n features on m tokens in all three forms, then its two gradients in
# the forms that training takes, where the bench has them.
PRODUCTS = {
    "1024 x 768 x 3072": ["1024x3072x768 Nt", "1024x3072x768 Nn", "1024x3072x768 Tn", "1024x768x3072 Nn",
                          "3072x768x1024 Tn"],
    "1024 x 768 x 50257": ["1024x50257x768 Nt", "1024x50257x768 Nn", "1024x50257x768 Tn", "1024x768x50257 Nn",
                           "50257x768x1024 Tn"],
}
# Shares of the peak for each format: asked, goal.
PRODUCT_SHARES = {"BF16": (0.85, 0.93), "F32": (0.85, 0.92)}


class Failed(Exception):
    """A program failed or did not print what it should."""


@dataclass
class Bench:
    """How this call measures, and every result so far."""

    words: argparse.Namespace
    scratch: Path
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def program(self) -> Path:
        return self.words.target / "release" / "bessemer"

    @property
    def steps(self) -> int:
        return 2 if self.words.quick else self.words.steps

    @property
    def rounds(self) -> int:
        return 1 if self.words.quick else self.words.rounds

    def in_turn(self, row: str, sides: dict[str, Callable[[], dict]]) -> dict[str, list[dict]]:
        """The results of every side, one a round; each round runs every side once."""
        results: dict[str, list[dict]] = {side: [] for side in sides}
        for number in range(1, self.rounds + 1):
            for side, run in sides.items():
                start = time.perf_counter()
                result = run()
                results[side].append(result)
                self.runs.append({"row": row, "side": side, "round": number, **result})
                say(f"{row}, round {number}, {side}: {shown(result)} ({time.perf_counter() - start:.0f} s)")
        return results

    def pick(self, results: list[dict], key: str, best: Callable = max) -> float:
        """The round that counts."""
        return (statistics.median if self.words.statistic == "median" else best)(result[key] for result in results)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shown(result: dict[str, Any]) -> str:
    """The figures of a result that a reader follows a run by."""
    keys = ["tokens_per_second", "seconds", "eval_loss", "bytes_per_second", "worst_share", "peak_memory_bytes"]
    return ", ".join(f"{key} {result[key]:.4g}" for key in keys if key in result)


# What `run.recompute` may be beside true and false.
RECOMPUTE = [{"segment": 3}, {"every": 2}, {"ops": ["norm", "gelu", "silu_mul"]}, {"ops": ["attention", "linear"]}]


def run(command: list, **options) -> subprocess.CompletedProcess:
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\nexits {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done


# --- our side ---


def run_file(bench: Bench, model: str, bf16: bool, recompute: bool | dict = False) -> Path:
    """A run file for `bench` and `plan`; the data are named for their row length and never opened."""
    kind = "-".join(re.findall(r"\w+", json.dumps(recompute))) if recompute else ""
    name = f"{model}-{'bf16' if bf16 else 'f32'}{f'-recompute-{kind}' if kind else ''}.json"
    path = bench.scratch / name.replace(" ", "-")
    path.write_text(json.dumps({
        "model": {"config": MODELS[model]},
        "data": {"train": "unused.txt", "sequence_length": LENGTH},
        "run": {"recompute": recompute},
        "train_batch_size": BATCH,
        "bf16": {"enabled": bf16},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4}},
    }), encoding="utf-8")
    return path


def our_steps(bench: Bench, path: Path, *more: str, steps: int = 0, threads: int = 0) -> dict:
    """What `bessemer bench` measures of a run file."""
    command = [bench.program, "bench", path, "--batch", BATCH, "--length", LENGTH, "--steps", steps or bench.steps,
               "--threads", threads or bench.words.threads, "--json", "--log-format", "json", *more]
    done = run(command)
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    counted = [event["step_seconds"] for event in events if event.get("event") == "step" and event["step"] > 0]
    return {**json.loads(done.stdout), "counted_seconds": sum(counted), "steps": len(counted)}


def kernel_bench(bench: Bench, name: str) -> Path:
    """The executable of a bench of crates/kernels."""
    if not bench.words.no_build:
        command = ["cargo", "bench", "-p", "bessemer-kernels", "--bench", name, "--no-run", "--message-format=json"]
        artifacts = [json.loads(line) for line in run(command, env=bench.words.cargo_env).stdout.splitlines()]
        found = [Path(artifact["executable"]) for artifact in artifacts
                 if artifact.get("executable") and artifact["target"]["name"] == name]
    else:
        folder = bench.words.target / "release" / "deps"
        found = [path for path in folder.glob(f"{name}-*") if not path.suffix and os.access(path, os.X_OK)]
    if not found:
        raise Failed(f"no bench {name} under {bench.words.target}; run without --no-build")
    return max(found, key=lambda path: path.stat().st_mtime)


def products(bench: Bench, executable: Path, shape: str) -> dict[str, dict]:
    """Name of a product ("1024x3072x768 Nt BF16->BF16") to its rate and its share of the peak of the same process."""
    lines = run([executable, 1, "avx512_bf16", shape]).stdout.splitlines()
    pattern = re.compile(r"(\S+ N[tn]|\S+ Tn) (\S+->\S+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)%")
    found = [match.groups() for line in lines if (match := pattern.match(line))]
    return {f"{form} {formats}": {"gflops": float(rate), "share": float(share) / 100}
            for form, formats, _, rate, share in found}


def our_attention(bench: Bench, executable: Path) -> dict:
    """Forward and backward of the case that the peer runs."""
    case = "BF16 1 x 4096, heads 12/12 x 64"
    lines = run([executable, bench.words.threads, "avx512_bf16", case]).stdout.splitlines()
    pattern = re.compile(re.escape(case) + r"\s+forward\s+([\d.]+) us.*backward\s+([\d.]+) us")
    match = next((match for line in lines if (match := pattern.match(line))), None)
    if not match:
        raise Failed(f"{executable} printed no line of {case}")
    forward, backward = float(match[1]) / 1e6, float(match[2]) / 1e6
    return {"forward_seconds": forward, "backward_seconds": backward, "seconds": forward + backward}


def our_shakespeare(bench: Bench) -> dict:
    """The example from the start of the process to its end: the tokenizer made, tokens cached, and the model exported.

    Evaluated once, at the end, as the peer is; the example does it four times, with samples and checkpoints between.
    """
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        keys = {"run.output": f"{folder}/run", "data.cache": f"{folder}/cache", "run.threads": bench.words.threads,
                "run.eval_every": 0, "run.sample_every": 0, "run.checkpoint_every": 0}
        if bench.words.quick:
            keys["run.steps"] = 50
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
        start = time.perf_counter()
        run([bench.program, "train", "examples/shakespeare.json", *sets])
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "eval_loss": [row["eval_loss"] for row in rows if "eval_loss" in row][-1]}


def our_generation(bench: Bench) -> dict:
    """What `bessemer bench --generate` measures: the tokens and the memory they come through, in one process."""
    path = run_file(bench, "GPT-2 124M", True)
    command = [bench.program, "bench", path, "--generate", "--threads", bench.words.threads, "--json"]
    return json.loads(run(command).stdout)


# --- the peer's side ---


def peer_python(bench: Bench) -> Path:
    """A Python with PyTorch and Transformers."""
    if named := os.environ.get("PEER_PYTHON"):
        return Path(named)
    folder = bench.words.target / "peer"
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making {folder} with PyTorch and Transformers")
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "torch", "transformers"])
    return python


def peer(bench: Bench, script: str, *arguments) -> dict:
    """What a program of scripts/peers prints last."""
    command = [peer_python(bench), PEERS / script, *arguments, "--threads", bench.words.threads]
    lines = run(command).stdout.splitlines()
    if not lines:
        raise Failed(f"scripts/peers/{script} printed nothing")
    return json.loads(lines[-1])


def peer_steps(bench: Bench, model: str, mode: list[str]) -> dict:
    config = bench.scratch / f"{model}.config.json".replace(" ", "-")
    config.write_text(json.dumps(MODELS[model]), encoding="utf-8")
    return peer(bench, "train_step.py", config, *mode, "--batch", BATCH, "--length", LENGTH, "--steps", bench.steps)


# --- rows ---


def gemm(bench: Bench, row: str) -> list[Measure]:
    """products of GPT-2's layers, one core, against the peak of the same run"""
    executable = kernel_bench(bench, "gemm")
    measures = []
    for work, names in PRODUCTS.items():
        shapes = dict.fromkeys(name.split()[0] for name in names)
        rounds = bench.in_turn(row, {shape: lambda shape=shape: products(bench, executable, shape) for shape in shapes})
        for format, (asked, goal) in PRODUCT_SHARES.items():
            measures.append(product_measure(bench, row, work, names, rounds, format, asked, goal))
    return measures


def product_measure(bench, row, work, names, rounds, format, asked, goal) -> Measure:
    """The worst of the products `names`. Gradients of weights are summed in f32, whatever the inputs are."""
    rates = {}
    for name in names:
        shape, form = name.split()
        key = f"{name} {format}->{'F32' if form == 'Tn' else format}"
        results = [result[key] for result in rounds[shape] if key in result]
        if not results:
            raise Failed(f"the bench gemm has no product {key}")
        rates[name] = (bench.pick(results, "share"), bench.pick(results, "gflops"))
    worst = min(rates, key=lambda name: rates[name][0])
    share, gflops = rates[worst]
    ours = f"{gflops:.0f} GFLOP/s ({worst}, the slowest of {len(names)})"
    title = f"{format.lower()} product {work}, one core"
    return Measure(row, title, ours, f"{gflops / share:.0f} GFLOP/s, peak", share, at_least=asked, goal=goal)


def training(bench: Bench, row: str, model: str, bf16: bool, peers: dict, asked: float, goal: float, *more: str,
             memory: bool = False) -> list[Measure]:
    """Optimizer steps against the fastest of the peer's modes; with `memory` also against the compiled one's memory."""
    path = run_file(bench, model, bf16)
    sides = {OURS: lambda: our_steps(bench, path, *more)}
    sides |= {name: lambda mode=mode: peer_steps(bench, model, mode) for name, mode in peers.items()}
    results = bench.in_turn(row, sides)
    rates = {side: bench.pick(runs, "tokens_per_second") for side, runs in results.items()}
    bytes_of = {side: bench.pick(runs, "peak_memory_bytes", min) for side, runs in results.items()}
    fastest = max(peers, key=rates.get)
    forced = f", {more[1]} only" if more else ""
    title = f"{model}, {BATCH} x {LENGTH}, {'bf16' if bf16 else 'f32'}{forced}"
    rate = lambda side: f"{rates[side]:.0f} tok/s, {bytes_of[side] / 2**30:.2f} GiB"
    measures = [Measure(row, title, rate(OURS), f"{rate(fastest)} ({fastest})", rates[OURS] / rates[fastest],
                        at_least=asked, goal=goal)]
    if memory:
        compiled = next(name for name in peers if "compiled" in name)
        size = lambda side: f"{bytes_of[side] / 2**30:.2f} GiB"
        measures.append(Measure(row, f"{title}: peak resident memory", size(OURS), f"{size(compiled)} ({compiled})",
                                bytes_of[OURS] / bytes_of[compiled], at_most=0.8))
    return measures


def gpt2_bf16(bench: Bench, row: str) -> list[Measure]:
    """training steps of GPT-2 124M in bf16 against the best of PyTorch's bf16 modes, and their memory"""
    return training(bench, row, "GPT-2 124M", True, BF16_PEERS, 1.4, 1.75, memory=True)


def gpt2_f32(bench: Bench, row: str) -> list[Measure]:
    """the same in f32 against PyTorch"""
    return training(bench, row, "GPT-2 124M", False, F32_PEERS, 2.2, 3.0)


def gpt2_avx2(bench: Bench, row: str) -> list[Measure]:
    """the same in f32 with our kernels held to AVX2, against PyTorch unrestricted"""
    return training(bench, row, "GPT-2 124M", False, F32_PEERS, 0.9, 1.0, "--isa", "avx2")


def llama_bf16(bench: Bench, row: str) -> list[Measure]:
    """training steps of a Llama of that size (grouped queries, SwiGLU) in bf16 against the best of PyTorch"""
    return training(bench, row, "Llama 125M", True, BF16_PEERS, 1.4, 1.75)


def attention(bench: Bench, row: str) -> list[Measure]:
    """causal attention forward and backward, T = 4096, 12 heads of 64, bf16, against PyTorch's SDPA"""
    executable = kernel_bench(bench, "attention")
    theirs = lambda: peer(bench, "attention.py", "--length", 4096, "--heads", 12, "--head-dim", 64)
    results = bench.in_turn(row, {OURS: lambda: our_attention(bench, executable), "PyTorch SDPA": theirs})
    ours, sdpa = (bench.pick(results[side], "seconds", min) for side in results)
    return [Measure(row, "attention forward + backward, T = 4096, 12 heads of 64, bf16", f"{1e3 * ours:.1f} ms",
                    f"{1e3 * sdpa:.1f} ms (PyTorch SDPA)", sdpa / ours, at_least=2.0)]


def shakespeare(bench: Bench, row: str) -> list[Measure]:
    """examples/shakespeare.json from start to validation loss against the same run under PyTorch"""
    steps = ["--steps", "50"] if bench.words.quick else []
    theirs = lambda: peer(bench, "char_gpt.py", "examples/data/tinyshakespeare.txt", *steps)
    results = bench.in_turn(row, {OURS: lambda: our_shakespeare(bench), "PyTorch": theirs})
    ours, pytorch = (bench.pick(results[side], "seconds", min) for side in results)
    our_loss, their_loss = (results[side][-1]["eval_loss"] for side in results)
    # The loss is the worst of the rounds: a fast run that learns less has not done the same work.
    worst = max(result["eval_loss"] for result in results[OURS])
    return [Measure(row, "Shakespeare run, wall time", f"{ours:.1f} s, loss {our_loss:.4f}",
                    f"{pytorch:.1f} s, loss {their_loss:.4f} (PyTorch)", ours / pytorch, at_most=0.25, goal=1 / 6),
            Measure(row, "Shakespeare run, validation loss", f"{worst:.4f}", "bound 1.915", worst / 1.915, at_most=1.0)]


def threads(bench: Bench, row: str) -> list[Measure]:
    """GPT-2 124M in bf16 on two threads against one"""
    path = run_file(bench, "GPT-2 124M", True)
    results = bench.in_turn(row, {f"{count} threads": lambda count=count: our_steps(bench, path, threads=count)
                                  for count in (2, 1)})
    two, one = (bench.pick(results[side], "tokens_per_second") for side in results)
    return [Measure(row, "GPT-2 124M, bf16: two threads against one", f"{two:.0f} tok/s", f"{one:.0f} tok/s", two / one,
                    at_least=1.8, goal=1.95)]


def generation(bench: Bench, row: str) -> list[Measure]:
    """greedy generation of GPT-2 124M in bf16 against what reading its weights once a token would take"""
    results = bench.in_turn(row, {OURS: lambda: our_generation(bench)})[OURS]
    ours = bench.pick(results, "tokens_per_second")
    bytes_per_second, weight_bytes = bench.pick(results, "memory_bytes_per_second"), results[0]["weight_bytes"]
    bound = bytes_per_second / weight_bytes
    return [Measure(row, "greedy generation, GPT-2 124M, bf16, one sequence", f"{ours:.1f} tok/s",
                    f"{bound:.1f} tok/s ({bytes_per_second / 1e9:.1f} GB/s over {weight_bytes / 1e6:.0f} MB)",
                    ours / bound, at_least=0.6, goal=0.8)]


def overhead(bench: Bench, row: str) -> list[Measure]:
    """the part of a GPT-2 124M step that is in no kernel: tape, allocation, scheduling"""
    path = run_file(bench, "GPT-2 124M", True)
    results = bench.in_turn(row, {OURS: lambda: our_steps(bench, path, "--profile")})[OURS]
    for result in results:
        kernels = sum(kernel["seconds"] for kernel in result["kernels"])
        result["share"] = 1 - kernels / result["counted_seconds"]
    share = bench.pick(results, "share", min)
    step = results[0]["step_seconds"]
    return [Measure(row, "GPT-2 124M, bf16: tape, allocation, scheduling", f"{1e3 * share * step:.2f} ms",
                    f"{1e3 * step:.0f} ms, the step", share, at_most=0.01)]


def plan(bench: Bench, row: str) -> list[Measure]:
    """the memory that `bessemer plan` predicts against the measured peak, with and without recompute of every kind"""
    measures = []
    cases = [(model, bf16, recompute) for model in MODELS for bf16 in (True, False) for recompute in (False, True)]
    cases += [(model, True, recompute) for model in MODELS for recompute in RECOMPUTE]
    for model, bf16, recompute in cases:
        path = run_file(bench, model, bf16, recompute)
        report = json.loads(run([bench.program, "plan", path, "--json"]).stdout)
        predicted = sum(report["memory_per_rank"].values())
        # Memory does not vary from step to step: two of them tell.
        measured = our_steps(bench, path, steps=2)
        bench.runs.append({"row": row, "side": path.stem, "predicted_bytes": predicted, **measured})
        peak = measured["peak_memory_bytes"]
        say(f"{row}, {path.stem}: predicted {predicted / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
        kind = "" if recompute is True else f" {json.dumps(recompute)}"
        title = f"plan: {model}, {'bf16' if bf16 else 'f32'}{f', recompute{kind}' if recompute else ''}"
        measures.append(Measure(row, title, f"{predicted / 2**20:.0f} MiB", f"{peak / 2**20:.0f} MiB measured",
                                predicted / peak, at_least=0.95, at_most=1.05))
    return measures


ROWS: dict[str, Callable[[Bench, str], list[Measure]]] = {
    "gemm": gemm, "gpt2-bf16": gpt2_bf16, "gpt2-f32": gpt2_f32, "gpt2-avx2": gpt2_avx2, "llama-bf16": llama_bf16,
    "attention": attention, "shakespeare": shakespeare, "threads": threads, "generation": generation,
    "overhead": overhead, "plan": plan,
}


# --- the report ---


def conditions(bench: Bench) -> dict[str, Any]:
    """What the figures depend on: machine, its peaks, versions, how it was measured."""
    info = json.loads(run([bench.program, "info", "--json"]).stdout)
    header = run([kernel_bench(bench, "gemm"), 1, "avx512_bf16", "none of them"]).stdout.splitlines()[0]
    peaks = [float(number) for number in re.findall(r"([\d.]+) GFLOP/s", header)]
    changed = bool(run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    return {
        "date": datetime.date.today().isoformat(),
        "processor": machine.processor(),
        "cores": machine.num_cores(),
        "instruction_sets": [entry["name"] for entry in info["cpu_features"] if entry["found"]],
        "memory_bytes": machine.memory_bytes(),
        "peak_gflops_per_core": dict(zip(("f32", "bf16"), peaks)),
        "load_before": os.getloadavg()[0],
        "commit": run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + (" with changes" if changed else ""),
        "threads": bench.words.threads, "rounds": bench.rounds, "statistic": bench.words.statistic,
        "steps": bench.steps,
    }


def write_reports(bench: Bench, state: dict[str, Any], measures: list[Measure], failures: list[str]) -> None:
    """Prints the table, and writes what --json and --markdown ask for."""
    lines = [*described(state, bench.runs), "", *table(measures, bench.words.quick)]
    lines += [f"\nFailed: {failure}" for failure in failures]
    print("\n".join(lines))
    if path := bench.words.markdown:
        options = f"--rounds {bench.rounds} --steps {bench.steps} --threads {bench.words.threads}"
        command = f"`scripts/benchmark.py {' '.join(bench.words.rows)} {options}{' --quick' * bench.words.quick}`"
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n".join(["", f"## {state['date']}", "", command, "", *lines, ""]))
    if path := bench.words.json:
        rows = [{**asdict(measure), "holds": measure.holds} for measure in measures]
        record = {"conditions": state, "measures": rows, "failures": failures, "runs": bench.runs}
        Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<12} {row.__doc__}" for name, row in ROWS.items())
    words = argparse.ArgumentParser(description=__doc__, epilog=f"rows:\n{listed}",
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("rows", nargs="*", metavar="ROW", help="what to run; by default every row")
    words.add_argument("--rounds", type=positive, default=2, help="times each side runs (default 2)")
    words.add_argument("--statistic", choices=["best", "median"], default="best", help="of the rounds (default best)")
    words.add_argument("--steps", type=positive, default=15, help="counted steps of a training run (default 15)")
    words.add_argument("--threads", type=positive, default=2, help="threads of both sides (default 2)")
    words.add_argument("--quick", action="store_true", help="one round of a few steps; ratios are not judged")
    words.add_argument("--no-build", action="store_true", help="take the programs that are built already")
    words.add_argument("--json", metavar="FILE", help="write every result to FILE")
    words.add_argument("--markdown", metavar="FILE", help="append the table to FILE")
    words = words.parse_args()
    if unknown := [row for row in words.rows if row not in ROWS]:
        sys.stderr.write(f"benchmark.py: no row is called {', '.join(unknown)}; the rows are {', '.join(ROWS)}\n")
        sys.exit(2)
    words.rows = words.rows or list(ROWS)
    words.target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    words.cargo_env = {**os.environ, "CARGO_TARGET_DIR": str(words.target)}
    return words


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main() -> None:
    words = arguments()
    measures, failures = [], []
    with tempfile.TemporaryDirectory(prefix="bessemer-benchmark-") as scratch:
        bench = Bench(words, Path(scratch))
        try:
            if not words.no_build:
                run(["cargo", "build", "--release"], env=words.cargo_env)
            state = conditions(bench)
        except (Failed, OSError) as failure:
            sys.exit(f"benchmark.py: {failure}")
        for row in words.rows:
            # The other rows are worth their figures even if one cannot run.
            try:
                measures += ROWS[row](bench, row)
            except (Failed, OSError, ValueError, LookupError) as failure:
                failures.append(f"{row}: {failure}")
                say(failures[-1])
        write_reports(bench, state, measures, failures)
    missed = not words.quick and not all(measure.holds for measure in measures)
    sys.exit(bool(failures) or missed)


if __name__ == "__main__":
    main()

"""The lines of a benchmark report: for scripts/benchmark.py."""
from dataclasses import dataclass
from typing import Any


@dataclass
class Measure:
    """One line of the table: `ratio` is what must lie between `at_least` and `at_most`."""

    row: str
    work: str
    ours: str
    against: str
    ratio: float
    at_least: float | None = None
    at_most: float | None = None
    goal: float | None = None

    @property
    def holds(self) -> bool:
        # A NaN holds nothing.
        low = self.at_least is None or self.ratio >= self.at_least
        return low and (self.at_most is None or self.ratio <= self.at_most)

    @property
    def asked(self) -> str:
        bounds = [("at least", self.at_least), ("at most", self.at_most)]
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None) or "-"


def described(state: dict[str, Any], runs: list[dict]) -> list[str]:
    """The conditions in words."""
    peaks, torch = state["peak_gflops_per_core"], {result["torch"] for result in runs if "torch" in result}
    return [
        f"{state['processor']}, {state['cores']} cores, {state['memory_bytes'] / 2**30:.0f} GiB; instruction sets "
        f"{', '.join(state['instruction_sets'])}; measured peaks of a core {peaks['f32']:.0f} GFLOP/s in f32, "
        f"{peaks['bf16']:.0f} in bf16. Load before the first run {state['load_before']:.2f}.",
        f"Commit {state['commit']}{''.join(', PyTorch ' + version for version in sorted(torch))}; {state['threads']} "
        f"threads, {state['steps']} steps, {state['statistic']} of {state['rounds']} rounds in turn.",
    ]


def table(measures: list[Measure], quick: bool) -> list[str]:
    lines = ["| work | ours | against | ratio | asked | goal | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for line in measures:
        goal = "-" if line.goal is None else f"{line.goal:.3g}"
        verdict = "quick" if quick else "holds" if line.holds else "MISSED"
        cells = [line.work, line.ours, line.against, f"{line.ratio:.3f}", line.asked, goal, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return lines

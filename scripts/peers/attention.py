#!/usr/bin/env python3
"""Causal attention forward and backward under PyTorch: the peer of `cargo bench -p bessemer-kernels --bench attention`.

    python attention.py [--length N] [--heads N] [--head-dim N] [--seconds S] [--threads N]

One row in bf16. Queries, keys and values lie head by head, the layout that PyTorch's kernel likes best. Both figures
are the shortest of several runs, as in our bench.
"""
import argparse
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from common import report, use_threads


def shortest(run, seconds):
    """The shortest of at least five runs, and of as many as `seconds` have room for."""
    begin, times = time.perf_counter(), []
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--length", type=int, default=4096)
    words.add_argument("--heads", type=int, default=12)
    words.add_argument("--head-dim", type=int, default=64)
    words.add_argument("--seconds", type=float, default=0.5)
    words.add_argument("--threads", type=int, default=0)
    words = words.parse_args()
    use_threads(words.threads)
    torch.manual_seed(0)
    shape = (1, words.heads, words.length, words.head_dim)
    qkv = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    dout = torch.randn(shape).bfloat16()
    forward = shortest(lambda: scaled_dot_product_attention(*qkv, is_causal=True), words.seconds)
    out = scaled_dot_product_attention(*qkv, is_causal=True)
    backward = shortest(lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True), words.seconds)
    report(forward_seconds=forward, backward_seconds=backward, seconds=forward + backward)


if __name__ == "__main__":
    main()

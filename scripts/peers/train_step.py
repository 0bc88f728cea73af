#!/usr/bin/env python3
"""Optimizer steps of a Transformers model under PyTorch, on random tokens: the peer of `bessemer bench`.

    python train_step.py CONFIG_JSON {f32,autocast,bf16} [--compile] [--batch N] [--length N] [--steps N] [--threads N]

CONFIG_JSON is a model's `config.json`. A step is forward, backward, gradients clipped to norm 1, AdamW. `autocast`
computes in bf16 with weights in f32, as we do; `bf16` holds weights and optimizer state in bf16 as well, which is less
work than ours. The first step, in which --compile compiles, is not counted; the figures are medians of the others.
"""
import argparse
import contextlib
import json
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from common import peak_memory_bytes, report, use_threads


def arguments():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("config", metavar="CONFIG_JSON")
    words.add_argument("mode", choices=["f32", "autocast", "bf16"])
    words.add_argument("--compile", action="store_true")
    words.add_argument("--batch", type=int, default=4)
    words.add_argument("--length", type=int, default=256)
    words.add_argument("--steps", type=int, default=6)
    words.add_argument("--threads", type=int, default=0)
    return words.parse_args()


def build(path, dtype):
    """The model of a configuration with random weights, in training mode."""
    with open(path, encoding="utf-8") as file:
        config = AutoConfig.for_model(**json.load(file))
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.train(), config.vocab_size


def main():
    words = arguments()
    use_threads(words.threads)
    torch.manual_seed(0)
    model, vocab_size = build(words.config, torch.bfloat16 if words.mode == "bf16" else torch.float32)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, fused=True)
    if words.compile:
        model = torch.compile(model)
    autocast = torch.autocast("cpu", torch.bfloat16) if words.mode == "autocast" else contextlib.nullcontext()
    seconds = []
    for _ in range(words.steps + 1):
        tokens = torch.randint(vocab_size, (words.batch, words.length))
        start = time.perf_counter()
        with autocast:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    step_seconds = statistics.median(seconds[1:])
    report(
        mode=words.mode, compiled=words.compile, parameters=sum(p.numel() for p in parameters), loss=loss.item(),
        step_seconds=step_seconds, tokens_per_second=words.batch * words.length / step_seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )


if __name__ == "__main__":
    main()

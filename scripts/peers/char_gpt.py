#!/usr/bin/env python3
"""The run of examples/shakespeare.json under PyTorch: a character GPT trained, then validated on the whole last tenth.

    python char_gpt.py TEXT [--steps N] [--threads N]

The sizes and settings below are those of the example. The clock starts after the imports and stops when the validation
loss is known. In f32: the model is so small that autocast's conversions cost more than bf16 products save.
"""
import argparse
import math
import time

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from common import peak_memory_bytes, report, use_threads

LENGTH, BATCH = 64, 12
RATE, LEAST_RATE, WARMUP_STEPS = 1e-3, 1e-4, 100
VALIDATION_ROWS = 64  # of one forward pass


def read(path):
    """Character ids of the first nine tenths and of the last, and the number of different characters."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    characters = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([characters[character] for character in text])
    train, valid = ids.tensor_split([len(ids) * 9 // 10])
    return train, valid, len(characters)


def build(vocab_size):
    sizes = {"n_positions": LENGTH, "n_embd": 128, "n_layer": 4, "n_head": 4}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, use_cache=False, **sizes, **no_dropout))


def adamw(model):
    """AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)


def rate(step, steps):
    """Linear warm-up, then a cosine down to LEAST_RATE; `step` counts from 0."""
    if step < WARMUP_STEPS:
        return RATE * (step + 1) / (WARMUP_STEPS + 1)
    done = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return LEAST_RATE + (RATE - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2


def loss_of(model, rows, reduction="mean"):
    """Every token of `rows`, [B, LENGTH + 1], but the first is predicted from those before it."""
    logits = model(input_ids=rows[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


def train(model, tokens, steps):
    optimizer = adamw(model)
    windows = tokens.unfold(0, LENGTH + 1, 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        loss_of(model, windows[torch.randint(len(windows), (BATCH,))]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def validate(model, tokens):
    """Mean loss over windows that overlap by one token, so that each is predicted once."""
    model.eval()
    windows = tokens.unfold(0, LENGTH + 1, LENGTH)
    total = sum(loss_of(model, rows, "sum").item() for rows in windows.split(VALIDATION_ROWS))
    return total / (len(windows) * LENGTH)


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("text", metavar="TEXT")
    words.add_argument("--steps", type=int, default=2000)
    words.add_argument("--threads", type=int, default=0)
    words = words.parse_args()
    use_threads(words.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    train_tokens, valid_tokens, vocab_size = read(words.text)
    model = build(vocab_size)
    train(model, train_tokens, words.steps)
    loss = validate(model, valid_tokens)
    report(seconds=time.perf_counter() - start, eval_loss=loss, peak_memory_bytes=peak_memory_bytes())


if __name__ == "__main__":
    main()

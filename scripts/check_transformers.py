#!/usr/bin/env python3
"""Opens model folders with Transformers and holds what it computes against `bessemer score`.

    pip install torch "transformers>=4.56"
    python scripts/check_transformers.py MODEL_FOLDER [...] [--bessemer PATH]

MODEL_FOLDER is in the Hugging Face layout: a run's `model/` or what `bessemer export` made.
Three things must hold:
- Transformers finds every weight it wants in the folder, with the shape it wants, and no other;
- the log-probability of every token of fixed random rows agrees to 1e-4, both sides computing in float32 (weights
  stored in 16 bits are widened);
- with a `tokenizer.json`: texts become the same ids, those ids become the texts again (unless a normalizer changes
  them), and generated ids become the same text.

Prints a line for each folder, then what disagrees; exits 0 when nothing does.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BOUND = 1e-4
ROWS, LONGEST_ROW = 3, 256
TEXTS = [
    "ROMEO:\nBut, soft! what light through yonder window breaks?\n\nIt is the east, and Juliet is the sun.",
    "  two spaces, a\ttab, \r\n three\n\n\nnewlines and a space at the end ",
    "I'll say it's 3.14159, won't I? (2026-01-31) x_1 += 0x7f; // code",
    "caf\u00e9 cafe\u0301 na\u00efve \u00a0\u2014 \u4f60\u597d \u043f\u0440\u0438\u0432\u0435\u0442 "
    "\U0001f44b\U0001f3fd \U0001f9d1\u200d\U0001f680",
    "a",
]


class Refused(Exception):
    """The program did not do what it was asked for."""


def bessemer(program, *words):
    """Runs a command of the program and returns the JSON it prints."""
    done = subprocess.run([program, *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"bessemer {words[0]} exits {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def load(folder):
    """The model in float32, and a fault for each kind of weight that is not as Transformers wants it."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    faults = [f"{kind}: {sorted(map(str, report[kind]))}"
              for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if report.get(kind)]
    return model.eval(), faults


def largest_difference(program, folder, model):
    """The largest difference between two log-probabilities of one token, and the number of tokens compared."""
    config, pick = model.config, random.Random(0)
    length = min(config.max_position_embeddings, LONGEST_ROW)
    rows = [[pick.randrange(config.vocab_size) for _ in range(length)] for _ in range(ROWS)]
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "rows.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"input_ids": row}) + "\n" for row in rows)
        ours = bessemer(program, "score", folder, "--tokens", path)["logprobs"]
    ids = torch.tensor(rows)
    with torch.no_grad():
        theirs = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    difference = (torch.tensor([row[1:] for row in ours]) - theirs).abs()
    assert difference.shape == (ROWS, length - 1)
    # A NaN on either side must not pass: it compares false with everything.
    return difference.nan_to_num(nan=float("inf")).max().item(), difference.numel()


def known_part(tokenizer, text, positions):
    """`text` without the characters the tokenizer has no id for, cut to what the model has positions for."""
    encode = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]
    text = "".join(c for c in text if encode(c) and tokenizer.unk_token_id not in encode(c))
    while len(encode(text)) > positions:
        text = text[:-1]
    return text, encode(text)


def compare_tokenizers(program, folder, model):
    """Faults, and the number of texts compared."""
    if not os.path.exists(os.path.join(folder, "tokenizer.json")):
        return [], 0
    tokenizer, faults = AutoTokenizer.from_pretrained(folder), []
    decode = lambda ids, **how: tokenizer.decode(ids, clean_up_tokenization_spaces=False, **how)
    if len(tokenizer) > model.config.vocab_size:
        faults.append(f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}")
    texts = [known_part(tokenizer, text, model.config.max_position_embeddings) for text in TEXTS]
    texts = [(text, theirs) for text, theirs in texts if text]
    for text, theirs in texts:
        ours = bessemer(program, "score", folder, "--text", text)["tokens"][0]
        if ours != theirs:
            faults.append(f"ids of {text!r}: {ours}, in Transformers {theirs}")
        # A normalizer may change a text for good, as NFKC does.
        if tokenizer.backend_tokenizer.normalizer is None and decode(theirs) != text:
            faults.append(f"{text!r} comes back from its ids as {decode(theirs)!r}")
    prompt = texts[-1][0]
    made = bessemer(program, "generate", folder, "--prompt", prompt, "--max-new-tokens", "16", "--temperature", "1",
                    "--seed", "0")
    if decode(made["tokens"], skip_special_tokens=True) != made["text"]:
        faults.append(f"text of {made['tokens']}: {made['text']!r}, in Transformers {decode(made['tokens'])!r}")
    return faults, len(texts)


def check(program, folder):
    """Prints the figures of one folder and returns its faults."""
    model, faults = load(folder)
    difference, tokens = largest_difference(program, folder, model)
    if difference >= BOUND:
        faults.append(f"a log-probability is off by {difference:.2e}; the bound is {BOUND:.0e}")
    tokenizer_faults, texts = compare_tokenizers(program, folder, model)
    of_texts = f"{texts} texts compared" if texts else "no tokenizer"
    print(f"{folder}: largest difference of {tokens} log-probabilities {difference:.2e}; {of_texts}", flush=True)
    return faults + tokenizer_faults


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folders", nargs="+", metavar="MODEL_FOLDER")
    words.add_argument("--bessemer", default=os.path.join(root, "target/release/bessemer"), metavar="PATH")
    words = words.parse_args()
    if not os.path.exists(words.bessemer):
        sys.exit(f"{words.bessemer} does not exist; build it with `cargo build --release` or give --bessemer PATH")
    bad = False
    for folder in words.folders:
        if not os.path.exists(os.path.join(folder, "config.json")):
            sys.exit(f"{folder} has no config.json; give a folder in the Hugging Face layout, as a run's model/ is")
        try:
            faults = check(words.bessemer, folder)
        except Refused as refusal:
            faults = [str(refusal)]
        for fault in faults:
            print(f"{folder}: {fault}")
        bad |= bool(faults)
    sys.exit(bad)


if __name__ == "__main__":
    main()

"""A GPT-2 folder with random bf16 weights, written by the standard library alone: for scripts/benchmark.py."""
import json
import math
import os
import struct
from pathlib import Path

# A bf16 number from two random bytes: the high one keeps its sign bit and becomes 0x3c or 0xbc, so that the magnitude
# lies between 2^-7 and 2^-5, about GPT-2's own initialisation of 0.02.
HIGH_BYTE = bytes((byte & 0x80) | 0x3C for byte in range(256))


def write(folder: Path, config: dict) -> int:
    """Writes `config.json` and `model.safetensors` for a GPT-2 `config`; returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # Random weights must not end a text early.
    config = {**config, "architectures": ["GPT2LMHeadModel"], "bos_token_id": None, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, size = {}, 0
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        end = size + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, end]}
        size = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            file.write(values(name, math.prod(shape)))
    return size


def tensor_shapes(config: dict) -> dict[str, list[int]]:
    width = config["n_embd"]
    shapes = {"wte.weight": [config["vocab_size"], width], "wpe.weight": [config["n_positions"], width]}
    for layer in range(config["n_layer"]):
        shapes |= norm(f"h.{layer}.ln_1", width) | norm(f"h.{layer}.ln_2", width)
        shapes |= linear(f"h.{layer}.attn.c_attn", width, 3 * width) | linear(f"h.{layer}.attn.c_proj", width, width)
        shapes |= linear(f"h.{layer}.mlp.c_fc", width, 4 * width) | linear(f"h.{layer}.mlp.c_proj", 4 * width, width)
    shapes |= norm("ln_f", width)
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def norm(name: str, width: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def linear(name: str, num_in: int, num_out: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [num_in, num_out], f"{name}.bias": [num_out]}


def values(name: str, count: int) -> bytes:
    """Little-endian bf16: norms are 1, biases 0, matrices random."""
    if name.endswith("bias"):
        return bytes(2 * count)
    if ".ln_" in name:
        return b"\x80\x3f" * count
    numbers = bytearray(2 * count)
    numbers[0::2] = os.urandom(count)
    numbers[1::2] = os.urandom(count).translate(HIGH_BYTE)
    return bytes(numbers)

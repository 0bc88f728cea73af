"""Regenerates crates/models/tests/fixtures/{gpt2,llama}-classifier from PyTorch and Transformers.

    pip install torch transformers safetensors
    python scripts/make_classifiers.py [crates/models/tests/fixtures]

Each is a tiny classifier of three classes with random weights (config.json, model.safetensors as save_pretrained writes them) with
  expected.json          rows without padding (one ends in padding of its own), their labels and distributions; logits of the
                         padded batch; the mean cross-entropy for the labels, for the distributions, and for the labels
                         smoothed by Transformers' LabelSmoother(0.1)
  expected.safetensors   grad.hard.NAME and grad.soft.NAME of the first two losses
All arithmetic is float32 on one CPU thread with eager attention and no dropout.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.trainer_pt_utils import LabelSmoother

PAD = 3
LABELS = {"id2label": {0: "negative", 1: "neutral", 2: "positive"}, "label2id": {"negative": 0, "neutral": 1, "positive": 2}}
MODELS = {
    "gpt2-classifier": dict(model_type="gpt2", vocab_size=23, n_embd=16, n_layer=1, n_head=2, n_positions=16, initializer_range=0.3,
                            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=PAD),
    "llama-classifier": dict(model_type="llama", vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
                             rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=PAD),
}
ROWS = [[5, 6, 7, 8, 9], [10], [11, 4, 12, 13, 14, 15, 16, 17, 18], [19, 20, PAD, 21, PAD, PAD]]
CLASSES = [0, 2, 1, 2]
PROBS = [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.125, 0.75, 0.125], [0.3, 0.3, 0.4]]


def build(name, out):
    torch.manual_seed(0)
    kwargs = dict(MODELS[name], problem_type="single_label_classification", **LABELS)
    config = AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():  # biases and norm weights away from their neutral start
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    longest = max(map(len, ROWS))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ROWS])
    labels, probs = torch.tensor(CLASSES), torch.tensor(PROBS)
    tensors, losses = {}, {}
    for kind in ["hard", "soft"]:
        model.zero_grad(set_to_none=True)
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
        loss = output.loss if kind == "hard" else torch.nn.functional.cross_entropy(output.logits, probs)
        loss.backward()
        losses[kind] = loss.item()
        tensors |= {f"grad.{kind}.{n}": p.grad.detach().clone().contiguous() for n, p in model.named_parameters()}
    losses["smoothed"] = LabelSmoother(epsilon=0.1)({"logits": output.logits}, labels).item()
    save_file(tensors, os.path.join(folder, "expected.safetensors"))
    expected = {"rows": ROWS, "labels": CLASSES, "class_probs": PROBS, "logits": output.logits.tolist(), "losses": losses}
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump(expected, file, indent=1)
    print(name, losses)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for model_name in MODELS:
        build(model_name, sys.argv[1] if len(sys.argv) > 1 else "crates/models/tests/fixtures")

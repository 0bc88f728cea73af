#!/usr/bin/env python3
"""Opens the event files of a run with TensorBoard's own reader and holds every scalar against `metrics.jsonl`.

    pip install tensorboard
    python scripts/check_tensorboard.py OUTPUT EVENTS

OUTPUT is the run's folder, EVENTS the folder of its event files (tensorboard.output_path/tensorboard.job_name).
For every tag the reader must give the points that `metrics.jsonl` tells of, in order, once each, with values equal to
float32, and no other tags may be there. The x axis is samples: the number of them a step takes is read from run.json
(runs with a batch ramp are not checked). Prints what was compared; exits 0 when everything agrees.
"""
import argparse
import json
import os
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def points(line):
    """The tags and values of one line of metrics.jsonl."""
    for name, value in line.items():
        if name == "step":
            continue
        if name == "breakdown_seconds":
            for part, seconds in value.items():
                yield f"Train/Samples/elapsed_time_ms_{part}", 1e3 * seconds
            yield "Train/Samples/elapsed_time_ms_backward_inner", 1e3 * value["backward"]
            yield "Train/Samples/elapsed_time_ms_backward_allreduce", 0.0
        elif name == "memory_bytes":
            for kind, held in value.items():
                yield f"Memory/Samples/{kind}", held
        elif name == "norms":
            for block, (gradient, weight) in value.items():
                yield f"Norms/gradient/{block}", gradient
                yield f"Norms/weight/{block}", weight
        elif name.startswith("eval_"):
            yield "/".join(["Validation/Samples", *filter(None, [line.get("eval_set")]), name[5:]]), value
        else:
            yield ("Train/Samples/train_loss" if name == "loss" else f"Train/Samples/{name}"), value


def told(output):
    """By tag, the points (samples, value) that metrics.jsonl tells of."""
    with open(os.path.join(output, "run.json"), encoding="utf-8") as file:
        samples = json.load(file)["train_batch_size"]
    curves = {}
    with open(os.path.join(output, "metrics.jsonl"), encoding="utf-8") as file:
        for line in map(json.loads, file):
            for tag, value in points(line):
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    rounded = struct.unpack("f", struct.pack("f", value))[0]
                    curves.setdefault(tag, []).append((samples * line["step"], rounded))
    return curves


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("output", metavar="OUTPUT")
    words.add_argument("events", metavar="EVENTS")
    words = words.parse_args()
    # 0: keep every point, where the reader's default is a sample of them.
    reader = EventAccumulator(words.events, size_guidance={"scalars": 0})
    reader.Reload()
    found = {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    want = told(words.output)
    faults = [f"{tag}: only in metrics.jsonl" for tag in want.keys() - found.keys()]
    faults += [f"{tag}: only in the event files" for tag in found.keys() - want.keys()]
    for tag in want.keys() & found.keys():
        if want[tag] != found[tag]:
            faults.append(f"{tag}: TensorBoard reads {found[tag]}, metrics.jsonl says {want[tag]}")
    print(f"{words.events}: {len(found)} tags, {sum(map(len, found.values()))} scalars compared")
    for fault in sorted(faults):
        print(f"{words.events}: {fault}")
    sys.exit(bool(faults) or not found)


if __name__ == "__main__":
    main()

"""What the peer programs share: threads, peak memory, and the line of JSON they end with."""
import json

import torch


def use_threads(count):
    """Lets PyTorch run on `count` threads; 0 leaves its own choice."""
    if count:
        torch.set_num_threads(count)


def peak_memory_bytes():
    """Highest resident memory of this process, the figure that `bessemer bench` gives of itself.

    Not `ru_maxrss`: it survives exec, so a large parent would show in its child.
    """
    with open("/proc/self/status", encoding="ascii") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def report(**figures):
    """Prints the result: what was measured, with the versions and threads it was measured on."""
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **figures}))

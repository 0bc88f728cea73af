"""What this machine is and how fast it reads memory: for scripts/benchmark.py. Linux."""
import ctypes
import mmap
import os
import threading
import time

BUFFER_BYTES = 256 << 20  # a thread; far larger than any cache
TRIES = 20


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Model name with family and model number: virtual machines often hide the name."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", "unknown processor")
    return f"{name} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_bandwidth(num_threads: int) -> float:
    """Bytes a second that `num_threads` threads together read from memory: the fastest of several passes.

    The C library's search for a byte that is not there: vector loads and nothing else. Python's lock is free meanwhile.
    """
    library = ctypes.CDLL(None)
    library.memchr.argtypes, library.memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    buffers = [filled_buffer() for _ in range(num_threads)]
    gate, passes = threading.Barrier(num_threads), [[] for _ in range(num_threads)]

    def read(index: int) -> None:
        for _ in range(TRIES):
            gate.wait()
            start = time.perf_counter()
            assert library.memchr(buffers[index][1], 0, BUFFER_BYTES) is None
            passes[index].append((start, time.perf_counter()))

    workers = [threading.Thread(target=read, args=(index,)) for index in range(num_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = [max(end for _, end in one) - min(start for start, _ in one) for one in zip(*passes)]
    return num_threads * BUFFER_BYTES / min(seconds)


def filled_buffer() -> tuple[mmap.mmap, int]:
    """Memory that is written, since pages that never were are all one page of zeros, and its address."""
    # Private: shared memory, mmap's default, gets no huge pages.
    buffer = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            buffer.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages: small ones then
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    ctypes.memset(address, 1, BUFFER_BYTES)
    return buffer, address

"""What a process asks for so that work on the CPU is fast, and as fast the next time."""

import ctypes
import os
import sys

# How often a thread of OpenMP looks for the others before it sleeps. By default one that waits keeps its core for
# milliseconds, which another process there lacks: beside one, training took 20 times as long.
SPINS = "2000"
# By default glibc gives the memory of a freed tensor back, or not, as it happens to lie: the same forward pass took up
# to 1.3 times as long, and a ratio of two was between 0.9 and 1.4 from process to process.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, BLOCK = 2**31 - 1, 2**25  # bytes that are kept in all, and of one block: the most that glibc takes


def configure() -> None:
    """Threads that wait give up their cores, and freed memory is kept, unless the environment says otherwise.

    To be called before torch is loaded. It asks this of Linux, elsewhere of nobody.
    """
    if sys.platform != "linux":
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Other C libraries have none.
    if mallopt and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, BLOCK)


def set_threads(threads: int | None) -> None:
    """Work on so many threads, unless None or the environment says otherwise."""
    if threads and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads)

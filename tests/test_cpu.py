"""Threads that wait, and memory that is freed, as a process of train.py and eval.py has them."""

import os
import subprocess
import sys

import pytest
from runs import ROOT

from mame_lab import cpu

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP_", "OMP_", "MALLOC_"))}
WAITING = """
import os, sys
from mame_lab import cli
cli.run(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))
"""
# Pages of memory that Linux hands out for one block of 16 MB after the other, each freed before the next.
FREEING = """
from resource import RUSAGE_SELF, getrusage
from mame_lab import cli

def blocks():
    for number in range(30):
        if number == 10:
            before = getrusage(RUSAGE_SELF).ru_minflt
        bytearray(2**24)[::4096] = bytes(2**12)
    print(getrusage(RUSAGE_SELF).ru_minflt - before)

cli.run(blocks)
"""
PAGES = 20 * 2**24 // 2**12

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks this of Linux")


def output(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("given", "then"),
    [({}, cpu.PATIENCE), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_give_up_their_cores_unless_the_environment_says_otherwise(given, then):
    assert output(WAITING, **given) == [str(then), "False"]


def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    assert int(output(FREEING)[0]) < PAGES / 10
    assert int(output(FREEING, MALLOC_MMAP_THRESHOLD_="65536")[0]) >= PAGES

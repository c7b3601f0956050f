"""Threads that wait, and memory that is freed, as a process of train.py and eval.py has them."""

import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT, TINY, compose_config

from mame_lab.runs import cpu

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("GOMP_", "OMP_", "MALLOC_"))}
WAITING = """
import os, sys
from mame_lab.runs import cli
cli.run(lambda: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules))
"""
# Pages of memory that Linux hands out for one block of 16 MB after the other, each freed before the next.
FREEING = """
from resource import RUSAGE_SELF, getrusage
from mame_lab.runs import cli

def blocks():
    for number in range(30):
        if number == 10:
            before = getrusage(RUSAGE_SELF).ru_minflt
        bytearray(2**24)[::4096] = bytes(2**12)
    print(getrusage(RUSAGE_SELF).ru_minflt - before)

cli.run(blocks)
"""
PAGES = 20 * 2**24 // 2**12

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asked of Linux")


def output(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@on_linux
@pytest.mark.parametrize(
    ("given", "then"),
    [({}, cpu.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_give_up_their_cores_unless_the_environment_says_otherwise(given, then):
    assert output(WAITING, **given) == [str(then), "False"]


@on_linux
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    assert int(output(FREEING)[0]) < PAGES / 10
    assert int(output(FREEING, MALLOC_MMAP_THRESHOLD_="65536")[0]) >= PAGES


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "then"), [(1, 1), (3, 3), (None, 2)])
def test_a_model_runs_on_the_threads_that_it_asks_for(threads, asked, then):
    cpu.set_threads(asked)
    assert torch.get_num_threads() == then


def test_the_environment_says_how_many_threads(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cpu.set_threads(1)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["train", "eval"])
def test_small_models_alone_ask_for_one_thread(entry_point, threads, tmp_path, monkeypatch, name):
    assert compose_config(name, []).model.threads == 1
    assert compose_config(name, ["model=vit_s"]).model.threads is None
    asked = []
    monkeypatch.setattr(cpu, "set_threads", asked.append)
    entry_point(name, tmp_path, *TINY)
    assert asked == [1]

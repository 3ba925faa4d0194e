"""Threads as the commands set them, each in a process of its own, for they are the whole process's."""

import subprocess
import sys

TINY = """
import torch
from concurrent.futures import ThreadPoolExecutor
from threed.machine import set_threads
count = set_threads()
small = torch.full((4096,), 1e-39)
def halved():
    return torch.exp(torch.full((4096,), -88.0)).count_nonzero().item(), (small * 0.5).count_nonzero().item()
with ThreadPoolExecutor(1) as pool:
    print(count, halved(), pool.submit(halved).result())
"""


def test_numbers_too_small_become_zero_in_every_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told = subprocess.run([sys.executable, "-c", TINY], capture_output=True, text=True, check=True).stdout
    assert told.split(maxsplit=1)[0] == "2"
    assert told.split(maxsplit=1)[1].strip() == "(0, 0) (0, 0)"

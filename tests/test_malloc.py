"""Freed memory that stays with the process."""

import subprocess
import sys

PROGRAM = """
import resource
from diffjax.malloc import free_unused_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"1" * 50_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

default = faults()
keep_freed_memory()
faults()
kept, held = faults(), resident()
free_unused_memory()
print(default, kept, held - resident())
"""


def test_arrays_that_are_made_again_and_again_are_mapped_once():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    default, kept, freed = map(int, done.stdout.split())
    assert default > 50_000  # pages of 4 KiB
    assert kept < 100
    assert freed * 4096 > 40e6

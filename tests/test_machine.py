"""What a process knows of its machine, and how it treats its memory."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from compress.machine import freed_memory_kept

NUMBERS = 16 * 1024**2  # 64 MiB: 16,384 pages


def faults_of_a_tensor() -> int:
    """Pages that the system had to find for a tensor that is made, filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(NUMBERS).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps as it likes")
def test_freed_memory_is_found_again_without_a_fault_while_it_is_kept_and_returned_afterwards():
    faults_of_a_tensor()
    outside = faults_of_a_tensor()
    with freed_memory_kept():
        faults_of_a_tensor()
        inside = faults_of_a_tensor()
    afterwards = faults_of_a_tensor()

    assert inside < outside / 10
    assert afterwards > outside / 2

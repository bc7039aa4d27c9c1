"""The kernels take nothing from memory that was freed: they agree where freed memory is overwritten at once.

A record of an array holds no reference to it in compiled code, so numba may free the array before the record is used.
Mostly the memory is still intact then; with these two settings glibc overwrites what is freed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

POISONED = {"MALLOC_PERTURB_": "85", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
SOAK = ["tests.parity.soak", "--loop", "--tables", "--index", "--cases", "60"]
PYTEST = ["pytest", "-q", "-p", "no:cacheprovider"]
RULE = "tests/sweep/test_exit_rules.py::test_a_rule_gives_the_same_trades_everywhere[too_old]"
LEVEL = "tests/sweep/test_level_rules.py::test_a_level_rule_gives_the_same_trades_everywhere[falling_target]"
POSITION = "tests/replay/test_reconcile.py::test_own_logs_have_no_difference"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can overwrite freed memory")
@pytest.mark.parametrize(
    "module",
    [SOAK, [*PYTEST, RULE], [*PYTEST, LEVEL], [*PYTEST, POSITION]],
    ids=["parameters", "exit rule", "level rule", "one position"],
)
def test_overwriting_freed_memory_changes_no_result(module: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *module],
        env={**os.environ, **POISONED},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

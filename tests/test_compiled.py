"""Compiled code: kept on disk for the next process, under a digest of all sources, numba's settings untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
import numba
before = numba.config.CACHE_DIR
import numpy as np
from replaylab.barriers import index
from replaylab.compiled import cache_folder, was_compiled
kernel = next(
    found for found in vars(index).values()
    if isinstance(found, numba.core.registry.CPUDispatcher) and found.stats.cache_path is not None
)
assert numba.config.CACHE_DIR == before
print(was_compiled(kernel), cache_folder(), kernel.stats.cache_path, kernel.__name__)
if len(sys.argv) > 1:
    (Path(kernel.stats.cache_path) / f"x.{kernel.__name__}-1.nbi").touch()
"""


def run(*arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_machine_code_is_kept_beside_copies_of_the_sources_under_a_digest(tmp_path):
    """A second process finds it; numba's own settings, which belong to the user, stay what they were."""
    ready, folder, kept, name = run("write", XDG_CACHE_HOME=str(tmp_path))
    assert ready == "False"
    assert Path(folder).parent == tmp_path / "replaylab" / "compiled"
    assert Path(kept) == Path(folder) / "barriers" / "__pycache__"
    assert f"def {name}(" in (Path(folder) / "barriers" / "index.py").read_text()
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "True"


def test_numbas_own_variable_decides_where(tmp_path):
    _, folder, kept, *_ = run(XDG_CACHE_HOME=str(tmp_path / "a"), NUMBA_CACHE_DIR=str(tmp_path / "b"))
    assert Path(folder).parent == tmp_path / "b"
    assert Path(kept).parent == tmp_path / "b"


def test_where_nothing_can_be_written_a_temporary_folder_does(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    _, folder, *_ = run(XDG_CACHE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert Path(folder).parent == tmp_path

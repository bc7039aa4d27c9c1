"""The committed sample is what its script makes."""

from __future__ import annotations

import runpy
from pathlib import Path

import polars as pl

SAMPLE = Path(__file__).parent.parent / "data"
BY_HAND = {"make_sample.py", "README.md"}


def files(folder: Path) -> dict[str, Path]:
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in found.items() if name not in BY_HAND and "__pycache__" not in name}


def test_make_sample_makes_the_committed_files(tmp_path: Path) -> None:
    """Same names, same bytes; Parquet files hold the same rows (their bytes depend on the version of the writer)."""
    runpy.run_path(str(SAMPLE / "make_sample.py"))["main"](tmp_path)
    made, committed = files(tmp_path), files(SAMPLE)
    assert sorted(made) == sorted(committed)
    for name, path in committed.items():
        if path.suffix == ".parquet":
            assert pl.read_parquet(path).equals(pl.read_parquet(made[name])), name
        else:
            assert path.read_bytes() == made[name].read_bytes(), f"{name}: run `make sample`"

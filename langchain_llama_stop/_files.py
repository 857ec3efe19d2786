"""Folders that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_empty(folder: Path) -> Path:
    """Returns the absolute path of a folder that is missing or empty.

    Raises:
        FileExistsError: If the folder is not empty, or is a file.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"`output_dir` is {folder}, which exists and is not empty: give another, or remove it."
        )
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write into, and moves it to `folder` in one step.

    Raises:
        FileExistsError: If `folder` is not empty, or is a file.
    """
    folder = require_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        made.chmod(0o755)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)

"""Folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_empty(folder: Path) -> Path:
    """Refuses a folder that holds something.

    Args:
        folder: The folder.

    Returns:
        Its absolute path.

    Raises:
        FileExistsError: If it does.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"`output_dir` is {folder}, which exists and is not empty: give another, or remove it."
        )
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which then takes its place in one step.

    Args:
        folder: Its place; nothing may be there.

    Yields:
        The folder to write into.

    Raises:
        FileExistsError: If something is there.
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

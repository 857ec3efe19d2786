"""Packages that are not installed by default."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

Progress = Callable[[str], None]

INSTALL_QUANTIZATION = (
    "pip install 'langchain-llama-stop[quantization]' ('.[quantization]' in a clone)"
)


def require(package: str, what: str, command: str) -> None:
    """Checks that an optional package is installed.

    Args:
        package: Name to import.
        what: The feature that needs it, as the error names it.
        command: The command that installs it.

    Raises:
        ImportError: If it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{what} needs the package {package}. Install it: {command}")

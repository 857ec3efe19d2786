"""The files of a fine-tuning: whole or not there, and found again after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from langchain_llama_stop._files import require_empty


class Run:
    """What a run keeps beside its output until that is written: settings, checkpoints.

    Attributes:
        folder: Where.
    """

    def __init__(self, output: Path, resume: bool) -> None:
        """Begins a run, or goes on with one.

        Args:
            output: The folder that will be written.
            resume: Whether to go on.

        Raises:
            FileExistsError: If the folder holds something, or an interrupted run lies beside it.
            FileNotFoundError: If there is no run to go on with.
        """
        output = require_empty(output)
        self.folder = output.with_name(output.name + ".checkpoints")
        ours = self.kept("run") is not None
        if not ours and self.folder.exists() and any(self.folder.iterdir()):
            raise FileExistsError(
                f"Checkpoints are kept in {self.folder}, which holds something else: give another "
                "`output_dir`, or remove it."
            )
        if resume and not self._begun():
            raise FileNotFoundError(
                f"`resume` is True, but no interrupted run lies in {self.folder}: leave it out."
            )
        if not resume and self._begun():
            raise FileExistsError(
                f"An interrupted run lies in {self.folder}: `resume=True` (`--resume`) goes on "
                "with it. Remove the folder to begin anew."
            )
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep("run", {"output": output.name})  # a folder that holds this is ours

    def check(self, settings: dict[str, Any], data: Any) -> None:
        """Keeps what the run is about.

        Args:
            settings: The settings.
            data: What it is trained on, as JSON.

        Raises:
            ValueError: If the run that is gone on with was about something else.
        """
        now = {**settings, "data": hashlib.sha256(json.dumps(data).encode()).hexdigest()}
        if before := self.kept("settings"):
            others = [
                f"`{name}` was {before.get(name)!r} and is {value!r}"
                if name != "data"
                else "the data are others"
                for name, value in now.items()
                if before.get(name) != value
            ]
            if others:
                raise ValueError(
                    "`resume` needs the settings and the data of the interrupted run, but "
                    f"{', '.join(others)}: give those, or remove {self.folder} to begin anew."
                )
        self.keep("settings", now)

    def checkpoint(self) -> str | None:
        """Finds the newest checkpoint that is whole: its trainer state is written last."""
        found = {
            int(folder.name.partition("-")[2]): folder
            for folder in self.folder.glob("checkpoint-*")
            if _read_json(folder / "trainer_state.json") is not None
        }
        return str(found[max(found)]) if found else None

    def kept(self, name: str) -> Any:
        """Gives what was kept under a name, as JSON reads it; None if nothing was."""
        return _read_json(self.folder / f"{name}.json")

    def keep(self, name: str, value: Any) -> None:
        """Keeps a JSON value under a name."""
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, self.folder / f"{name}.json")

    def __enter__(self) -> Run:
        """Returns itself."""
        return self

    def __exit__(self, error: object, *args: object) -> None:
        """Removes all of it, unless an error leaves something to go on with."""
        if error is None or not self._begun():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begun(self) -> bool:
        return self.checkpoint() is not None or self.kept("distilled") is not None


def _read_json(file: Path) -> Any:
    """What a file holds; None if it is not there or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

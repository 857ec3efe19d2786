"""The folder of a fine-tuning run: settings and checkpoints, so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from langchain_llama_stop._files import require_empty


class RunFolder:
    """What a run stores beside its output until the output is written.

    Attributes:
        path: The folder: the output's name and ".checkpoints".
    """

    def __init__(self, output: Path, resume: bool) -> None:
        """Starts a run, or resumes one.

        Args:
            output: The folder that will be written.
            resume: Whether to resume an interrupted run.

        Raises:
            FileExistsError: If the folder is not empty, or an interrupted run lies beside it.
            FileNotFoundError: If there is no run to resume.
        """
        output = require_empty(output)
        self.path = output.with_name(output.name + ".checkpoints")
        is_ours = self.load("run") is not None
        if not is_ours and self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(
                f"Checkpoints are kept in {self.path}, which holds something else: give another "
                "`output_dir`, or remove it."
            )
        if resume and not self._can_resume():
            raise FileNotFoundError(
                f"`resume` is True, but no interrupted run lies in {self.path}: leave it out."
            )
        if not resume and self._can_resume():
            raise FileExistsError(
                f"An interrupted run lies in {self.path}: `resume=True` (`--resume`) continues it. "
                "Remove the folder to start again."
            )
        if not resume:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.save("run", {"output": output.name})  # this file says that the folder is ours

    def check_settings(self, settings: dict[str, Any], data: Any) -> None:
        """Stores what the run trains, and on what; a resumed run has to do the same.

        Args:
            settings: The model and the options, as JSON.
            data: The conversations, as JSON.

        Raises:
            ValueError: If the interrupted run had other settings or data.
        """
        now = {**settings, "data": hashlib.sha256(json.dumps(data).encode()).hexdigest()}
        if before := self.load("settings"):
            changes = [
                f"`{name}` was {before.get(name)!r} and is {value!r}"
                if name != "data"
                else "the data are others"
                for name, value in now.items()
                if before.get(name) != value
            ]
            if changes:
                raise ValueError(
                    "`resume` needs the settings and the data of the interrupted run, but "
                    f"{', '.join(changes)}: give those, or remove {self.path} to start again."
                )
        self.save("settings", now)

    def checkpoint(self) -> str | None:
        """Finds the newest complete checkpoint: its trainer state is the file written last."""
        complete = {
            int(folder.name.partition("-")[2]): folder
            for folder in self.path.glob("checkpoint-*")
            if _read_json(folder / "trainer_state.json") is not None
        }
        return str(complete[max(complete)]) if complete else None

    def load(self, name: str) -> Any:
        """Returns the value stored under a name; None if there is none."""
        return _read_json(self.path / f"{name}.json")

    def save(self, name: str, value: Any) -> None:
        """Stores a JSON value under a name."""
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, self.path / f"{name}.json")

    def __enter__(self) -> RunFolder:
        """Returns itself."""
        return self

    def __exit__(self, error: object, *args: object) -> None:
        """Removes the folder, except after an error if the run can be resumed."""
        if error is None or not self._can_resume():
            shutil.rmtree(self.path, ignore_errors=True)

    def _can_resume(self) -> bool:
        return self.checkpoint() is not None or self.load("distilled") is not None


def _read_json(file: Path) -> Any:
    """The value in a file; None if the file is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

"""What the Hugging Face hub refuses, in one line with the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)


def hub_error(error: BaseException, argument: str, name: Any, revision: str | None) -> OSError:
    """Says why the hub did not give something, and what to do.

    Args:
        error: What transformers or huggingface_hub have raised.
        argument: The argument that names it: "model".
        name: Its id on the hub.
        revision: The revision asked for.

    Returns:
        The error to raise: one line.
    """
    reason, step = _reason(error, name, revision)
    return OSError(
        f"`{argument}` is '{name}', which the Hugging Face hub did not give: {reason}. {step}."
    )


def _reason(error: BaseException, name: Any, revision: str | None) -> tuple[str, str]:
    """The reason, and the next step."""
    from httpx import TransportError
    from huggingface_hub import constants, errors

    chain = list(causes(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any(isinstance(cause, OSError) and cause.errno in _FULL for cause in chain):
        folder = constants.HF_HUB_CACHE
        return (
            f"the disk of {folder} is full",
            "Free some space, or set the environment variable HF_HOME to a folder on another disk",
        )
    if has(errors.GatedRepoError):
        return (
            "it is gated, and you have no access yet",
            f"Accept its terms at https://huggingface.co/{name}, then pass a `token`, or log in by "
            "`hf auth login`",
        )
    if has(errors.RevisionNotFoundError):
        return (
            f"it has no `revision` '{revision}'",
            "Give a branch, tag or commit, or leave it out for the main branch",
        )
    if has(errors.RepositoryNotFoundError, errors.HFValidationError):
        return (
            "there is none of that name, or it is private",
            "Check the name ('owner/name'), pass a `token` for a private one, or give a local "
            "folder",
        )
    if has(errors.OfflineModeIsEnabled) or (
        constants.HF_HUB_OFFLINE and has(errors.LocalEntryNotFoundError)
    ):
        return (
            "HF_HUB_OFFLINE is set, and this machine has no copy",
            "Unset it and load it once, or give a local folder",
        )
    if has(errors.LocalEntryNotFoundError, TransportError):
        return (
            f"{constants.ENDPOINT} cannot be reached, and this machine has no copy",
            "Check the network and its proxy settings, or give a local folder",
        )
    return (
        " ".join(str(error).split()).rstrip("."),
        "Check the name and the network, pass a `token` for a private one, or give a local folder. "
        "Only safetensors weights are read",
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

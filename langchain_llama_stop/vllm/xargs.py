"""The EOS reward as arguments of a request to vLLM, written by the client, read by the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from langchain_llama_stop.ending.reward import EosReward

_NAME = "eos_reward"
_FIELDS = {f"{_NAME}_{f.name}": f for f in fields(EosReward) if f.name != "hindsight"}
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def reward_args(reward: EosReward | None) -> dict[str, Any]:
    """Writes the reward as a request's `vllm_xargs`.

    Args:
        reward: The options; None for no reward. Hindsight is left out: a server gives tokens away
            as they come.

    Returns:
        Strings and numbers by name; empty for None.
    """
    if reward is None:
        return {}
    given = {name: (getattr(reward, f.name), f.default) for name, f in _FIELDS.items()}
    changed = {name: value for name, (value, default) in given.items() if value != default}
    # vLLM takes no booleans over HTTP.
    return {_NAME: 1} | {n: int(v) if isinstance(v, bool) else v for n, v in changed.items()}


def request_reward(extra_args: Mapping[str, Any] | None) -> EosReward | None:
    """Reads the options of a request.

    Args:
        extra_args: `SamplingParams.extra_args`, over HTTP `vllm_xargs`; what does not begin with
            "eos_reward" is for others.

    Returns:
        The options, without hindsight; None where no reward is asked for.

    Raises:
        ValueError: If an option is unknown or out of its range.
    """
    given = {name: value for name, value in (extra_args or {}).items() if name.startswith(_NAME)}
    asked = _truth(_NAME, given.pop(_NAME, bool(given)))
    values: dict[str, Any] = {}
    for name, value in given.items():
        field = _FIELDS.get(name)
        if field is None:
            known = ", ".join([_NAME, *_FIELDS])
            raise ValueError(f"`vllm_xargs` has no option {name!r}. Known: {known}.")
        values[field.name] = _truth(name, value) if isinstance(field.default, bool) else value
    reward = EosReward(**values, hindsight=False)
    return reward if asked else None


def _truth(name: str, value: Any) -> bool:
    """A bool as HTTP gives it: true, 1, "true"."""
    found = _TRUTHS.get(str(value).lower())
    if found is None:
        raise ValueError(f"`{name}` has to be true or false (1 or 0), but is {value!r}.")
    return found

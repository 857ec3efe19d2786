"""The EOS reward in a request's `vllm_xargs`: the client writes it, the server reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from langchain_llama_stop.ending.reward import EosReward

_NAME = "eos_reward"
_FIELDS = {f"{_NAME}_{f.name}": f for f in fields(EosReward) if f.name != "hindsight"}
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def reward_args(reward: EosReward | None) -> dict[str, Any]:
    """Writes the reward as `vllm_xargs` of a request.

    Args:
        reward: Its options, or None for no reward. Hindsight is left out: a server sends each token
            at once.

    Returns:
        Strings and numbers by name; empty without a reward.
    """
    if reward is None:
        return {}
    values = {name: (getattr(reward, f.name), f.default) for name, f in _FIELDS.items()}
    changed = {name: value for name, (value, default) in values.items() if value != default}
    # vLLM takes no booleans over HTTP.
    return {_NAME: 1} | {n: int(v) if isinstance(v, bool) else v for n, v in changed.items()}


def request_reward(extra_args: Mapping[str, Any] | None) -> EosReward | None:
    """Reads the reward of a request.

    Args:
        extra_args: `SamplingParams.extra_args`; over HTTP it is called `vllm_xargs`. Only names
            that begin with "eos_reward" are read.

    Returns:
        The reward, without hindsight; None if the request has none.

    Raises:
        ValueError: If an option is unknown or out of its range.
    """
    ours = {name: value for name, value in (extra_args or {}).items() if name.startswith(_NAME)}
    enabled = _boolean(_NAME, ours.pop(_NAME, bool(ours)))
    values: dict[str, Any] = {}
    for name, value in ours.items():
        field = _FIELDS.get(name)
        if field is None:
            known = ", ".join([_NAME, *_FIELDS])
            raise ValueError(f"`vllm_xargs` has no option {name!r}. Known: {known}.")
        values[field.name] = _boolean(name, value) if isinstance(field.default, bool) else value
    reward = EosReward(**values, hindsight=False)
    return reward if enabled else None


def _boolean(name: str, value: Any) -> bool:
    """A boolean in any of the forms that arrive over HTTP: true, 1, "true"."""
    boolean = _BOOLEANS.get(str(value).lower())
    if boolean is None:
        raise ValueError(f"`{name}` has to be true or false (1 or 0), but is {value!r}.")
    return boolean

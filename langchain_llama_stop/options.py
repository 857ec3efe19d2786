"""The options of a call: one frozen object, made of constructor and call options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.ending.stop_strings import parse_stop, parse_stop_token_ids
from langchain_llama_stop.grammar.schema import Grammar, json_grammar

_READERS: dict[str, Callable[[object], Any]] = {
    "stop": parse_stop,
    "stop_token_ids": parse_stop_token_ids,
    "eos_reward": EosReward.parse,
    "grammar": Grammar.parse,
}
OnLength = Literal["keep", "trim", "continue"]
OnTimeout = Literal["cut", "raise"]
CONTINUATIONS = 3
"""Further budgets that an answer gets which is continued."""
DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens of an answer where none are asked for and the pipeline names no number."""
ALIASES = {"max_tokens": "max_new_tokens"}
_TOKENS_PER_SENTENCE = 25
"""Tokens of an English sentence, rounded up: how `answer_hint` turns a budget into sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What a generation is asked for. None leaves a setting to the pipeline and the model.

    Attributes:
        max_new_tokens: Token budget of the answer, EOS included. None: the pipeline's, else 256.
        temperature: 0 is greedy. None: the generation config's.
        top_p: Nucleus sampling, over 0 to 1.
        top_k: Sampling among the k best tokens; 0 is off.
        repetition_penalty: Over 0; 1 is off.
        seed: Makes sampling repeatable: a prompt's answer depends on it alone, not on the batch.
        stop: Stop strings.
        stop_token_ids: Stop sequences of token ids.
        eos_reward: Options of the EOS reward; None is off.
        on_length: What becomes of an answer that its budget has cut: "keep"; "trim" to its last
            true end; "continue" for `CONTINUATIONS` more budgets at most; a reward then lands it
            at the end of all of them, of which `start` is a share.
        thinking_tokens: Tokens that a reasoning model may think before its answer, on top of
            `max_new_tokens`: `</think>` is rewarded as EOS is, with this budget. 0 is off.
        json_schema: A JSON schema that the answer has to fit; it is complete within the budget.
        grammar: The same as a grammar in llguidance's Lark form, instead of `json_schema`.
        return_full_text: Whether the prompt stands before the answer.
        split_special_tokens: Whether control tokens (`</s>`) in a text are read as plain text.
            None: in messages they are, in a prompt, which brings its own template, not.
        logprobs: Whether to give the log-probability of each token under the model.
        top_logprobs: How many of the likeliest tokens to give with each; sets `logprobs`.
        answer_hint: A sentence that asks for brevity, put into the prompt; `{sentences}` is
            filled in from the budget.
        logits_processor: The user's own processors, run before the EOS reward.
        stopping_criteria: The user's own criteria.
        batch_size: Prompts per batch.
        prefix_cache: Tokens whose keys and values are kept for prompts that begin the same way; 0
            is off.
        prompt_lookup_num_tokens: Tokens guessed ahead from the text so far, greedy and one prompt
            at a time, at most; 0 is off. None: 32 for prompts of 128 tokens or more, else off.
        assistant_model: A small transformers model of the same vocabulary that guesses ahead
            instead.
        timeout: Seconds that a call may take, waiting for others included; None for any time.
        on_timeout: "cut" gives what is there of each answer then, "raise" raises `TimeoutError`.
        max_calls: Calls that may be at one model at once, those that wait included; one more is
            refused.
        pipeline_kwargs: Further settings of transformers' `GenerationConfig`.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[tuple[int, ...], ...] = ()
    eos_reward: EosReward | None = field(default_factory=EosReward)
    on_length: OnLength = "keep"
    thinking_tokens: int = 0
    json_schema: Mapping[str, Any] | None = None
    grammar: Grammar | None = None
    return_full_text: bool = False
    split_special_tokens: bool | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    answer_hint: str | None = None
    logits_processor: tuple[Any, ...] = ()
    stopping_criteria: tuple[Any, ...] = ()
    batch_size: int = 16
    prefix_cache: int = 4096
    prompt_lookup_num_tokens: int | None = None
    assistant_model: Any = None
    timeout: float | None = None
    on_timeout: OnTimeout = "cut"
    max_calls: int = 1024
    pipeline_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks every value, and brings those that can be written in several ways into one."""
        for name, read in _READERS.items():
            object.__setattr__(self, name, read(getattr(self, name)))
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        check_integer("top_k", self.top_k, 0)
        check_integer("seed", self.seed, 0)
        if self.seed is not None and self.seed >= 2**63:
            raise ValueError(f"`seed` has to be under 2**63, but is {self.seed}.")
        check_integer("batch_size", self.batch_size, 1, optional=False)
        check_integer("prefix_cache", self.prefix_cache, 0, optional=False)
        check_integer("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, 0)
        check_number("temperature", self.temperature, 0, "0 (greedy), or 0.01 or more")
        if self.temperature and self.temperature < 0.01:
            raise ValueError(
                f"`temperature` has to be 0 (greedy), or 0.01 or more, but is {self.temperature!r}."
            )
        check_number("top_p", self.top_p, 0, "over 0 and at most 1", above=True, most=1)
        check_number("repetition_penalty", self.repetition_penalty, 0, "over 0", above=True)
        check_number("timeout", self.timeout, 0, "over 0 seconds", above=True)
        check_integer("max_calls", self.max_calls, 1, optional=False)
        check_integer("thinking_tokens", self.thinking_tokens, 0, optional=False)
        for name, known in (("on_length", OnLength), ("on_timeout", OnTimeout)):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(
                    f"`{name}` has to be one of {', '.join(map(repr, get_args(known)))}, but is "
                    f"{value!r}."
                )
        for name in ("return_full_text", "logprobs", "split_special_tokens"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value, name) != (None, "split_special_tokens"):
                raise ValueError(f"`{name}` has to be True or False, but is {value!r}.")
        check_integer("top_logprobs", self.top_logprobs, 0)
        if self.top_logprobs:
            object.__setattr__(self, "logprobs", True)
        if self.thinking_tokens and self.eos_reward and not self.eos_reward.hindsight:
            raise ValueError(
                f"`thinking_tokens` has to be 0 where `hindsight` is False, but is "
                f"{self.thinking_tokens}: the budget of the answer begins behind the thinking."
            )
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise ValueError(
                f"`json_schema` has to be a dict or None, but is {self.json_schema!r}."
            )
        if self.grammar and self.json_schema is not None:
            raise ValueError("`grammar` and `json_schema` say the same: give one of them.")
        if self.answer_grammar and self.thinking_tokens:  # a schema is compiled here
            raise ValueError(
                "`thinking_tokens` has to be 0 where an answer has to fit `json_schema`, `grammar` "
                f"or tools, but is {self.thinking_tokens}: these allow no thoughts."
            )
        hint = self.answer_hint
        if hint is not None and (not isinstance(hint, str) or not hint.strip()):
            raise ValueError(f"`answer_hint` has to be a sentence or None, but is {hint!r}.")
        if hint is not None:
            try:
                hint.format(sentences=1)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"`answer_hint` may hold no braces but {{sentences}}, but is {hint!r}."
                ) from error
        for name in ("logits_processor", "stopping_criteria"):
            for item in getattr(self, name):
                if not callable(item):
                    raise ValueError(f"`{name}` has to hold callables, but holds {item!r}.")

    @property
    def answer_grammar(self) -> Grammar | None:
        """What the answer has to fit, if anything."""
        schema = self.json_schema
        return self.grammar or (None if schema is None else json_grammar(schema))

    def hint(self, budget: int) -> str:
        """Fills in `answer_hint`.

        Args:
            budget: The token budget.

        Returns:
            The sentence for the prompt; "" without one.
        """
        most = max(1, budget // _TOKENS_PER_SENTENCE)
        return (self.answer_hint or "").format(sentences=most)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Reads options as a user writes them.

        Args:
            options: Names and values. `max_tokens` stands for `max_new_tokens`; keys of
                `pipeline_kwargs` that are options here count as such where not given themselves.

        Returns:
            The options.

        Raises:
            ValueError: If a name is unknown or a value is outside its range.
        """
        return cls(**_normalize(options))

    def updated(self, options: Mapping[str, Any]) -> GenerationOptions:
        """Makes the options of one call out of the constructor's.

        Args:
            options: The call's options, as for `parse`. Stops are added to the ones there are,
                as are processors and criteria; everything else replaces.

        Returns:
            New options.

        Raises:
            ValueError: As for `parse`.
        """
        changes = _normalize(options)
        for name in ("stop", "stop_token_ids", "logits_processor", "stopping_criteria"):
            if name in changes:
                ours = getattr(self, name)
                new = [item for item in changes[name] if not any(item is o for o in ours)]
                if name in ("stop", "stop_token_ids"):
                    new = [item for item in new if item not in ours]
                changes[name] = (*ours, *new)
        for name, other in (("grammar", "json_schema"), ("json_schema", "grammar")):
            if changes.get(name) is not None:  # they say the same
                changes.setdefault(other, None)
        if "pipeline_kwargs" in changes:
            changes["pipeline_kwargs"] = {**self.pipeline_kwargs, **changes["pipeline_kwargs"]}
        return replace(self, **changes)


OPTION_NAMES = tuple(f.name for f in fields(GenerationOptions))


def refuse_unknown(names: Any, known: Any, what: str) -> None:
    """Refuses names that are not known.

    Args:
        names: The names given.
        known: The names there are.
        what: What the names are, for the message ("call option").

    Raises:
        ValueError: Naming the unknown ones and all known ones.
    """
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"Unknown {what} {', '.join(map(repr, unknown))}. Known: {', '.join(sorted(known))}."
        )


def resolve_aliases(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the other names of options by their own.

    Args:
        options: Names and values.

    Returns:
        A new dict.

    Raises:
        ValueError: If an option is given under both names, with two values.
    """
    resolved = dict(options)
    for alias, name in ALIASES.items():
        if alias in resolved:
            value = resolved.pop(alias)
            if resolved.setdefault(name, value) != value:
                raise ValueError(
                    f"`{alias}` and `{name}` are one option, but are {value!r} and "
                    f"{resolved[name]!r}."
                )
    return resolved


def _normalize(options: Mapping[str, Any]) -> dict[str, Any]:
    values = resolve_aliases(options)
    kwargs = values.get("pipeline_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(
            f"`pipeline_kwargs` has to be a dict of generation settings, but is {kwargs!r}."
        )
    refuse_unknown(values, [*OPTION_NAMES, *ALIASES], "option")
    if kwargs := values.get("pipeline_kwargs"):
        kwargs = resolve_aliases(kwargs)
        ours = {name: kwargs.pop(name) for name in OPTION_NAMES if name in kwargs}
        given = {name: value for name, value in values.items() if value is not None}
        values = {**ours, **given, "pipeline_kwargs": kwargs}
    elif "pipeline_kwargs" in values:
        values["pipeline_kwargs"] = {}
    for name in ("temperature", "top_p", "repetition_penalty"):
        if type(values.get(name)) is int:
            values[name] = float(values[name])  # transformers takes no 2 for 2.0
    for name in _READERS:
        if name in values:
            values[name] = _READERS[name](values[name])
    for name in ("logits_processor", "stopping_criteria"):
        if name in values:
            value = values[name]
            values[name] = (value,) if callable(value) and not isinstance(value, list) else value
            try:
                values[name] = tuple(values[name] or ())
            except TypeError as error:
                raise ValueError(
                    f"`{name}` has to be a list of callables, but is {value!r}."
                ) from error
    return values


def check_integer(name: str, value: object, least: int, *, optional: bool = True) -> None:
    """Refuses what is no whole number, or too small a one.

    Args:
        name: The argument's name.
        value: Its value.
        least: What it has to be at least.
        optional: Whether it may be None.

    Raises:
        ValueError: If it is refused.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` has to be a whole number of {least} or more, but is {value!r}.")


def check_number(
    name: str, value: Any, least: float, rule: str, *, above: bool = False, most: float = math.inf
) -> None:
    """Refuses what is no finite number, or out of range; None is let pass.

    Args:
        name: The argument's name.
        value: Its value.
        least: What it has to be at least.
        rule: The range in words.
        above: Whether it has to be above `least`.
        most: What it has to be at most.

    Raises:
        ValueError: If it is refused.
    """
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not math.isfinite(value)
        or not least <= value <= most
        or (above and value == least)
    ):
        raise ValueError(f"`{name}` has to be {rule}, but is {value!r}.")

"""The options of a generation: one table, from which everything else is made.

An entry of the table is a field: its type as users write it, an `Option` (how it is checked, how a
request to a server carries it), its default, and its text. The fields of the LangChain classes, the
checks, the server's requests, the flags of the command line and the docs' page are made from it.
To add an option, add an entry here, and the code where it acts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from langchain_llama_stop import _checks
from langchain_llama_stop._checks import Check, callables, number, one_of, truth, whole
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.ending.stop_strings import parse_stop, parse_stop_token_ids
from langchain_llama_stop.grammar.schema import Grammar, json_grammar

OnLength = Literal["keep", "trim", "continue"]
OnTimeout = Literal["cut", "raise"]
CONTINUATIONS = 3
"""How many more budgets `on_length="continue"` gives: an answer that needs a fifth is a loop."""
DEFAULT_MAX_NEW_TOKENS = 256
"""Tokens of an answer where neither the user nor the pipeline gives a number, as in transformers'
text-generation pipeline."""
ALIASES = {"max_tokens": "max_new_tokens"}
"""Other names of options, and the options' own."""
_TOKENS_PER_SENTENCE = 25
"""Tokens of an English sentence, rounded up: how `answer_hint` turns a budget into sentences."""
_SEVERAL = ("stop", "stop_token_ids", "logits_processor", "stopping_criteria")
"""Options that a call adds to; it replaces all others."""

_IN_PROCESS = "it needs the model in this process: use `ChatLlamaStop`"
_NO_DRAFTS = "vLLM runs no logits processors of ours beside draft tokens"
_MAX_SEQUENCES = "start the server with `vllm serve --max-num-seqs`"


@dataclass(frozen=True, slots=True)
class Option:
    """An entry of the table; what its field says is filled in by `OPTIONS`.

    Attributes:
        check: Checks a value, and brings it into its one form.
        request: The part of a request to a server that carries it ("temperature",
            "extra_body.top_k"); "" if none does.
        instead: What to set on the server where no request carries it.
        same_answer: Whether the answer is the same whatever the value: LangChain's cache may give
            it for other values too.
        name: The field's name.
        annotation: Its type, as users write it.
        default: Its default.
        doc: What it does.
        is_object: Whether it is an object of the user's, of which nothing can be written as JSON.
        aliases: Its other names.
    """

    check: Check
    request: str = ""
    instead: str = ""
    same_answer: bool = False
    name: str = ""
    annotation: Any = None
    default: Any = None
    doc: str = ""
    is_object: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def server(self) -> str | None:
        """What to set on a server instead; None if its requests carry the option."""
        return None if self.request else self.instead

    @property
    def type(self) -> str:
        """The type as text: "int | None"."""
        written = self.annotation
        text = written.__name__ if isinstance(written, type) else str(written)
        return re.sub(r"\b[a-z_.]+\.(?=[A-Z])", "", text)


class RequestOptions(BaseModel):
    """The options that a request to a server carries besides those of OpenAI's API."""

    model_config = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    top_k: Annotated[int | None, Option(whole(0), "extra_body.top_k")] = None
    """Sampling draws from the k likeliest tokens; 0 is off."""
    repetition_penalty: Annotated[
        float | None, Option(number(0, "over 0", above=True), "extra_body.repetition_penalty")
    ] = None
    """Over 1 discourages repetition; 1 is off."""
    stop_token_ids: Annotated[
        list[int] | list[list[int]] | None,
        Option(lambda _, value: parse_stop_token_ids(value), "extra_body.stop_token_ids"),
    ] = None
    """Token ids that end the answer, or sequences of ids."""
    eos_reward: Annotated[
        EosReward | bool,
        Option(lambda _, value: EosReward.parse(value), "extra_body.vllm_xargs"),
    ] = True
    """Rewards EOS where the answer may end as the budget runs out. An `EosReward` sets the details;
    False leaves the model alone."""
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Option(_checks.template_settings, "extra_body.chat_template_kwargs")
    ] = None
    """What a chat template is given besides messages: {"enable_thinking": False}."""
    answer_hint: Annotated[str | None, Option(_checks.answer_hint, "messages")] = None
    """Ends the user's turn: "Answer in {sentences} sentences." The number comes from the budget."""
    json_schema: Annotated[
        dict[str, Any] | None, Option(_checks.json_schema, "extra_body.structured_outputs")
    ] = None
    """A JSON schema that the answer has to fit; in process it is complete within the budget."""
    grammar: Annotated[
        str | Grammar | None,
        Option(lambda _, value: Grammar.parse(value), "extra_body.structured_outputs"),
    ] = None
    """A grammar in llguidance's Lark form (`start: /[a-z]+/`) that the answer has to fit, in place
    of a `json_schema`."""


class ModelOptions(RequestOptions):
    """All options of a generation, as fields of a LangChain model. None means "not given"."""

    max_new_tokens: Annotated[int | None, Option(whole(1), "max_completion_tokens")] = None
    """Token budget of the answer, EOS included. None: the pipeline's own, else 256."""
    temperature: Annotated[float | None, Option(_checks.temperature, "temperature")] = None
    """0 is greedy, and so is all under 0.01. None: what the model's generation config says."""
    top_p: Annotated[
        float | None, Option(number(0, "over 0 and at most 1", above=True, most=1), "top_p")
    ] = None
    """Nucleus sampling: the share of probability to draw from, over 0 to 1."""
    seed: Annotated[int | None, Option(_checks.seed, "seed")] = None
    """Makes sampling repeatable: an answer depends on its prompt and the seed, not on its batch."""
    stop: Annotated[list[str] | None, Option(_checks.one_or_several(parse_stop), "stop")] = None
    """Stop strings: the answer is what precedes the one that completes first."""
    logprobs: Annotated[bool, Option(truth(), "logprobs")] = False
    """Whether the metadata holds the log-probability of each token under the model itself, before
    any processor and without temperature."""
    top_logprobs: Annotated[int | None, Option(whole(0), "top_logprobs")] = None
    """How many of the likeliest tokens to give with each token; sets `logprobs`."""
    on_length: Annotated[OnLength, Option(one_of(OnLength), instead=_IN_PROCESS)] = "keep"
    """What to do with an answer that its budget cuts all the same (without the reward, say): "keep"
    it, "trim" it to its last true end, or "continue" it for up to three more budgets."""
    thinking_tokens: Annotated[int, Option(whole(0, optional=False), instead=_IN_PROCESS)] = 0
    """Tokens that a reasoning model may think on top of `max_new_tokens`: `</think>` is rewarded as
    EOS is, with this budget. 0 is off."""
    return_full_text: Annotated[bool, Option(truth(), instead=_IN_PROCESS)] = False
    """Whether the prompt stands before the answer."""
    split_special_tokens: Annotated[
        bool | None, Option(truth(optional=True), instead=_IN_PROCESS)
    ] = None
    """Whether control tokens (`</s>`) in a text are read as plain text. None: in the messages of a
    chat they are; in a prompt, which brings its own template, they are not."""
    logits_processor: Annotated[
        list[Any] | None,
        Option(callables, instead="start the server with `vllm serve --logits-processors`"),
    ] = Field(default=None, exclude=True)
    """Your own transformers logits processors; they run before the EOS reward, on every path."""
    stopping_criteria: Annotated[
        list[Any] | None, Option(callables, instead="give `stop` or `stop_token_ids`")
    ] = Field(default=None, exclude=True)
    """Your own transformers stopping criteria, on every path."""
    batch_size: Annotated[
        int, Option(whole(1, optional=False), instead=_MAX_SEQUENCES, same_answer=True)
    ] = 16
    """Sequences that may share a forward pass, of one call or of several."""
    prefix_cache: Annotated[
        int,
        Option(
            whole(0, optional=False),
            instead="start the server with `vllm serve --enable-prefix-caching`, its default",
            same_answer=True,
        ),
    ] = 4096
    """Tokens whose keys and values the model keeps for prompts that begin the same way (2 GB for
    Llama 2 7B in bfloat16, 0.5 GB for Llama 3 8B); 0 is off."""
    prompt_lookup_num_tokens: Annotated[
        int | None, Option(whole(0), instead=_NO_DRAFTS, same_answer=True)
    ] = None
    """Draft tokens looked up in the text so far (greedy, one prompt at a time), at most; 0 is off.
    None: up to 32 for prompts of 128 tokens or more, else off."""
    assistant_model: Annotated[
        Any, Option(_checks.anything, instead=_NO_DRAFTS, same_answer=True)
    ] = Field(default=None, exclude=True)
    """A small transformers model of the same vocabulary that drafts tokens instead; a wrong draft
    changes no token."""
    timeout: Annotated[
        float | None,
        Option(
            number(0, "over 0 seconds", above=True),
            instead="`timeout` is there how long each read from the server may take",
        ),
    ] = None
    """Seconds that a call may take, waiting for other calls included. None: any time."""
    on_timeout: Annotated[
        OnTimeout,
        Option(
            one_of(OnTimeout),
            instead="an answer of a server that takes too long is always an error",
        ),
    ] = "cut"
    """What happens when `timeout` runs out: "cut" gives what is there of each answer
    (`finish_reason` is "length"), "raise" raises `TimeoutError`."""
    max_calls: Annotated[
        int, Option(whole(1, optional=False), instead=_MAX_SEQUENCES, same_answer=True)
    ] = 1024
    """Calls that may be at one model at once, those that wait included; one more is refused with
    `ModelBusyError`."""
    pipeline_kwargs: Annotated[
        dict[str, Any] | None, Option(_checks.generation_settings, instead="give `extra_body`")
    ] = None
    """Further settings of transformers' `GenerationConfig`."""


def _described(name: str) -> Option:
    """The entry of an option, with what its field says."""
    info = ModelOptions.model_fields[name]
    (option,) = (item for item in info.metadata if isinstance(item, Option))
    return replace(
        option,
        name=name,
        annotation=info.annotation,
        default=info.default,
        doc=" ".join((info.description or "").split()),
        is_object=bool(info.exclude),
        aliases=tuple(alias for alias, own in ALIASES.items() if own == name),
    )


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in sorted(
        map(_described, [*ModelOptions.__annotations__, *RequestOptions.__annotations__]),
        key=lambda option: not option.request,
    )
}
"""All options by name; those that a request to a server carries come first."""


if TYPE_CHECKING:
    _Fields = ModelOptions  # type checkers see the table
else:
    _Fields = make_dataclass(
        "_Fields",
        [(name, Any, field(default=option.default)) for name, option in OPTIONS.items()],
        namespace={"__post_init__": lambda options: options._check()},
        frozen=True,
        kw_only=True,
    )


class GenerationOptions(_Fields):
    """The options of one call, checked and each in one form: a frozen dataclass.

    Its attributes are those of `ModelOptions`; it is made by `parse`. None leaves a setting to the
    pipeline and the model.
    """

    if TYPE_CHECKING:  # the forms that differ from what users may write
        stop: tuple[str, ...] = ()  # type: ignore[assignment]
        stop_token_ids: tuple[tuple[int, ...], ...] = ()  # type: ignore[assignment]
        eos_reward: EosReward | None = None  # type: ignore[assignment]
        grammar: Grammar | None = None
        chat_template_kwargs: dict[str, Any] = {}
        logits_processor: tuple[Any, ...] = ()  # type: ignore[assignment]
        stopping_criteria: tuple[Any, ...] = ()  # type: ignore[assignment]
        pipeline_kwargs: dict[str, Any] = {}

    def _check(self) -> None:
        """Checks every value, and brings it into its one form."""
        self.__dict__.update(_checked(vars(self)))
        self._check_together()

    def _check_together(self) -> None:
        """Checks what depends on several options; sets what follows from others."""
        thinking, reward = self.thinking_tokens, self.eos_reward
        if self.top_logprobs:
            self.__dict__["logprobs"] = True
        if thinking and reward and not reward.hindsight:
            raise ValueError(
                f"`thinking_tokens` has to be 0 where `hindsight` is False, but is {thinking}: the "
                "budget of the answer begins after the thinking."
            )
        if self.grammar and self.json_schema is not None:
            raise ValueError("`grammar` and `json_schema` say the same: give one of them.")
        if self.answer_grammar and thinking:  # a schema is compiled here
            raise ValueError(
                "`thinking_tokens` has to be 0 where an answer has to fit `json_schema`, `grammar` "
                f"or tools, but is {thinking}: these allow no thoughts."
            )

    @property
    def answer_grammar(self) -> Grammar | None:
        """What the answer has to fit, if anything."""
        schema = self.json_schema
        return self.grammar or (None if schema is None else json_grammar(schema))

    def hint(self, budget: int) -> str:
        """Gives `answer_hint` with the sentences that fit a token budget; "" without a hint."""
        most = max(1, budget // _TOKENS_PER_SENTENCE)
        return (self.answer_hint or "").format(sentences=most)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Reads options as a user writes them.

        Args:
            options: Names and values. `max_tokens` is `max_new_tokens`; keys of `pipeline_kwargs`
                that are options count as such where the option itself is not given.

        Returns:
            The options.

        Raises:
            ValueError: If a name is unknown or a value is out of its range.
        """
        return cls(**_normalized(options))

    def updated(self, options: Mapping[str, Any]) -> GenerationOptions:
        """Makes the options of one call from those of the constructor.

        Args:
            options: The call's options, as for `parse`. Stops, processors and criteria are added
                to those of the constructor; everything else replaces.

        Returns:
            New options; these if nothing changes.

        Raises:
            ValueError: As for `parse`.
        """
        if not options:
            return self
        changes = _checked(_normalized(options))
        for name in _SEVERAL:
            if name in changes:
                ours = getattr(self, name)
                new = [item for item in changes[name] if not any(item is o for o in ours)]
                if name in ("stop", "stop_token_ids"):
                    new = [item for item in new if item not in ours]
                changes[name] = (*ours, *new)
        for name, other in (("grammar", "json_schema"), ("json_schema", "grammar")):
            if changes.get(name) is not None:  # one replaces the other
                changes.setdefault(other, None)
        for name in ("pipeline_kwargs", "chat_template_kwargs"):
            if name in changes:
                changes[name] = {**getattr(self, name), **changes[name]}
        return self.replaced(**changes)

    def replaced(self, **changes: Any) -> GenerationOptions:
        """Makes options with other values, which are in their one form already.

        Raises:
            ValueError: If they do not go together.
        """
        options = copy.copy(self)
        options.__dict__.update(changes)
        options._check_together()
        return options


def resolve_aliases(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the other names of options by their own, in a new dict.

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


def _normalized(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their own names; those that stand in `pipeline_kwargs` are taken out of it."""
    values = resolve_aliases(options)
    _checks.refuse_unknown(values, [*OPTIONS, *ALIASES], "option")
    if kwargs := _checks.generation_settings("pipeline_kwargs", values.get("pipeline_kwargs")):
        kwargs = resolve_aliases(kwargs)
        ours = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        given = {name: value for name, value in values.items() if value is not None}
        values = {**ours, **given, "pipeline_kwargs": kwargs}
    return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their one form."""
    return {name: OPTIONS[name].check(name, value) for name, value in values.items()}

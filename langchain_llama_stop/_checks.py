"""Checks of arguments: each error names the argument, the rule and the value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

Check = Callable[[str, Any], Any]
"""Takes an argument's name and value; returns the value in its one form, or raises ValueError."""


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuses names that are not known.

    Args:
        names: The names given.
        known: The names there are.
        what: What the names are, for the message ("call option").

    Raises:
        ValueError: With the unknown names, the nearest known ones, and all known ones.
    """
    known = sorted(known)
    if unknown := sorted(set(names) - set(known), key=str):
        near = [n for name in unknown for n in nearest(str(name), known)]
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Unknown {what} {', '.join(map(repr, unknown))}.{hint} Known: {', '.join(known)}."
        )


_ELSEWHERE = {
    **dict.fromkeys(("max_length", "num_predict", "n_predict", "max_output_tokens"), "max_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_sequence", "stop_strings", "stop_words"), "stop"),
    "do_sample": "temperature",
    "num_ctx": "prefix_cache",
    "n_gpu_layers": "device_map",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "device": "device_map",
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), "r"),
}
"""What other libraries call our options."""


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Finds the known name that an unknown one was meant to be: a list of one, or of none."""
    if _ELSEWHERE.get(name) in known:
        return [_ELSEWHERE[name]]
    begun = [word for word in known if len(name) > 2 and word.startswith(name)]
    return difflib.get_close_matches(name, known, 1) or begun[:1]


def check_text(subject: str, text: str) -> None:
    """Refuses a text with half of a surrogate pair, which no tokenizer can encode.

    Args:
        subject: What the text is, for the message ("The prompt").
        text: The text.

    Raises:
        ValueError: With the half and its place.
    """
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{subject} has to hold whole characters, but holds the lone surrogate "
            f"{text[error.start]!r} at index {error.start}: replace it, for example by "
            "`text.encode('utf-8', 'replace').decode()`."
        ) from None


def check_integer(name: str, value: object, least: int, *, optional: bool = True) -> None:
    """Refuses what is not a whole number of at least `least`; None passes if `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` has to be a whole number of {least} or more, but is {value!r}.")


def check_number(
    name: str, value: Any, least: float, rule: str, *, above: bool = False, most: float = math.inf
) -> None:
    """Refuses what is not a finite number in a range; None passes.

    Args:
        name: The argument's name.
        value: Its value.
        least: The lower end of the range, included unless `above`.
        rule: The range in words.
        above: Whether the value has to be more than `least`.
        most: The upper end of the range, included.

    Raises:
        ValueError: If the value is refused.
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


def whole(least: int, *, optional: bool = True) -> Check:
    """Makes a check for whole numbers."""

    def check(name: str, value: Any) -> Any:
        check_integer(name, value, least, optional=optional)
        return value

    return check


def number(least: float, rule: str, *, above: bool = False, most: float = math.inf) -> Check:
    """Makes a check for numbers; whole ones become floats, as transformers takes no 2 for 2.0."""

    def check(name: str, value: Any) -> Any:
        check_number(name, value, least, rule, above=above, most=most)
        return float(value) if type(value) is int else value

    return check


def one_of(literal: Any) -> Check:
    """Makes a check for the values of a `Literal`."""
    values = get_args(literal)

    def check(name: str, value: Any) -> Any:
        if value not in values:
            raise ValueError(
                f"`{name}` has to be one of {', '.join(map(repr, values))}, but is {value!r}."
            )
        return value

    return check


def truth(*, optional: bool = False) -> Check:
    """Makes a check for True and False."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, bool) and not (optional and value is None):
            raise ValueError(f"`{name}` has to be True or False, but is {value!r}.")
        return value

    return check


def callables(name: str, value: Any) -> tuple[Any, ...]:
    """Checks one callable or a list of them, and gives them as a tuple."""
    value = (value,) if callable(value) and not isinstance(value, list) else value
    try:
        items = tuple(value or ())
    except TypeError as error:
        raise ValueError(f"`{name}` has to be a list of callables, but is {value!r}.") from error
    for item in items:
        if not callable(item):
            raise ValueError(f"`{name}` has to hold callables, but holds {item!r}.")
    return items


def one_or_several(parse: Callable[[Any], Any]) -> Check:
    """Makes a check for a list of strings that takes one string too."""
    return lambda _, value: parse([value] if isinstance(value, str) else value)


def anything(name: str, value: Any) -> Any:
    """Checks nothing: what fits is known only where the value is used."""
    return value


def template_settings(name: str, value: Any) -> dict[str, Any]:
    """Checks what a chat template is given; messages and tools have arguments of their own."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` has to be a dict of the template's settings, but is {value!r}.")
    settings = dict(value or {})
    taken = {"messages", "conversation", "tools", "add_generation_prompt", "chat_template"}
    taken |= {"continue_final_message", "tokenize", "return_tensors", "return_dict"}
    if wrong := [key for key in settings if not isinstance(key, str) or key in taken]:
        raise ValueError(
            f"`{name}` has to hold settings of the template's own (`enable_thinking`), but holds "
            f"{wrong[0]!r}: messages, tools and what is done with them are arguments of the call."
        )
    return settings


def temperature(name: str, value: Any) -> Any:
    """Checks the temperature: what is under 0.01 is 0, as dividing by it would overflow."""
    value = number(0, "0 (greedy) or more")(name, value)
    return 0.0 if value is not None and value < 0.01 else value


def seed(name: str, value: Any) -> Any:
    """Checks the seed: torch takes 63 bits."""
    value = whole(0)(name, value)
    if value is not None and value >= 2**63:
        raise ValueError(f"`{name}` has to be under 2**63, but is {value}.")
    return value


def json_schema(name: str, value: Any) -> Any:
    """Checks the type of a JSON schema; it is compiled when the options are put together."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` has to be a dict or None, but is {value!r}.")
    return value


def answer_hint(name: str, value: Any) -> Any:
    """Checks the answer hint: a sentence in which only {sentences} is filled in."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` has to be a sentence or None, but is {value!r}.")
    try:
        value.format(sentences=1)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"`{name}` may hold no braces but {{sentences}}, but is {value!r}."
        ) from error
    return value


_HARMLESS: dict[str, tuple[tuple[Any, ...], str]] = {
    "prefix": (("", None), "put it into the prompts"),
    "clean_up_tokenization_spaces": ((False, None), "leave it out"),
    "truncation": (
        (False, None, "do_not_truncate"),
        "shorten the prompts, or give a `pipeline` that was built with it",
    ),
    "padding": ((False, True, None, "longest", "do_not_pad"), "leave it out"),
    "skip_special_tokens": ((True, None), "leave it out"),
    "return_tensors": ((False, None), "leave it out"),
    "return_text": ((True, None), "leave it out"),
    "handle_long_generation": ((None,), "shorten the prompts"),
    "num_workers": ((None, 0, 1), "leave it out"),
}
"""Arguments of a transformers pipeline: values that change nothing here, and what else to do."""


def generation_settings(name: str, value: Any) -> dict[str, Any]:
    """Checks further settings; which names exist is known with transformers only.

    What a pipeline takes besides is dropped where it changes nothing; `stop_sequence` is `stop`.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"`{name}` has to be a dict of generation settings, but is {value!r}.")
    settings = dict(value or {})
    for argument, (harmless, fix) in _HARMLESS.items():
        if argument in settings and (given := settings.pop(argument)) not in harmless:
            raise ValueError(
                f"`{argument}` in `{name}` has to be {harmless[0]!r}, but is {given!r}: {fix}."
            )
    if "stop_sequence" in settings:
        settings.setdefault("stop", settings.pop("stop_sequence"))
    return settings

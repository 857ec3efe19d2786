"""What a pipeline or a checkpoint says and the engine does not do: refused by name, never ignored.

What is honoured stands elsewhere: generation settings and stops in `config.py`, the tokenizer's
settings in `encode_settings` below.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from transformers import GenerationConfig, TextGenerationPipeline
from transformers.generation.configuration_utils import GenerationMode


class Refusal(NamedTuple):
    """One setting that is refused.

    Attributes:
        name: Its name in transformers.
        problem: The rule, the value, and where it was set.
        fix: The next step.
    """

    name: str
    problem: str
    fix: str

    def __str__(self) -> str:
        """The text of the error."""
        return f"{self.problem}: {self.fix}."


_ENCODING = ("add_special_tokens", "truncation", "max_length")
"""Arguments of a tokenizer's call that are honoured."""

_NO_PADDING = (None, False, True, "longest", "do_not_pad")
"""Values of `padding` that change nothing, as each prompt is encoded alone."""

_LEAVE_OUT = "build the pipeline without it"
_ARGUMENTS = {
    "streamer": "call `stream` instead",
    "negative_prompt_ids": _LEAVE_OUT,
    "negative_prompt_attention_mask": _LEAVE_OUT,
    "custom_generate": _LEAVE_OUT,
    "synced_gpus": _LEAVE_OUT,
    "assistant_tokenizer": "give an `assistant_model` that has the model's own vocabulary",
    "prefix": "put it into the prompts",
    "handle_long_generation": "build the pipeline with `truncation=True` instead",
    "continue_final_message": "give it to the call of the chat model",
    "tools": "bind them to the chat model with `bind_tools`",
    "documents": "put them into the prompts",
}
"""Arguments of a pipeline that have to be unset, and what to do instead."""

_HONOURED = {
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "assistant_model"),
    *("stop_strings", "tokenizer", "prefix_length"),
}
"""Arguments of `generate` that are honoured, or follow from others."""

_OUTPUT: dict[str, tuple[bool, Callable[[dict[str, Any]], bool]]] = {
    "return_tensors": (False, lambda after: _return_type(after) == "TENSORS"),
    "skip_special_tokens": (True, lambda after: after.get("skip_special_tokens") is False),
    "clean_up_tokenization_spaces": (
        False,
        lambda after: bool(after.get("clean_up_tokenization_spaces")),
    ),
}
"""Arguments about the answer's text: what they have to be, and whether they are something else."""

_STEPS = ("preprocess", "_forward", "postprocess")
"""Methods of a pipeline that the engine stands in for."""

_MODES = (
    *("constraints", "force_words_ids", "num_beams", "penalty_alpha", "dola_layers", "use_mtp"),
    *("prompt_lookup_num_tokens", "assistant_early_exit"),
)
"""Generation settings that ask for another way of decoding."""

_SILENT = {"num_beams": 1, "penalty_alpha": 0, "use_mtp": False}
"""Their values that do not, besides None; even 0 or an empty list asks for it elsewhere."""

_CACHES = ("dynamic", "dynamic_full", "static", "sliding_window", "hybrid", "hybrid_chunked")
"""Values of `cache_implementation` that neither change answers nor save memory."""

_SETTINGS: dict[str, tuple[object, Callable[[Any], bool]]] = {
    "num_return_sequences": (1, lambda value: value == 1),
    "token_healing": (False, lambda value: not value),
    "is_assistant": (False, lambda value: not value),
    "cache_implementation": (f"one of {', '.join(_CACHES)}", lambda value: value in _CACHES),
}
"""Other generation settings: what they have to be, and a check of what is not None."""

_FIXES = {
    "num_return_sequences": "pass the prompt several times to `batch` instead, without a `seed`",
    "prompt_lookup_num_tokens": "give it as the option `prompt_lookup_num_tokens` instead",
}


def refused_arguments(pipeline: Any, return_full_text: bool) -> Iterator[Refusal]:
    """Finds the arguments that a pipeline was built with and the engine does not honour.

    Args:
        pipeline: The pipeline.
        return_full_text: The option of that name, which has to agree with the pipeline.
    """
    before, forward = pipeline._preprocess_params, pipeline._forward_params
    after = pipeline._postprocess_params

    def refusal(name: str, rule: object, value: object, fix: str = _LEAVE_OUT) -> Refusal:
        return Refusal(name, f"The pipeline's `{name}` has to be {rule}, but is {value!r}", fix)

    if type(pipeline.tokenizer).__name__ == "MistralCommonBackend":
        yield Refusal(
            "tokenizer",
            "The pipeline's `tokenizer` has to be transformers' own, but is mistral-common's",
            "load it with `AutoTokenizer.from_pretrained(…, mistral_format=False)`",
        )
    for name in _STEPS:
        if getattr(getattr(pipeline, name), "__func__", None) is not getattr(
            TextGenerationPipeline, name
        ):
            yield Refusal(
                name,
                f"The pipeline's `{name}` has to be that of transformers' TextGenerationPipeline, "
                f"but {type(pipeline).__name__} has its own",
                "build the pipeline without `pipeline_class`, and change prompts and answers "
                "outside of it",
            )
    given = {"assistant_tokenizer": pipeline.assistant_tokenizer, **before, **forward}
    for name, fix in _ARGUMENTS.items():
        value = given.get(name)
        if value is not None and value is not False and not (name == "prefix" and value == ""):
            yield refusal(name, "None" if name != "prefix" else "empty", value, fix)
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}  # type: ignore[no-untyped-call]
    own: GenerationConfig | None = pipeline._generate_kwargs.get("generation_config")
    # The names that a checkpoint has made up are no mistake of the user's.
    made_up = vars(own).keys() - vars(pipeline.model.generation_config).keys() if own else set()
    unknown = {*forward, *made_up} - known - _HONOURED - _ARGUMENTS.keys()
    for name in sorted(name for name in unknown if not name.startswith("_")):
        near = difflib.get_close_matches(name, known, 1, 0.75)
        yield Refusal(
            name,
            "The pipeline has to be built with settings that transformers' GenerationConfig "
            f"knows, but has `{name}`",
            f"did you mean `{near[0]}`? Else leave it out" if near else "leave it out",
        )
    encoding = before.get("tokenizer_encode_kwargs") or {}
    if others := sorted(set(encoding) - {*_ENCODING, "padding"}):
        yield refusal(
            "tokenizer_encode_kwargs",
            f"a dict of {', '.join(_ENCODING)}",
            encoding,
            f"leave out {', '.join(others)}",
        )
    padding = encoding.get("padding", before.get("padding"))
    if padding not in _NO_PADDING:
        yield refusal("padding", False, padding)
    for name, (rule, differs) in _OUTPUT.items():
        if differs(after):
            yield refusal(name, rule, not rule)
    if _return_type(after) == "FULL_TEXT" and not return_full_text:
        yield refusal(
            "return_full_text",
            "that of the option `return_full_text`, which is False",
            True,
            f"give the option `return_full_text=True`, or {_LEAVE_OUT}",
        )


def refused_settings(
    config: GenerationConfig, origin: Callable[[str], str], unset: Callable[[str], str]
) -> Iterator[Refusal]:
    """Finds the generation settings that the engine does not honour.

    Args:
        config: The settings of a call, those of the model among them.
        origin: Says where a setting, by its name, was set.
        unset: Says how to remove it there.
    """
    for name, (rule, fits) in _SETTINGS.items():
        value = getattr(config, name, None)
        if value is not None and not fits(value):
            problem = f"`{name}` has to be {rule}, but is {value!r} in {origin(name)}"
            yield Refusal(name, problem, _FIXES.get(name) or unset(name))
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        given = ((name, getattr(config, name, None)) for name in _MODES)
        name = next(n for n, value in given if value is not None and _SILENT.get(n) != value)
        yield Refusal(
            name,
            "The generation mode has to be greedy search or sampling, but "
            f"`{name}` ({getattr(config, name)!r}) in {origin(name)} asks for "
            f"{mode.value.replace('_', ' ')}",
            _FIXES.get(name) or unset(name),
        )


def encode_settings(pipeline: Any) -> dict[str, Any]:
    """The settings with which a pipeline encodes texts, for the call of its tokenizer."""
    before = pipeline._preprocess_params
    given = {**before, **(before.get("tokenizer_encode_kwargs") or {})}
    return {name: given[name] for name in _ENCODING if given.get(name) is not None}


def truncated(pipeline: Any, ids: list[int]) -> list[int]:
    """Cuts the ids of a rendered conversation as the pipeline's `truncation` says."""
    settings, tokenizer = encode_settings(pipeline), pipeline.tokenizer
    if settings.get("truncation") in (None, False, "do_not_truncate"):
        return ids
    most = settings.get("max_length") or tokenizer.model_max_length
    return ids[-most:] if tokenizer.truncation_side == "left" else ids[:most]


def _return_type(after: dict[str, Any]) -> str:
    """What the pipeline returns, by the name in transformers."""
    return str(getattr(after.get("return_type"), "name", "NEW_TEXT"))

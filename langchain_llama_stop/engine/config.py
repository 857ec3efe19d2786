"""The generation settings of a call: the options, above the pipeline's, above the model's."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PrefixConstrainedLogitsProcessor

from langchain_llama_stop._weights import check_adapters
from langchain_llama_stop.ending.stop_strings import parse_stop
from langchain_llama_stop.engine import rope
from langchain_llama_stop.engine.refusals import Refusal, refused_arguments, refused_settings
from langchain_llama_stop.options import CONTINUATIONS, DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from langchain_llama_stop.tokens.weak_cache import cached_per_object

logger = logging.getLogger("langchain_llama_stop")


def eos_token_ids(pipeline: Any, options: GenerationOptions) -> list[int]:
    """Finds the EOS ids of a call: its own, else the pipeline's, the model's, the tokenizer's.

    Args:
        pipeline: The pipeline.
        options: The options; their `pipeline_kwargs` may name `eos_token_id`.

    Raises:
        ValueError: If none of them names any, or one names what is no id.
    """
    for value in (
        _settings(pipeline, options)[1].get("eos_token_id"),
        pipeline.model.generation_config.eos_token_id,
        pipeline.tokenizer.eos_token_id,
    ):
        ids = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if any(not isinstance(i, int) for i in ids):
            raise ValueError(
                f"`eos_token_id` has to be an int or a list of them, but is {value!r}: correct it "
                "in `pipeline_kwargs`, the pipeline or `model.generation_config`."
            )
        if ids:  # an empty list is as good as none
            return ids
    raise ValueError(
        "`eos_token_id` has to be known, but neither the generation config nor the tokenizer "
        "names one: set `model.generation_config.eos_token_id`."
    )


def vocabulary_size(model: Any) -> int:
    """Counts the tokens that a model has embeddings for."""
    embeddings = model.get_input_embeddings()
    # An adapter of the embeddings has them inside.
    sizes = (m.num_embeddings for m in embeddings.modules() if hasattr(m, "num_embeddings"))
    return int(next(sizes, model.config.get_text_config().vocab_size))


def context_window(model: Any) -> int | None:
    """The tokens that a model can attend to; None if its config does not say."""
    return rope.context_window(model.config.get_text_config())


@cached_per_object
def thinking_ids(tokenizer: Any) -> tuple[int, int]:
    """Finds the ids of `<think>` and `</think>`.

    Raises:
        ValueError: If the vocabulary lacks one of them.
    """
    vocabulary = tokenizer.get_vocab()
    if "<think>" not in vocabulary or "</think>" not in vocabulary:
        raise ValueError(
            "`thinking_tokens` has to be 0 for this model: its vocabulary has no `<think>` and "
            "`</think>`, so that it is no reasoning model of this form."
        )
    return vocabulary["<think>"], vocabulary["</think>"]


def check_options(pipeline: Any, options: GenerationOptions) -> None:
    """Checks options against a model, before anything is generated.

    Raises:
        ValueError: If an option does not fit the model.
    """
    check_adapters(pipeline.model)
    if options.thinking_tokens:
        thinking_ids(pipeline.tokenizer)
    vocabulary = vocabulary_size(pipeline.model)
    for sequence in options.stop_token_ids:
        for token_id in sequence:
            if token_id >= vocabulary:
                raise ValueError(
                    f"`stop_token_ids` has to hold ids under {vocabulary}, the size of the "
                    f"vocabulary, but holds {token_id}."
                )
    if (options.top_logprobs or 0) > vocabulary:
        raise ValueError(
            f"`top_logprobs` has to be at most {vocabulary}, the size of the vocabulary, but is "
            f"{options.top_logprobs}."
        )
    if "stop_strings" in options.pipeline_kwargs:
        raise ValueError("`pipeline_kwargs` may not hold `stop_strings`: use the option `stop`.")
    for refusal in refusals(pipeline, options):
        raise ValueError(str(refusal))
    options = with_pipeline_stops(pipeline, options)
    for token_id in eos_token_ids(pipeline, options):
        if not 0 <= token_id < vocabulary:
            raise ValueError(
                f"`eos_token_id` has to be under {vocabulary}, the size of the vocabulary, but is "
                f"{token_id}: correct it in `pipeline_kwargs`, else in `model.generation_config`."
            )
    if options.assistant_model is not None:
        draft_config = getattr(options.assistant_model, "config", None)
        size = getattr(draft_config, "vocab_size", None)
        if size != pipeline.model.config.get_text_config().vocab_size:
            raise ValueError(
                "`assistant_model` has to be a transformers model with the vocabulary of the model "
                f"itself ({pipeline.model.config.get_text_config().vocab_size} tokens), but is "
                f"{f'one with {size}' if size else repr(options.assistant_model)}."
            )


def refusals(pipeline: Any, options: GenerationOptions) -> Iterator[Refusal]:
    """Finds what the pipeline, the model or `pipeline_kwargs` say and the engine does not do.

    Args:
        pipeline: The pipeline.
        options: The options of a call.
    """
    yield from refused_arguments(pipeline, options.return_full_text)
    settings, defaults = _settings(pipeline, options)[1], pipeline.model.generation_config
    config = generation_config(pipeline, options, max_new_tokens=1)
    for name, value in defaults.to_dict().items():  # as `generate` does it
        if getattr(config, name, value) is None:
            setattr(config, name, value)

    def origin(name: str) -> str:
        if name in options.pipeline_kwargs:
            return "`pipeline_kwargs`"
        return "the pipeline" if settings.get(name) is not None else "the model's generation config"

    def unset(name: str) -> str:
        if name in options.pipeline_kwargs:
            return f"leave `{name}` out there"
        if settings.get(name) is not None:
            return f"build the pipeline without `{name}`"
        return f"set `pipeline.model.generation_config.{name} = None`"

    yield from refused_settings(config, origin, unset)


def _settings(pipeline: Any, options: GenerationOptions) -> tuple[GenerationConfig, dict[str, Any]]:
    """A generation config, and the settings to put into it: the pipeline's, then the call's."""
    config = _CallConfig()  # type: ignore[no-untyped-call]
    later = {n: v for n, v in pipeline._forward_params.items() if n in vars(config)}
    kwargs = {**pipeline._generate_kwargs, **later}
    given = kwargs.pop("generation_config", None)
    own = given.to_diff_dict() if given else {}
    own = {name: value for name, value in own.items() if hasattr(config, name)}
    return config, {**copy.deepcopy(own), **kwargs, **options.pipeline_kwargs}


def check_prompt_ids(pipeline: Any, ids: list[int]) -> None:
    """Refuses a prompt without tokens, or with one that the model has no embedding for.

    Raises:
        ValueError: With the token.
    """
    if not ids:
        raise ValueError(
            "The prompt has to hold at least one character, but is empty, and the tokenizer has no "
            "BOS token that an answer could begin after: write a prompt."
        )
    size = vocabulary_size(pipeline.model)
    if (last := max(ids)) >= size:
        raise ValueError(
            f"The prompt has to hold tokens with ids under {size}, as many as the model has "
            f"embeddings, but holds {pipeline.tokenizer.convert_ids_to_tokens(last)!r} ({last}), "
            "which was added to the tokenizer: call `model.resize_token_embeddings(len(tokenizer))`"
            " and train it, or leave it out."
        )


def lookup(pipeline: Any, options: GenerationOptions, name: str) -> Any:
    """Looks up a setting that is no option of ours: the call's, else the pipeline's, the model's.

    Args:
        pipeline: The pipeline.
        options: The options; their `pipeline_kwargs` may name the setting.
        name: Its name in transformers' `GenerationConfig`.

    Returns:
        Its value; None if it is unset.
    """
    value = _settings(pipeline, options)[1].get(name)
    return getattr(pipeline.model.generation_config, name, None) if value is None else value


def pipeline_callables(pipeline: Any) -> tuple[list[Any], list[Any]]:
    """The logits processors and the stopping criteria of the pipeline itself."""
    params = pipeline._forward_params
    processors = list(params.get("logits_processor") or ())
    if allowed := params.get("prefix_allowed_tokens_fn"):
        processors.insert(0, PrefixConstrainedLogitsProcessor(allowed, num_beams=1))
    return processors, list(params.get("stopping_criteria") or ())


def token_budget(
    pipeline: Any, options: GenerationOptions, prompt_tokens: int, *, first: bool = False
) -> int:
    """Tokens that an answer may have, as far as the context window goes; at least 1.

    Args:
        pipeline: The pipeline.
        options: The options; without `max_new_tokens` the pipeline's or the model's counts.
        prompt_tokens: Tokens of the prompt, and of the thinking after it.
        first: Without the continuations of `on_length="continue"`.

    Raises:
        ValueError: If the prompt leaves no room.
    """
    settings = _settings(pipeline, options)[1]
    defaults = pipeline.model.generation_config
    max_length = settings.get("max_length")  # the pipeline's own, prompt included
    budget = (
        options.max_new_tokens
        or settings.get("max_new_tokens")
        or (max_length - prompt_tokens if max_length else None)
        or defaults.max_new_tokens
    )
    if budget is None:
        # A model's own maximum is a limit (4096 for Llama 2), not a budget.
        max_length = defaults.max_length
        budget = min(DEFAULT_MAX_NEW_TOKENS, (max_length or math.inf) - prompt_tokens)
    window = context_window(pipeline.model)
    room = budget if window is None else window - prompt_tokens
    if room < 1 or budget < 1:
        limit = (
            f"the context window of {window} tokens" if room < 1 else f"`max_length` {max_length}"
        )
        raise ValueError(
            f"The prompt has to leave room for an answer in {limit}, but has {prompt_tokens} "
            f"tokens{', `thinking_tokens` among them' * (options.thinking_tokens > 0)}: shorten it."
        )
    if budget > room and not first:
        logger.info("The context window leaves %d of %d tokens for the answer.", room, budget)
    if options.on_length == "continue" and not first:
        most = max_length - prompt_tokens if max_length else math.inf
        budget = min(budget * (1 + CONTINUATIONS), most)
    return int(min(budget, room))


def with_pipeline_stops(pipeline: Any, options: GenerationOptions) -> GenerationOptions:
    """Adds what the pipeline and its model say to the options: their stops, a draft model."""
    changes: dict[str, Any] = {}
    stops = list(options.stop)
    for given in (
        pipeline._forward_params.get("stop_strings"),  # the pipeline's `stop_sequence`
        lookup(pipeline, options, "stop_strings"),
    ):
        stops += parse_stop([given] if isinstance(given, str) else given)
    if len(stops) > len(options.stop):
        changes["stop"] = tuple(dict.fromkeys(stops))
    if options.assistant_model is None and pipeline.assistant_model is not None:
        changes["assistant_model"] = pipeline.assistant_model
    return options.replaced(**changes) if changes else options


class _CallConfig(GenerationConfig):
    """The generation config of a call. Stop strings are the engine's own and never in it.

    A value of None would let `generate` take those of the model's config.
    """

    stop_strings = property(lambda config: None, lambda config, value: None)


def generation_config(
    pipeline: Any, options: GenerationOptions, *, max_new_tokens: int
) -> GenerationConfig:
    """Builds the generation config of a call; what is unset stays the model's."""
    config, settings = _settings(pipeline, options)
    sampled = options.temperature or (options.top_p or 1) < 1 or (options.top_k or 0) > 1
    if options.temperature == 0:
        # Neutral values, so that the model's own sampling settings do not take effect.
        settings |= {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    elif sampled:
        settings["do_sample"] = options.pipeline_kwargs.get("do_sample", True)
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = getattr(options, name)
        if value is not None and not (options.temperature == 0 and name != "repetition_penalty"):
            settings[name] = value
    settings.pop("max_length", None)
    settings["max_new_tokens"] = max_new_tokens
    _update(config, settings)
    return config


def check_settings(options: GenerationOptions) -> None:
    """Checks `pipeline_kwargs` without a model.

    Raises:
        ValueError: If a name is no generation setting.
    """
    _update(GenerationConfig(), options.pipeline_kwargs)  # type: ignore[no-untyped-call]


def _update(config: GenerationConfig, settings: Mapping[str, Any]) -> None:
    try:
        unknown = config.update(**settings)  # type: ignore[no-untyped-call]
    except TypeError as error:  # a value of a wrong form
        raise ValueError(
            f"`pipeline_kwargs` and the pipeline's settings have to be what transformers takes, "
            f"but {error}: correct that setting."
        ) from error
    if unknown:
        raise ValueError(
            f"`pipeline_kwargs` has to hold settings of transformers' GenerationConfig, but holds "
            f"{', '.join(map(repr, sorted(unknown)))}."
        )

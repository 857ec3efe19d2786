"""Answers that are JSON of a given schema, complete within the token budget.

llguidance says which tokens may come next. What it does not know is the budget: a way to the end
is therefore worked out at each step, and taken in time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import llguidance.hf
import llguidance.numpy
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import LogitsProcessor

from langchain_llama_stop.closers import ids_behind
from langchain_llama_stop.detokenization import detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 1024  # tokens of a way to the end: a schema that needs more cannot be closed
_OUTSIDE = ("}", "]", ",", "0", '"', "null", "false", "[", "{", ":")  # of strings, the best first
_TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, LLTokenizer] = WeakKeyDictionary()


def tools_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call of one of some tools.

    Args:
        tools: Tools in OpenAI's form.

    Returns:
        A JSON schema of {"name": …, "arguments": {…}}.
    """
    calls = []
    for tool in tools:
        function = tool.get("function", tool)
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": function.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
            }
        )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def strict(schema: Any) -> Any:
    """A schema whose objects hold the properties they name and no others, unless it says so."""
    if isinstance(schema, Mapping):
        closed = {key: strict(value) for key, value in schema.items()}
        if "properties" in closed and isinstance(closed["properties"], dict):
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    return schema


class JsonSchemaProcessor(LogitsProcessor):
    """Allows the tokens that lead to JSON of a schema, and only these, within the budget.

    What it returns depends on `input_ids` and its construction alone; the matchers it keeps are
    those of the last call, so that a row costs one token per step.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        schema: Mapping[str, Any],
        *,
        prompt_length: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """Compiles the schema.

        Args:
            tokenizer: The model's tokenizer.
            schema: A JSON schema.
            prompt_length: Width of the (left-padded) prompt, in tokens.
            max_new_tokens: The token budget of the call, EOS included.
            eos_token_ids: All EOS ids.

        Raises:
            ValueError: If the schema cannot be compiled, or its smallest value needs more tokens.
        """
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens
        self._eos = list(eos_token_ids)
        self._detokenizer = detokenizer(tokenizer)
        if tokenizer not in _TOKENIZERS:
            _TOKENIZERS[tokenizer] = llguidance.hf.from_tokenizer(cast(Any, tokenizer))
        self._tokenizer = _TOKENIZERS[tokenizer]
        self._outside = [ids[0] for t in _OUTSIDE if (ids := ids_behind(tokenizer, "x", t))]
        whole = strict(schema)
        self._start = self._matcher(whole)
        self._known: dict[tuple[int, ...], LLMatcher] = {(): self._start}
        least = len(self._way_out(self._start, ())) + 1
        if least > max_new_tokens:
            raise ValueError(
                f"`max_new_tokens` has to be {least} or more for this schema, whose smallest "
                f"value takes so many tokens, but is {max_new_tokens}."
            )
        # One token can make a whole sub-value due: an optional property, another item.
        parts = [self._way_out(self._matcher(part), ()) for part in _parts(whole, whole)]
        self._reserve = max(map(len, parts), default=0) + 4

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids what does not lead to a value of the schema.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab).
        """
        scores = scores.clone()
        known: dict[tuple[int, ...], LLMatcher] = {(): self._start}
        for row, ids in enumerate(map(tuple, input_ids[:, self.prompt_length :].tolist())):
            if not set(ids).isdisjoint(self._eos):  # finished; what follows is padding
                continue
            matcher = known[ids] = self._after(ids)
            way = self._way_out(matcher, ids)
            if len(way) + 1 + self._reserve >= self.max_new_tokens - len(ids):
                allowed = torch.zeros(self._tokenizer.vocab_size, dtype=torch.bool)  # (vocab,)
                allowed[way[:1] or self._eos] = True
            else:
                allowed = self._allowed(matcher)
                if matcher.is_accepting():
                    allowed[self._eos] = True
            size = scores.shape[1]
            allowed = torch.nn.functional.pad(allowed, (0, max(0, size - len(allowed))))[:size]
            scores[row, ~allowed.to(scores.device)] = -torch.inf
        self._known = known
        return scores

    def _matcher(self, schema: Any) -> LLMatcher:
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_flexible": False}
        )
        if error := LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise ValueError(f"`json_schema` cannot be compiled: {error}")
        return LLMatcher(self._tokenizer, grammar)

    def _after(self, ids: tuple[int, ...]) -> LLMatcher:
        """The state behind some ids."""
        before = self._known.get(ids[:-1])
        if ids in self._known:
            return self._known[ids]
        matcher = (before or self._start).deep_copy()
        matcher.consume_tokens(list(ids[-1:] if before else ids))
        return matcher

    def _allowed(self, matcher: LLMatcher) -> torch.Tensor:
        """Which tokens may come next, (vocab,)."""
        return _bits(self._mask(matcher))[: self._tokenizer.vocab_size]

    def _mask(self, matcher: LLMatcher) -> torch.Tensor:
        """The same as 32 bits a word, (words,)."""
        mask = llguidance.numpy.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        return torch.from_numpy(mask[0])

    def _way_out(self, matcher: LLMatcher, ids: Sequence[int]) -> list[int]:
        """Ids of a short way to a complete value."""
        if matcher.is_accepting():
            return []
        matcher, way = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting() and len(way) < _LONGEST:
            forced = matcher.compute_ff_tokens()
            if not forced:
                mask = self._mask(matcher)
                text = self._detokenizer.decode([*ids, *way])
                wanted = [self._outside[_OUTSIDE.index('"')]] if _in_string(text) else self._outside
                first = next((t for t in wanted if int(mask[t >> 5]) >> (t & 31) & 1), None)
                forced = [int(_bits(mask).nonzero()[0]) if first is None else first]
            if not matcher.consume_tokens(forced):
                break
            way += forced
        return way


def _bits(mask: torch.Tensor) -> torch.Tensor:
    """The bits of 32-bit words, lowest first, (32 * words,)."""
    return ((mask[:, None] >> torch.arange(32, dtype=torch.int32)) & 1).bool().flatten()


def _parts(schema: Any, whole: Any) -> Iterator[dict[str, Any]]:
    """The schemas within a schema, each with the definitions it may refer to."""
    if isinstance(schema, list):
        for item in schema:
            yield from _parts(item, whole)
    if not isinstance(schema, dict):
        return
    if schema.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"}:
        shared = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
        yield {**shared, **schema}
    for value in schema.values():
        yield from _parts(value, whole)


def _in_string(text: str) -> bool:
    """Whether a JSON text ends inside of a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside

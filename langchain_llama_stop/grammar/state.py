"""Where an answer under a grammar stands, and the tokens that complete it soonest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from langchain_llama_stop.grammar.completion import MAX_COMPLETION, GrammarTokens
from langchain_llama_stop.grammar.items import Items
from langchain_llama_stop.grammar.keys import Keys, shortest_completion
from langchain_llama_stop.grammar.rules import Place

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from langchain_llama_stop.grammar.schema import Grammar

logger = logging.getLogger("langchain_llama_stop")

_MARGIN = 4
"""Tokens kept beside a part's completion, for separators and brackets around it. Not tuned."""


def begin(tokens: GrammarTokens, grammar: Grammar, limit: int) -> State | None:
    """The state before the first token.

    Args:
        tokens: The tokenizer's tokens.
        grammar: The grammar.
        limit: Tokens that the smallest answer may have.

    Returns:
        The state; None if llguidance cannot compile the grammar.
    """
    matcher = tokens.compiled(grammar.lark)
    if matcher is None:
        return None
    matcher = matcher.deep_copy()
    parser = grammar.parser or tokens.parser(grammar.lark)
    if parser is None:
        start = tokens.short_completion(matcher, MAX_COMPLETION)
        return _Walked(tokens, matcher, len(start) + _MARGIN, limit, start)
    parts = {parser.rest(symbols, 0) for rule in parser.alternatives for symbols in rule}
    margin = max(map(tokens.vocabulary.length, parts), default=0) + parser.detour + _MARGIN
    return _Parsed(tokens, matcher, parser.begin(), Keys(), Items(), margin, limit, first=True)


class State:
    """The state of an answer.

    Attributes:
        matcher: llguidance's state.
        reserve: Tokens by which one token may lengthen the way to the end.
        completion: Ids that complete the answer; [] if it is complete.
        length: Their number.
        tried: Top tokens of which the way to the end may be computed; it costs some microseconds
            under rules that are known, and a search else.
    """

    matcher: LLMatcher
    reserve: int
    completion: list[int]
    tried = 256

    @property
    def forbidden(self) -> list[int]:
        """Tokens that the grammar allows and the state does not."""
        return []

    @property
    def accepting(self) -> bool:
        """Whether the answer is complete."""
        return bool(self.matcher.is_accepting())

    @property
    def length(self) -> int:
        """The number of tokens that complete the answer."""
        return len(self.completion)

    def after(self, ids: tuple[int, ...]) -> State:
        """The state after more tokens."""
        raise NotImplementedError

    def length_after(self, token: int) -> int:
        """The length after one more token."""
        return self.after((token,)).length


@dataclass(eq=False)
class _Parsed(State):
    """The state under rules that are known: the shortest completion is, too.

    Attributes:
        place: Where the answer stands; None if the rules do not allow it.
        keys: Keys that are written, where an object may have any.
        items: Items that are written, where a list may have any number.
    """

    tokens: GrammarTokens
    matcher: LLMatcher
    place: Place | None
    keys: Keys
    items: Items
    margin: int
    left: int
    first: bool = False

    @property
    def reserve(self) -> int:  # type: ignore[override]
        """Where keys may run out, every step is checked."""
        names = self.place is not None and self.place.parser.has_names
        return MAX_COMPLETION << 10 if names else self.margin

    def after(self, ids: tuple[int, ...]) -> State:
        matcher = self.matcher.deep_copy()
        matcher.consume_tokens(list(ids))
        place, keys, items = self._followed(ids)
        left = self.left - len(ids)
        return _Parsed(self.tokens, matcher, place, keys, items, self.margin, left)

    def length_after(self, token: int) -> int:
        place, keys, _ = self._followed((token,))
        text = None if place is None else shortest_completion(place, keys)
        return MAX_COMPLETION + 1 if text is None else self.tokens.vocabulary.length(text)

    def _followed(self, ids: tuple[int, ...]) -> tuple[Place | None, Keys, Items]:
        place, keys, items = self.place, self.keys, self.items
        for token in ids:
            if place is None:
                break
            text = self.tokens.vocabulary.texts[token]
            if place.after(chr(256 + token)) is not None:  # the rules name this token
                text = chr(256 + token)
            for piece in text if place.in_text else [text]:  # JSON may begin inside of a token
                place = None if place is None else place.after(piece)
                if place is not None and place.parser.has_keys:
                    keys = Keys() if place.in_text else keys.after(piece)
                if place is not None and place.parser.has_lists:
                    items = Items() if place.in_text else items.after(piece)
        return place, keys, items

    @cached_property
    def completion(self) -> list[int]:  # type: ignore[override]
        if self.accepting:
            return []
        text = None if self.place is None else shortest_completion(self.place, self.keys)
        vocabulary, ids = self.tokens.vocabulary, list[int]()
        if text is not None and self.place is not None:
            ids = vocabulary.ids(text)
            if self.first and len(ids) > self.left:  # before it is refused
                ids = vocabulary.fewest(self.place, self.left) or ids
        if ids and self.matcher.validate_tokens(ids) == len(ids):
            return ids
        logger.debug("No completion of %r is known; one is looked for.", text)
        return self.tokens.short_completion(self.matcher, self.left)

    @property
    def forbidden(self) -> list[int]:
        """Tokens that write a key of an object a second time, or continue a list in a loop."""
        vocabulary, found = self.tokens.vocabulary, list[int]()
        if self.place is None:
            return found
        if self.place.parser.has_keys and (written := self.keys.all_written):
            found += [i for text in self.keys.taken for i in vocabulary.beginning_with(text)]
            quoted = [f'"{key}"' for key in written]
            for i in vocabulary.quoting:
                text = vocabulary.texts[i]
                several = text.count('"') > 3
                if (several or any(q in text for q in quoted)) and self.keys.after(text).repeated:
                    found.append(i)
        if self.items.nears_loop:
            found += [i for i in vocabulary.continuing if self._loops(vocabulary.texts[i])]
        return found

    def _loops(self, text: str) -> bool:
        """Whether a text continues a list in a loop that may as well end."""
        comma = self.items.after(text).looped - len(self.items.text)
        before = None if comma < 0 or self.place is None else self.place.after(text[:comma])
        return before is not None and before.after("]") is not None


@dataclass(eq=False)
class _Walked(State):
    """The state under a grammar that the user wrote: short completions are looked for."""

    tokens: GrammarTokens
    matcher: LLMatcher
    reserve: int
    left: int
    found: list[int] | None = None

    tried = 32

    def after(self, ids: tuple[int, ...]) -> State:
        matcher = self.matcher.deep_copy()
        matcher.consume_tokens(list(ids))
        # The completion of before often still fits: a longer word is ended in the same way, and a
        # token may have covered several tokens of it.
        old, found = self.completion, None
        for rest in (old[1:], old, old[2:], old[3:]):
            if rest and matcher.validate_tokens(rest) == len(rest) and _completes(matcher, rest):
                found = rest
                break
        return _Walked(self.tokens, matcher, self.reserve, self.left - len(ids), found)

    @cached_property
    def completion(self) -> list[int]:  # type: ignore[override]
        if self.accepting:
            return []
        return self.found or self.tokens.short_completion(self.matcher, self.left)


def _completes(matcher: LLMatcher, ids: list[int]) -> bool:
    """Whether appending these (allowed) tokens completes the answer."""
    matcher = matcher.deep_copy()
    return matcher.consume_tokens(ids) and bool(matcher.is_accepting())

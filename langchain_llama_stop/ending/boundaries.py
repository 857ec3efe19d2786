r"""Where an answer may end: pure text, judged by itself, and by what follows where that is known.

`is_true_end` asks whether a sentence, list item, table row, code block, formula or JSON value
is finished. `open_constructs` asks what a text still owes: brackets, quotes, emphasis, fences.
An answer may end where the first is true and the second is empty.

A missed end costs one more sentence, a false one cuts a thought in two. So a doubtful end is no
end: of a growing text, "costs about 3." may become 3.14, and "in the U.S." may continue. What
follows removes the doubt, once it is known: a newline, a new sentence, or nothing at all. Apart
from that, whitespace after the text changes nothing, except in Thai and Lao: a space ends a
sentence there.

Not recognized: tables without outer pipes, fences in block quotes.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from langchain_llama_stop.ending.full_stop import After, after, dot_ends, goes_on, settles
from langchain_llama_stop.ending.markup import CITATION, MARK, apply_mark, json_values, outlasting

Boundary = Literal["sentence", "line", "paragraph"]

_TERMINATORS = ".!?…。！？｡．؟۔।॥‽⁇⁈⁉‼⸮։።፧፨។៕။།༎᠃᠉᙮෴܀\u037eฯ๚๛꓿꘎꘏︒﹖﹗"
CLOSING_CHARS = r"\"'”’“‘»«›)\]}）」』】》〉］｝〕〟*_`~"
_EMOJI = "\u200d\u20e3\u231a-\u23ff\u2600-\u2793\u2b50\u2b55\ufe0f\U0001f000-\U0001faff"
_CONTINUES = tuple(":,;-–—/&：，；、،؛")

# A terminator and what may follow it: closers, and after a space emoji, », a smiley, tag or source.
_CLOSING_TAG = r"(?:</[A-Za-z][\w:-]{0,30}+\s?>|-->|<!--[^<>]{0,100}?-->)"
_TAIL = (
    rf"(?:[{CLOSING_CHARS}]|(?=[\s\\$:;<\-»¹²³⁰⁴-⁹\[【{_EMOJI}])"
    rf"(?:\\\)|\$(?!\w)|\s*+(?:[»{_EMOJI}]|[:;]-?\)|{_CLOSING_TAG}|{CITATION})))*+"
)
# A character class comes first, for speed. Greek asks with ";"; a space ends a sentence in Thai.
_MARK = rf"[{_TERMINATORS};](?:(?<!;)|(?<=[\u0370-\u03ff\u1f00-\u1fff];))"
_SPACED = "\u0e01-\u0e3a\u0e40-\u0e5b\u0e81-\u0eff"  # Thai and Lao
_END = re.compile(rf"({_MARK})({_TAIL})(?<!\u200d)\Z")
_TAGS_END = re.compile(rf"\s*(?:{_CLOSING_TAG}\s*)+")
_CANDIDATE = re.compile(
    rf"[{_TERMINATORS};$\\<\-{_SPACED}](?:(?<=[{_TERMINATORS}]){_TAIL}"
    rf"|(?<=[\u0370-\u03ff\u1f00-\u1fff];){_TAIL}|(?<=\$)(?<!\$\$)\$"
    rf"|(?<=\\)(?:\]|end\{{[A-Za-z]{{1,20}}\*?\}})|(?<=<)/[a-z]{{1,10}}>|(?<=-)->"
    rf"|(?<=[{_SPACED}])(?=\s))"
)
_STRUCTURE = re.compile(r"</(?:ul|ol|dl|table|html|body|pre|svg|script|style|form|select)>\Z")
_THAI_SENTENCE = re.compile(rf"[{_SPACED}\d]{{9,}}[{_SPACED}]\Z")
_THAI_OPEN = re.compile(  # words that announce what comes: that, is, and, or, such as, with, …
    r"(?:ว่า|คือ|และ|หรือ|ของ|ที่|เช่น|ได้แก่|โดย|กับ|จาก|เป็น|แต่|เพราะ|ถ้า|เมื่อ|ซึ่ง|ดังนี้|"
    r"ວ່າ|ແມ່ນ|ແລະ|ຫຼື|ຂອງ|ທີ່|ເຊັ່ນ|ກັບ|ຈາກ|ເປັນ|ແຕ່|ຖ້າ|ເມື່ອ)\Z"
)
_ROUGH_END = re.compile(rf"[{_TERMINATORS}][{CLOSING_CHARS}]*(?:\s|\Z)|[。！？]")
_REACH = (40, 120)  # characters from the end in which a terminator is sought; of them, with tags

_WORD = re.compile(r"[^\W_]")
_ORDINAL = r"\(?(?:\d{1,3}|[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})[.)]"
_BULLET = r"[-*+•◦▪‣●○]"
_ITEM = rf"(?:{_BULLET}|{_ORDINAL})"
_LINE = re.compile(
    rf"[ \t>]*(?:(?P<heading>#{{1,6}}[ \t])|(?P<row>\|)|(?P<item>{_ITEM}\s+(?=\S)))?"
)
_BARE_MARKER = re.compile(rf"[ \t>]*[*_]{{0,3}}{_ITEM}[*_]{{0,3}}")
_COMMENT = re.compile(r"\S+(?:[ \t]+\S+){4,}\.")
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})")
_PIPE = re.compile(r"(?<!\\)\|")
_SEPARATOR = re.compile(r"[ \t>]*\|(?=[ \t:|]*-)[ \t:|-]*")
_BRACES = re.compile(r"[ \t]*[)\]}]*\}[)\]}]*;?")  # a line that closes a block of code
_SHORT_ITEM = 80  # characters: a longer item without a terminator is an unfinished sentence
_LAST_WORD = 64  # characters before a full stop that are read: no abbreviation is longer


def open_constructs(text: str) -> tuple[str, ...]:
    r"""The closers that `text` still owes, innermost first: `"He (or she` owes `)` and `"`.

    They fit after `text.rstrip()`: a fence comes with its newline and indentation, and an
    unfinished table row owes one "|" for each cell of its header that it lacks.
    """
    return tuple(reversed(_Answer(text).owed))


def is_true_end(text: str, following: str | None = None) -> bool:
    """Whether `text` stops where a sentence, item, table row, code block or value really ends.

    Open constructs around it do not matter, except that nothing ends inside a code fence or JSON.
    """
    return _Answer(text, following).ends


def may_end(text: str, boundary: Boundary = "sentence", following: str | None = None) -> bool:
    r"""Whether `text` may end as it stands: a true end with nothing open.

    Args:
        text: The answer, up to the place that is judged.
        boundary: What counts as an end. A "line" end is followed by a newline, and then needs no
            terminator (verse) unless the line is a heading or clearly continues (":", ","). A
            "paragraph" end is followed by an empty line, or by a newline alone if it is a closed
            code fence.
        following: All that follows: "" if the answer stops here for good. None: nothing is known,
            as of a text that still grows. Then a short number or a capital before a full stop is
            in doubt, and no end.
    """
    answer = _Answer(text, following)
    if answer.owed:
        return False
    newlines = answer.newlines
    if boundary == "line":
        return newlines > 0 and (answer.ends or answer.ends_line)
    if boundary == "paragraph" and newlines < (1 if answer.closes_fence else 2):
        return False
    return answer.ends


def end_offsets(text: str, final: bool = False) -> list[int]:
    """Every offset at which `text[:offset]` may end (kind "sentence"), ascending.

    Each is judged with what follows it in the text, and comes before the whitespace there.

    Args:
        text: The answer.
        final: Whether nothing follows the text. Else that is unknown, as of one that still grows.
    """
    offsets, owed = json_values(text)
    if owed:
        return offsets
    page = _Page(text, known=final)
    for start, stop, _ in _lines(text, (offsets or [0])[-1], len(text)):
        page.enter(start, stop)
        ends = [i for i in page.candidates() if page.ends(i) and not page.owed(i)]
        offsets += ends
        if stop not in ends and page.ends(stop) and not page.owed(stop):
            offsets.append(stop)
        page.leave()
    return offsets


def last_end(text: str, final: bool = False) -> int:
    """The largest offset at which `text[:offset]` may end, 0 if there is none."""
    return (end_offsets(text, final) or [0])[-1]


def settled_end(text: str) -> int:
    """The largest offset at which a growing text may end, whatever follows it; 0 without one."""
    ends = end_offsets(text)
    return next((end for end in reversed(ends) if settles(text[end:])), 0)


def count_sentences(text: str) -> int:
    """Rough number of sentences: terminators before a space, abbreviations included.

    It costs a hundredth of `end_offsets`.
    """
    return len(_ROUGH_END.findall(text))


class _Answer:
    """One text, judged at its last character that is not whitespace."""

    def __init__(self, text: str, following: str | None = None) -> None:
        stop = len(text.rstrip())
        self.closes_fence = self.ends_line = False
        values, self.owed = json_values(text[:stop])
        begin = (values or [0])[-1]
        self.ends = begin == stop > 0
        text += following or ""
        page = _Page(text, known=following is not None)
        then = page.after(stop)
        self.newlines = then.gap.count("\n")
        if self.owed or self.ends:
            return
        for start, end, more in _lines(text, begin, stop):
            page.enter(start, end)
            if more:
                page.leave()
        self.owed = page.owed(stop)
        self.ends = page.ends(stop)
        self.ends_line = page.ends_line()
        self.closes_fence = bool(page.fence) and self.ends


class _Page:
    """A walk over the lines of a text: the state after the complete ones, and the current one.

    Of the text after the offset in question only the next word counts, so one walk serves all
    prefixes. Offsets must come in ascending order.
    """

    def __init__(self, text: str, known: bool) -> None:
        self.text = text
        self.known = known  # whether nothing follows the text
        self.outlasts = "<" in text or "\\begin{" in text  # something may outlast its paragraph
        self.ended = False  # the line before ends a sentence
        self.carried: list[str] = []  # what the blocks so far have left open
        self.fence = ""  # the open fence, with its indentation
        self.fresh = True  # the next line starts a block
        self.rows = self.pipes = 0  # of the table so far, and of its header
        self.indent, self.siblings, self.plain = -1, 0, True  # the items so far: no terminators?

    def enter(self, start: int, stop: int) -> None:
        """Start the line `text[start:stop]`."""
        line = _LINE.match(self.text, start, stop)
        assert line is not None  # every part of the pattern is optional
        self.start, self.stop, self.content = start, stop, line.end()
        self.kind = line.lastgroup or ""
        if self.kind or self.fresh:
            self.block = _Block(self.text, self.content, self.carried)
        self.fresh = False
        if word := _WORD.search(self.text, self.content, stop):
            self.block.word = min(self.block.word, word.start())
        if self.kind != "row":
            self.rows = self.pipes = 0
        if self.kind != "item" and stop > self.content:
            self.indent = -1
        elif self.kind == "item" and line.start("item") - start != self.indent:
            self.indent, self.siblings, self.plain = line.start("item") - start, 0, True

    def leave(self) -> None:
        """Finish the line: it is complete."""
        if self.outlasts and not self.fence:
            self.carried = outlasting(self.block.owed(self.stop))
            if self.stop > self.content and not self._only_tags(self.stop):
                self.ended = self._terminator(self.stop) is not None
        if self.fence:
            if self._closes_fence(self.stop):
                self.fence, self.fresh = "", True
        elif fence := self._opened_fence(self.stop):
            self.fence = fence
        elif self.kind == "row":
            self.rows += 1
            if self.rows == 1:
                self.pipes = self._count_pipes(self.stop)
            elif self.rows == 2 and not _SEPARATOR.fullmatch(self.text, self.start, self.stop):
                self.pipes = 0
        elif self.kind == "item":
            self.siblings += 1
            self.plain &= not self._terminator(self.stop)
            if self._continues():
                self.indent = -1
        else:
            self.fresh = self.kind == "heading" or self.content == self.stop

    def candidates(self) -> Iterable[int]:
        """The offsets in this line that could be ends, judged by the line alone."""
        if self.fence:
            fence = _FENCE.match(self.text, self.start, self.stop)
            return range(self.start + 3, fence.end() + 1) if fence else ()
        if self.kind == "row":
            pipes = [m.end() for m in _PIPE.finditer(self.text, self.start, self.stop)]
            return pipes[self.pipes - 1 : self.pipes]  # the last cell of its header
        return (
            i + 1
            for m in _CANDIDATE.finditer(self.text, self.content, self.stop)
            for i in range(m.start(), m.end())
            if not self.text[i].isspace()
        )

    def after(self, stop: int) -> After:
        """What follows `stop`."""
        return after(self.text, stop, self.known)

    def ends(self, stop: int) -> bool:
        """Whether something ends at `stop`."""
        text = self.text
        if self.fence:
            return self._closes_fence(stop)
        if self.kind == "row":
            full = self._count_pipes(stop) == self.pipes > 1 and self.rows > 1
            return full and _PIPE.match(text, stop - 1) is not None
        if self._closes_structure(stop):
            return True
        if self.block.word >= stop or self._is_label(stop):
            return False
        end, then = self._terminator(stop), self.after(stop)
        if not end:
            plain = stop == self.stop and then.newline and self._is_plain_item()
            return plain or self._is_formula(stop) or self._is_spaced_end(stop, then)
        if goes_on(end[1], end[2], then):
            return False
        if end[1] == ".":
            before = text[max(self.start, end.start() - _LAST_WORD) : end.start()]
            return dot_ends(before, end[2], then, text[self.block.word].islower())
        return not (end[1] in "?？" and self._is_bold(stop))  # a bold question is a heading

    def ends_line(self) -> bool:
        """Whether the line, if complete, may stand without a terminator, as in verse."""
        words = _WORD.search(self.text, self.content, self.stop)
        skip = self.fence or self.kind == "row" or self._is_label(self.stop)
        return bool(words) and not (skip or self._is_bold(self.stop) or self._continues())

    def owed(self, stop: int) -> list[str]:
        """The closers owed at `stop`, outermost first."""
        if self.fence:
            return [] if self._closes_fence(stop) else ["\n" + self.fence]
        if fence := self._opened_fence(stop):
            return ["\n" + fence]
        if self.kind != "row":
            return self.block.owed(stop)
        unfinished = not _PIPE.match(self.text, stop - 1)
        missing = max((self.pipes or 2) - self._count_pipes(stop), int(unfinished))
        return ["|"] * missing + self.block.owed(stop)

    def _opened_fence(self, stop: int) -> str:
        """The fence that the line opens, with its indentation, "" if none."""
        fence = _FENCE.match(self.text, self.start, stop)
        inline = fence and self.text.find("`", fence.end(), stop) >= 0  # ```code``` in a line
        return fence[0] if fence and not inline else ""

    def _closes_fence(self, stop: int) -> bool:
        line, fence = self.text[self.start : stop].strip(), self.fence.strip()
        return line.startswith(fence) and not line.strip(fence[0])

    def _count_pipes(self, stop: int) -> int:
        return sum(1 for _ in _PIPE.finditer(self.text, self.start, stop))

    def _terminator(self, stop: int) -> re.Match[str] | None:
        reach = _REACH[self.text.endswith(">", self.content, stop)]
        return _END.search(self.text, max(self.content, stop - reach), stop)

    def _is_label(self, stop: int) -> bool:
        """Whether the line only introduces what follows: a heading, bare marker or open fence."""
        if self.kind == "heading":  # a whole sentence after # is a comment in code
            return not _COMMENT.fullmatch(self.text, self.content, stop)
        marker = _BARE_MARKER.fullmatch(self.text, self.start, stop)
        return bool(marker) or self._opened_fence(stop) != ""

    def _is_bold(self, stop: int) -> bool:
        """Whether the whole line is bold, like a heading."""
        mark = self.text[self.content : self.content + 2]
        return mark in ("**", "__") and self.text.find(mark, self.content + 2, stop) == stop - 2

    def _is_plain_item(self) -> bool:
        short = self.kind == "item" and self.stop - self.content <= _SHORT_ITEM
        return short and self.siblings > 0 and self.plain and not self._continues()

    def _is_formula(self, stop: int) -> bool:
        """Whether the line is, or closes, a displayed formula or an environment."""
        if self.text.endswith("}", self.content, stop):
            return self.text.startswith(r"\end{", self.text.rfind("\\", self.content, stop))
        starts = self.text.startswith(("$$", r"\[", r"\]"), self.content, stop)
        ends = self.text.endswith(("$$", r"\]"), self.content, stop)
        return starts and ends and not self.text.endswith("$$$", self.content, stop)

    def _only_tags(self, stop: int) -> bool:
        """Whether the line up to `stop` holds nothing but tags that close elements."""
        return _TAGS_END.fullmatch(self.text, self.content, stop) is not None

    def _closes_structure(self, stop: int) -> bool:
        """Whether a line of braces closes code, or a tag a list, table, page or ended element."""
        if _BRACES.fullmatch(self.text, self.start, stop):
            then = self.after(stop)
            return then.newline or not then.word
        if not self.text.endswith(">", self.content, stop):
            return False
        if _STRUCTURE.search(self.text, max(self.content, stop - 12), stop):
            return True
        return self.ended and self._only_tags(stop)

    def _is_spaced_end(self, stop: int, then: After) -> bool:
        """Whether a Thai or Lao sentence ends by a space, a newline or the end of the text."""
        if not then.gap and (then.word or not then.known):
            return False
        begin = max(self.content, stop - _LAST_WORD)
        sentence = _THAI_SENTENCE.search(self.text, begin, stop)
        if not sentence or _THAI_OPEN.search(self.text, begin, stop):
            return False
        return then.newline or not then.word or not re.match(r"[\dA-Za-zๆฯ,;(]", then.word)

    def _continues(self) -> bool:
        return self.text[self.content : self.stop].rstrip("*_").endswith(_CONTINUES)


class _Block:
    """The open markup of a paragraph, item, heading or row; each block starts without any."""

    def __init__(self, text: str, start: int, carried: list[str]) -> None:
        self.text, self.read = text, start
        self.word = len(text)  # offset of its first letter or digit
        self.stack = carried.copy()

    def owed(self, stop: int) -> list[str]:
        for token in MARK.finditer(self.text, self.read, stop):
            if token.end() == stop:  # it may still grow, and the next character is not there yet
                stack = self.stack.copy()
                apply_mark(stack, self.text, token.start(), stop, stop)
                return stack
            apply_mark(self.stack, self.text, token.start(), token.end(), stop)
            self.read = token.end()
        self.read = max(self.read, stop)
        return self.stack


def _lines(text: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """For every line: start, end without trailing whitespace, start of the next (0 if none)."""
    while True:
        newline = text.find("\n", start, stop)
        end = stop if newline < 0 else newline
        yield start, start + len(text[start:end].rstrip()), newline + 1
        if newline < 0:
            return
        start = newline + 1

r"""Where an answer may end: pure text, judged as far as it is written, without look-ahead.

`is_true_end` asks whether a sentence, list item, table row, code block, formula or JSON value
is finished. `open_constructs` asks what a text still owes: brackets, quotes, emphasis, fences.
An answer may end where the first is true and the second is empty.

A missed end costs one more sentence, a false one cuts a thought in two. So a doubtful end is no
end. A newline removes some doubt, because no unfinished number or name contains one: "costs about
3." may become 3.14, and "in the U.S." may continue, but "in the U.S.\n" is finished. Apart from
that, whitespace after the text changes nothing.

Not recognized: sentence ends in languages that write none (Thai, Lao), tables without outer pipes,
fences in block quotes.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from langchain_llama_stop.ending.markup import MARK, OPENERS, apply_mark, json_values

Boundary = Literal["sentence", "line", "paragraph"]

_TERMINATORS = ".!?…。！？｡．؟۔।॥‽⁇⁈⁉‼⸮։።፧፨។៕။།༎᠃᠉᙮෴܀"
CLOSING_CHARS = r"\"'”’“‘»«›)\]}）」』】》〉*_`~"
_EMOJI = "\u200d\u20e3\u231a-\u23ff\u2600-\u2793\u2b50\u2b55\ufe0f\U0001f000-\U0001faff"
_CONTINUES = tuple(":,;-–—/&：，；、،؛")

# A terminator and what may follow it: closers, and after a space emoji, » or a smiley.
_TAIL = rf"(?:[{CLOSING_CHARS}]|\s*+[»{_EMOJI}]|\s*+[:;]-?\))*+"
_END = re.compile(rf"([{_TERMINATORS}])({_TAIL})(?<!\u200d)\Z")
_CANDIDATE = re.compile(rf"[{_TERMINATORS}]{_TAIL}|(?<!\$)\$\$|\\\]")
_ROUGH_END = re.compile(rf"[{_TERMINATORS}][{CLOSING_CHARS}]*(?:\s|\Z)|[。！？]")
_REACH = 40  # characters from the end in which the terminator is sought: room for its closers

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
_SHORT_ITEM = 80  # characters: a longer item without a terminator is an unfinished sentence
_LAST_WORD = 64  # characters before a full stop that are read: no abbreviation is longer

# Words whose dot ends no sentence; after those of the second set it does before a newline.
_ABBREVIATIONS = frozenset(
    "Dr Mr Mrs Ms Prof Rev Hon Gen Capt Lt Sgt Gov Sen Messrs e.g i.e eg ie cf vs viz approx ca "
    "Fig Figs Eq Vol pp Nos Sra Srta Dra Ud Uds Vd ej p.ej z.B d.h bzw vgl ggf inkl evtl Hr Frl "
    "Mme Mlle Mmes MM Sig dott डॉ".split()
)
_SELDOM_ENDS = frozenset(
    "Inc Ltd Co Corp Bros Jr Sr St Ave Blvd Rd Mt No Nr al fig vol est dept Dept Univ "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec".split()
)
_DOTTED_ENDS = ("a.m", "p.m", "A.M", "P.M", "a. m", "p. m")
_INITIAL = re.compile(r"(?<![\w.'’])((?:[^\W\d_]\.[ -]?)*)([^\W\d_])\Z")
# Lower-case letters that start an abbreviation (a.m., e.g., i.e., p.m., d.h.) or are one.
_LETTER_ABBREVIATIONS = "acdeipsuvz"
_SHORT_NUMBER = re.compile(r"(?<![\d.,:/])\d{1,3}\Z")  # 3. may become 3.14; 1889., 5:30. may not
_HALF_ADDRESS = re.compile(r"(?:://|\w@|\bwww\.)[^\s./]*\Z|\bwww\Z")


def open_constructs(text: str) -> tuple[str, ...]:
    r"""The closers that `text` still owes, innermost first: `"He (or she` owes `)` and `"`.

    They fit after `text.rstrip()`: a fence comes with its newline and indentation, and an
    unfinished table row owes one "|" for each cell of its header that it lacks.
    """
    return tuple(reversed(_Answer(text).owed))


def is_true_end(text: str) -> bool:
    """Whether `text` stops where a sentence, item, table row, code block or value really ends.

    Open constructs around it do not matter, except that nothing ends inside a code fence or JSON.
    """
    return _Answer(text).ends


def may_end(text: str, boundary: Boundary = "sentence") -> bool:
    r"""Whether `text` may end as it stands: a true end with nothing open.

    A "line" end is followed by a newline, and then needs no terminator (verse) unless the line
    is a heading or clearly continues (":", ","). A "paragraph" end is followed by an empty line,
    or by a newline alone if it is a closed code fence.
    """
    answer = _Answer(text)
    if answer.owed:
        return False
    newlines = text.count("\n", answer.stop)
    if boundary == "line":
        return newlines > 0 and (answer.ends or answer.ends_line)
    if boundary == "paragraph" and newlines < (1 if answer.closes_fence else 2):
        return False
    return answer.ends


def end_offsets(text: str) -> list[int]:
    r"""Every offset at which `text[:offset]` may end (kind "sentence"), ascending.

    Whitespace after an end makes no new end: of the prefixes that differ only in trailing
    whitespace, the shortest that may end counts. That is the one without any, except where
    the newline decides ("- figs\n- pears\n").
    """
    offsets, owed = json_values(text)
    if owed:
        return offsets
    page = _Page(text)
    for start, stop, following in _lines(text, (offsets or [0])[-1], len(text)):
        page.enter(start, stop)
        ends = [i for i in page.candidates() if page.ends(i, False) and not page.owed(i)]
        offsets += ends
        if following and stop not in ends and page.ends(stop, True) and not page.owed(stop):
            offsets.append(following)
        page.leave()
    return offsets


def last_end(text: str) -> int:
    """The largest offset at which `text[:offset]` may end, 0 if there is none."""
    return (end_offsets(text) or [0])[-1]


def count_sentences(text: str) -> int:
    """Rough number of sentences: terminators before a space, abbreviations included.

    It costs a hundredth of `end_offsets`.
    """
    return len(_ROUGH_END.findall(text))


class _Answer:
    """One text, judged at its last character that is not whitespace."""

    def __init__(self, text: str) -> None:
        self.stop = len(text.rstrip())
        self.closes_fence = self.ends_line = False
        values, self.owed = json_values(text[: self.stop])
        begin = (values or [0])[-1]
        self.ends = begin == self.stop > 0
        if self.owed or self.ends:
            return
        page = _Page(text)
        for start, stop, following in _lines(text, begin, self.stop):
            page.enter(start, stop)
            if following:
                page.leave()
        self.owed = page.owed(self.stop)
        self.ends = page.ends(self.stop, newline="\n" in text[self.stop :])
        self.ends_line = page.ends_line()
        self.closes_fence = bool(page.fence) and self.ends


class _Page:
    """A walk over the lines of a text: the state after the complete ones, and the current one.

    Nothing depends on the text after the offset in question, so one walk serves all prefixes.
    Offsets must come in ascending order.
    """

    def __init__(self, text: str) -> None:
        self.text = text
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
            self.block = _Block(self.text, self.content)
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

    def ends(self, stop: int, newline: bool) -> bool:
        """Whether something ends at `stop`; `newline`: whether the line ends there too."""
        text = self.text
        if self.fence:
            return self._closes_fence(stop)
        if self.kind == "row":
            full = self._count_pipes(stop) == self.pipes > 1 and self.rows > 1
            return full and _PIPE.match(text, stop - 1) is not None
        if self.block.word >= stop or self._is_label(stop):
            return False
        end = self._terminator(stop)
        if not end:
            return newline and self._is_plain_item() or self._is_formula(stop)
        if end[1] == ".":
            before = text[max(self.start, end.start() - _LAST_WORD) : end.start()]
            return _dot_ends(before, end[2], newline)
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
        return _END.search(self.text, max(self.content, stop - _REACH), stop)

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
        """Whether the line is, or closes, a displayed formula."""
        starts = self.text.startswith(("$$", r"\[", r"\]"), self.content, stop)
        ends = self.text.endswith(("$$", r"\]"), self.content, stop)
        return starts and ends and not self.text.endswith("$$$", self.content, stop)

    def _continues(self) -> bool:
        return self.text[self.content : self.stop].rstrip("*_").endswith(_CONTINUES)


class _Block:
    """The open markup of a paragraph, item, heading or row; each block starts without any."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.read = text, start
        self.word = len(text)  # offset of its first letter or digit
        self.stack: list[str] = []

    def owed(self, stop: int) -> list[str]:
        for token in MARK.finditer(self.text, self.read, stop):
            before = self.text[token.start() - 1] if token.start() else ""
            if token.end() == stop:  # it may still grow, and the next character is not there yet
                stack = self.stack.copy()
                apply_mark(stack, token[0], before, "")
                return stack
            apply_mark(self.stack, token[0], before, self.text[token.end()])
            self.read = token.end()
        self.read = max(self.read, stop)
        return self.stack


def _dot_ends(before: str, tail: str, newline: bool) -> bool:
    """Whether a full stop after `before` ends a sentence; `tail`: the closers after it."""
    if before.endswith("."):
        return before.endswith("..")  # an ellipsis, not half of one
    if not before or before[-1].isspace():
        return False
    word = before.rsplit(None, 1)[-1].lstrip(OPENERS)
    if word in _ABBREVIATIONS:
        return False
    if newline or before.endswith(_DOTTED_ENDS):
        return True
    if word == "No":  # an answer, or the abbreviation of number
        return not before[:-2].rstrip()[-1:].isalnum()
    if word in _SELDOM_ENDS or _HALF_ADDRESS.search(before):
        return False
    if _SHORT_NUMBER.search(before):
        return tail != ""
    initial = _INITIAL.search(before)
    return not initial or not (
        initial[1] or initial[2].isupper() or initial[2] in _LETTER_ABBREVIATIONS
    )


def _lines(text: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """For every line: start, end without trailing whitespace, start of the next (0 if none)."""
    while True:
        newline = text.find("\n", start, stop)
        end = stop if newline < 0 else newline
        yield start, start + len(text[start:end].rstrip()), newline + 1
        if newline < 0:
            return
        start = newline + 1

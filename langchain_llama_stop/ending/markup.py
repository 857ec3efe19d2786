"""Which markup opens and closes: brackets, quotes, emphasis, inline code, JSON.

The details of `boundaries`: whether a character opens something here, or closes it.
"""

import re

# One character class comes first: the regex engine finds it many times faster than branches.
MARK = re.compile(
    r"([`*_$\\:;'’\"“”„‘‚«»‹›()\[\]{}（）「」『』【】《》〈〉¿¡?!])"
    r"(?:(?<=[`*_$])\1+|(?<=\\)[^`\s]|(?<=[:;])-?[()]|(?<=['’])(?:em|tis|twas|til|cause|n|s|t|k)\b)?"
)
_PAIRS = dict(zip("([{（「『【《〈“„‘‚«»‹¿¡", ")]}）」』】》〉”“’‘»«›?!", strict=True)) | {
    r"\(": r"\)",
    r"\[": r"\]",
}
_DEPTH = 64  # no prose nests deeper, and the limit keeps searches of the stack short
OPENERS = "([{（「『\"'“‘«„¿¡*_~—–-/>|:="

_JSON_START = re.compile(
    r'\s*(?:\{\s*(?:["}]|\Z)|\[(?:\]|\s*(?:["\[{]|-?\d[\d.eE+-]*\s*(?:,|\Z)|true\b|false\b|null\b|\Z)))'
)
_JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)


def apply_mark(stack: list[str], token: str, before: str, after: str) -> None:
    """Open or close what `token` opens or closes, between the characters `before` and `after`."""
    if stack and stack[-1][0] == "`":  # inside inline code only its end counts
        if token == stack[-1]:
            stack.pop()
    elif token[0] in "*_":
        _apply_emphasis(stack, token, before, after)
    elif token in stack and not (token in "'’" and after.isalnum()):
        del stack[len(stack) - 1 - stack[::-1].index(token)]
    elif token in (")", "]") and stack[-1:] == [")" if token == "]" else "]"]:
        stack.pop()  # a half-open interval: [0, 1)
    elif token == "”" and "“" in stack:
        stack.remove("“")  # „Polish”
    elif len(stack) < _DEPTH and (closer := _closer_of(token, before, after)):
        stack.append(closer)


def _closer_of(token: str, before: str, after: str) -> str:
    """The closer that `token` makes owed, "" if it opens nothing."""
    follows_space = not before or before.isspace()
    if token[0] == "`" or token == "$$":
        return token
    if token == '"':  # opens nothing in 5" (inches), in Hebrew, alone
        opens = follows_space or before in OPENERS or (before >= "\u2e80" and before.isalnum())
        return '"' if opens else ""
    if token in ("'", "‘"):
        opens = (follows_space or before in OPENERS) and after.isalpha()
        return ("'" if token == "'" else "’") if opens else ""
    if token == "»":  # »so wird in manchen Büchern zitiert«
        return "«" if follows_space and after.isalnum() else ""
    return _PAIRS.get(token, "")


def _apply_emphasis(stack: list[str], run: str, before: str, after: str) -> None:
    """Open or close * ** *** (or _): an open mark is closed by the next of its kind."""
    if len(run) > 3:
        return  # a rule, a blank to fill in, a starred-out word
    follows_space = not before or before.isspace() or before in OPENERS
    power = before.isascii() and after.isdigit()  # 2**10
    inside = follows_space or (len(run) > 1 and run[0] == "*" and not power)
    opens = (
        inside
        and after != ""
        and not after.isspace()
        and after not in ".,;:!?)]}…|。，、！？：；）」"
    )
    closes = run[0] == "*" or not after.isalnum()  # not in snake_case
    marks = (run[:2], run[:1]) if len(run) == 3 else (run,)
    for mark in marks:
        if mark in stack:
            if closes:
                del stack[len(stack) - 1 - stack[::-1].index(mark)]
        elif opens and len(stack) < _DEPTH:
            stack.append(mark)


def json_values(text: str) -> tuple[list[int], list[str]]:
    """Ends of the JSON values at the start of `text`, and what an unfinished one owes."""
    ends: list[int] = []
    while start := _JSON_START.match(text, (ends or [0])[-1]):
        owed: list[str] = []
        read = start.start()
        for token in _JSON_TOKEN.finditer(text, read):
            read = token.end()
            if token[1] == "":
                owed.append('\\"' if read < len(text) else '"')  # after a lone backslash
            elif token[0] in "[{":
                owed.append(_PAIRS[token[0]])
            elif token[0] == owed[-1]:
                owed.pop()
            if not owed:
                break
        if owed:
            return ends, owed
        ends.append(read)
    return ends, []

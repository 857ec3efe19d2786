"""Which markup opens and closes: brackets, quotes, emphasis, inline code, elements, JSON.

The details of `boundaries`: whether a mark opens something here, or closes it.
"""

import re

# One character class comes first: the regex engine finds it many times faster than branches.
MARK = re.compile(
    r"([`*_~$\\:;'’\"“”„‘‚«»‹›()\[\]{}（）［］｛｝「」『』【】《》〈〉〔〕〝〟¿¡?!<>])"
    r"(?:(?<=[`*_~$])\1+|(?<=\\)(?:(?:begin|end)\{[A-Za-z]{1,20}+\*?\}|[^`\s])|(?<=[:;])-?[()]|"
    r"(?<=['’])(?i:em|n|s|t|k|m|r|ne|nen|ner|nem|twas|tis|twere|twill|twould|tisn|twasn|twon|twouldn|tain|im|er|twixt|tween|til|till|"
    r"cause|cuz|coz|round|bout|neath|gainst|nother|nuff|ere|cept|pon|fraid|kay|scuse|sta|sto|"
    r"na|tite?|ello|ave)\b|"
    r"(?<=<)(?:!--|/?[A-Za-z][\w:-]{0,30}+(?:\s*+[\w:@.-]{1,40}+"
    r"(?:=(?:\"[^\"<>]{0,200}+\"?|'[^'<>]{0,200}+'?|[^\s\"'<>]{1,200}+)?)?){0,8}+\s*+/?>?))?"
)
_PAIRS = dict(
    zip("([{（［｛「『【《〈〔〝“„‘‚«‹¿¡", ")]}）］｝」』】》〉〕〟”“’‘»›?!", strict=True)
) | {r"\(": r"\)", r"\[": r"\]"}
_DEPTH = 64  # no prose nests deeper, and the limit keeps searches of the stack short
OPENERS = "([{（［｛「『\"'“‘«„¿¡*_~—–-/>|:="
_FULL_WIDTH = "：，、。！？；）」』】》…・"

# Names in code that begin with stars or underscores: they open no emphasis.
_CODE_NAME = re.compile(
    r"(?:[a-z]\w*(?:_|\d)\w*|[a-z]+[A-Z]\w*|[b-hj-npqrstuvwxz]|[a-z](?=[,;)\]])|"
    r"args|kwargs|kws?|kwds|pp|argv|argc|ptr|opts|"
    r"options|params|rest|varargs|iterables?|head|data|items|values|private|protected|internal|"
    r"hidden|id|name|key|value|type|self|cls|index|count|size|state|cache|config|init|main|meta|"
    r"temp|tmp|helper|foo|bar|baz|this|next|prev|root|node|file|path|list|dict)\b(?![*_])"
)
_STAR_NAMES = frozenset(
    "args kwargs kw kws kwds pp argv argc ptr opts options params rest varargs iterable "
    "iterables".split()
)
_VOID = frozenset(
    "br hr img input meta link area base col embed source track wbr param doctype".split()
)
_ELEMENTS = frozenset(
    "p div span strong em b i u s a ul ol li dl dt dd table thead tbody tfoot tr td th caption "
    "code "
    "pre blockquote html body head title style script section article header footer nav main "
    "aside "
    "form label button select option textarea fieldset legend details summary figure figcaption "
    "small sub sup mark del ins kbd samp var q cite abbr time address video audio canvas svg "
    "iframe "
    "center font strike tt big h1 h2 h3 h4 h5 h6".split()
)
_BLOCK = re.compile(
    r"</(?:p|div|ul|ol|dl|li|dd|table|thead|tbody|tr|td|th|pre|blockquote|html|body|head|section|"
    r"article|header|footer|nav|main|aside|form|select|details|figure|style|script|svg)>"
)
_SHORT_NAMES = frozenset("sub sup".split())
_NOT_OWED = frozenset("think thinking thought reasoning tool_call tool_response function".split())
_MATH = re.compile(r"\\|[A-Za-z]\s?[=+\-^_<>{(]")

CITATION = r"(?:[¹²³⁰⁴-⁹]{1,3}|\[\^?\d{1,3}(?:[,–-] ?\d{1,3}){0,8}\]|【\d{1,3}[^】\s]{0,20}】)"
"""What names a source behind a sentence: [1], [^2], [1, 3], ¹, 【1】."""
_JSON_START = re.compile(
    r'\s*(?:\{\s*(?:["}]|\Z)|\[(?:\]|\s*(?:["\[{]|-?\d[\d.eE+-]*\s*(?:,|\Z)|true\b|false\b|null\b|\Z)))'
)
_JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{}]', re.DOTALL)


def apply_mark(stack: list[str], text: str, start: int, end: int, stop: int) -> None:
    """Open or close what the mark `text[start:end]` opens or closes, in `text[:stop]`."""
    token = text[start:end]
    before = text[start - 1] if start else ""
    after = text[end] if end < stop else ""
    if stack and stack[-1][0] in "`-":  # in inline code and comments only their end counts
        if token == stack[-1] or (stack[-1] == "-->" and token == ">" and before == "-"):
            stack.pop()
    elif token[0] in "<>":
        _apply_tag(stack, text, start, end, stop)
    elif token[0] == "\\" and token[-1] == "}":
        _apply_environment(stack, token)
    elif token[0] in "*_~":
        _apply_emphasis(stack, token, before, after, text[end : min(stop, end + 30)])
    elif token in stack and not (token in "'’" and after.isalnum()):
        place = len(stack) - 1 - stack[::-1].index(token)
        inside = stack[place + 1 :]
        if token in ")]}":  # stars do not reach out of brackets: f(*items)
            inside = [closer for closer in inside if closer[0] not in "*_"]
        stack[place:] = inside
    elif token in (")", "]") and stack[-1:] == [")" if token == "]" else "]"]:
        stack.pop()  # a half-open interval: [0, 1)
    elif token == "”" and "“" in stack:
        stack.remove("“")  # „Polish”
    elif token == "»" and "«" in stack:
        stack.remove("«")  # »Finnish»
    elif len(stack) < _DEPTH and (closer := _closer_of(token, before, after)):
        stack.append(closer)
    elif token == "$" and len(stack) < _DEPTH and _opens(before) and _MATH.match(text, end, stop):
        stack.append("$")


def outlasting(stack: list[str]) -> list[str]:
    """What stays open when a paragraph or item ends: elements of blocks, comments."""
    return [
        closer
        for closer in stack
        if closer.startswith(("\\end{", "-->")) or _BLOCK.fullmatch(closer) or _is_own(closer)
    ]


def _is_own(closer: str) -> bool:
    """Whether a closer is that of an element which is not HTML's."""
    return closer.startswith("</") and closer[2:-1] not in _ELEMENTS


def _opens(before: str) -> bool:
    """Whether a mark after this character stands before a word."""
    return not before or before.isspace() or before in OPENERS or before in _FULL_WIDTH


def _closer_of(token: str, before: str, after: str) -> str:
    """The closer that `token` makes owed, "" if it opens nothing."""
    if token[0] == "`" or token == "$$":
        return token
    if token == '"':  # opens nothing in 5" (inches), in Hebrew, alone
        wide = before >= "\u2e80" and before.isalnum()
        opens = _opens(before) or wide or (before in ",;" and after.isalpha())
        return '"' if opens else ""
    if token in ("'", "‘"):
        opens = _opens(before) and after.isalpha()
        return ("'" if token == "'" else "’") if opens else ""
    if token in ("»", "”"):  # »so wird in manchen Büchern zitiert«, ”så här i Sverige”
        opens = (not before or before.isspace() or before in "(:") and after.isalnum()
        return {"»": "«", "”": "”"}[token] if opens else ""
    return _PAIRS.get(token, "")


def _apply_emphasis(stack: list[str], run: str, before: str, after: str, then: str) -> None:
    """Open or close * ** *** (or _, or ~~): an open mark is closed by the next of its kind."""
    if len(run) > 3 or (run[0] == "~" and len(run) != 2):
        return  # a rule, a blank to fill in, a starred-out word, about (~)
    power = before.isascii() and after.isdigit()  # 2**10
    inside = _opens(before) or (len(run) > 1 and run[0] in "*~" and not power)
    opens = (
        inside
        and after != ""
        and not after.isspace()
        and after not in ".,;:!?)]}…|。，、！？：；）」"
        and not _is_code_name(run, then)
    )
    closes = run[0] != "_" or not after.isalnum()  # not in snake_case
    marks = (run[:2], run[:1]) if len(run) == 3 else (run,)
    for mark in marks:
        if mark in stack:
            if closes:
                del stack[len(stack) - 1 - stack[::-1].index(mark)]
        elif opens and len(stack) < _DEPTH:
            stack.append(mark)


def _is_code_name(run: str, then: str) -> bool:
    """Whether a mark begins a name in code: *args, **kwargs, _private, __slots."""
    name = _CODE_NAME.match(then)
    if not name or run == "~~":
        return False
    word = name[0]
    return run[0] == "_" or word in _STAR_NAMES or "_" in word or len(word) == 1


def _apply_environment(stack: list[str], token: str) -> None:
    r"""Open or close \begin{…}."""
    closer = token.replace("begin", "end", 1)
    if token.startswith(r"\begin"):
        if len(stack) < _DEPTH:
            stack.append(closer)
    elif closer in stack:
        del stack[len(stack) - 1 - stack[::-1].index(closer)]


def _apply_tag(stack: list[str], text: str, start: int, end: int, stop: int) -> None:
    """Open or close an element; an unfinished tag with an attribute owes its quote and bracket."""
    token = text[start:end]
    if token == "<!--":
        stack.append("-->")
        return
    if len(token) == 1:
        return
    name = re.split(r"[\s/>]", token.strip("</"), maxsplit=1)[0]
    closer = f"</{name.lower() if name.lower() in _ELEMENTS else name}>"
    if token[-1] != ">":
        if end == stop and "=" in token and (name.lower() in _ELEMENTS | _VOID):
            quote = next((q for q in "\"'" if token.count(q) % 2), "")
            stack += [">", quote] if quote else [">"]
    elif token[1] == "/":
        if closer in stack:
            del stack[len(stack) - 1 - stack[::-1].index(closer) :]
    elif not (token[-2] == "/" or name.lower() in _VOID) and len(stack) < _DEPTH:
        if _is_opened(text, start, end, stop, name):
            stack.append(closer)


def _is_opened(text: str, start: int, end: int, stop: int, name: str) -> bool:
    """Whether a tag opens an element here: not in List<String>, nor where it is spoken of."""
    before = text[max(0, start - 80) : start]
    after = text[end] if end < stop else ""
    line = before.rpartition("\n")[2]
    stuck = before[-1:].isalnum() or before[-1:] == "_"
    heads = not line.strip(" \t>-*#0123456789.") or line.rstrip()[-1:] == ">"
    if name.lower() not in _ELEMENTS:
        own = heads and not stuck and name not in _NOT_OWED
        return own and (after == "\n" or after == "<" or after.isalnum())
    if stuck:
        return name in _SHORT_NAMES or (name.islower() and len(name) > 1)
    if heads:
        return after != "" and (after != " " or not _SPOKEN.match(text, end, stop))
    return after != "" and not after.isspace() and after not in ".,;:!?)]}'\"’”`"


_SPOKEN = re.compile(
    r" (?:tags?|elements?|is|are|means|marks|opens|starts|stands|can|has|defines)\b"
)


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

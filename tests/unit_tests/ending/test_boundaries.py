import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.ending.boundaries import (
    count_sentences,
    end_offsets,
    is_true_end,
    last_end,
    may_end,
    open_constructs,
    settled_end,
)

TABLE = "| City | Country |\n|------|---------|\n"

ENDS = [
    # Terminators of many scripts
    "Paris is the capital of France.",
    "Really?",
    "What a day!",
    "And so it went on…",
    "And so it went on...",
    "Are you sure?!",
    "你好，世界。",
    "你喜欢吗？",
    "太好了！",
    "東京は日本の首都です。",
    "彼は「行きます。」と言った。",
    "半角です｡",
    "هل أنت بخير؟",
    "یہ ایک جملہ ہے۔",
    "यह एक वाक्य है।",
    "श्लोक समाप्त॥",
    "Սա նախադասություն է։",
    "ይህ ዓረፍተ ነገር ነው።",
    "នេះជាប្រយោគ។",
    "ဒါက စာကြောင်း တစ်ကြောင်းပါ။",
    "Это предложение.",
    "Este es el final.",
    "¿Cómo estás?",
    "¡Hola! ¿Qué tal?",
    "Bonjour !",
    # Closers, markup and emoji after the terminator
    'He said, "Hello."',
    "(This is an aside.)",
    "She said, “Let's go.”",
    "« Bonjour ! »",
    "Il a dit : «Non.»",
    "Er sagte: „Nein.“",
    "»Nein.«",
    "他说：“你好。”",
    "『終わり。』",
    "**This is important.**",
    "*This is a note.*",
    "_This is a note._",
    "***Never do this.***",
    "He said, 'Hello.'",
    "He said, ‘Hello.’",
    "Use `foo.bar`.",
    "Run `make test.`",
    'He asked, "Why?".',
    "Great! 😊",
    "Great!😊🎉",
    "I love it! ❤️",
    "Bye! 👩‍💻",
    "**Great! 😊**",
    "Well done! :)",
    "Well done. ;-)",
    # Numbers, abbreviations and single letters that do end
    "It was built in 1889.",
    "The ratio is 3.14.",
    "The train leaves at 5:30.",
    "It has 12,450,000.",
    "It costs $19.99.",
    "The tax is 20%.",
    "It costs about 3.\n",
    'He answered "3."',
    "We meet at 5 p.m.",
    "Open from 9 a.m.",
    "Apples, pears, etc.",
    "Äpfel, Birnen usw.",
    "She holds a Ph.D.",
    "No.",
    "Is it far? No.",
    "He lives in the U.S.\n",
    "He works for Apple Inc.\n",
    "Solve the equation for x.",
    "It's James's.",
    "C'est l'a.",
    "Water is H₂O.",
    "Visit example.com.",
    # Trailing whitespace
    "One. Two.\n\n",
    "One. Two.   ",
    "One.\r\n",
    # Not really open
    "I don't know the dogs' names, it's '90s rock 'n' roll.",
    "So 'tis the season, and 'twas fun; get 'em.",
    'The 5" disk is 6\'2" away.',
    "Use a 3.5\" disk and a 12' rope.",
    "I like it :) very much.",
    "Sad :( but true.",
    "Choose a) tea or b) coffee.",
    "The interval [0, 1) is half-open.",
    "Rate it 5 * 3 = 15 or 2 * 4 = 1000.",
    "In Python 2**10 is 1024, and x**2 too.",
    "Use snake_case and my_long_name here.",
    "Call `__init__` or `foo(` first.",
    "Escape it as \\* or \\[ x \\].",
    "The word is ____ here, and ___ there.",
    "This is **bold** and *italic* and __both__ and _one_.",
    "[Docs](https://example.com/a_(b)) help.",
    "A *nested **bold** word* is fine.",
    "**Bold *and italic*** is fine.",
    'צה"ל הוא צבא.',
    "She said “I'm Tom's friend” and left.",
    "‘It’s fine,’ she said.",
    "„Tak” powiedział.",
    "An open (bracket\n\nis forgotten in the next paragraph.",
    'An "open quote\n\nis forgotten too.',
    "- An (open item\n- Another item.",
    "## A (heading\nText follows.",
    "The half “quote\n\nends with its paragraph.",
    "An open (bracket\n```\nx\n```\nis forgotten after code.",
    "It was the '90s.",
    "In Python 2**10 is 1024.",
    "共有**3个**。",
    "这是**重点**。",
    "The operators are *, ** and %.",
    "What a ****ing mess.",
    # Lists
    "- Apples are red.\n- Pears are green.",
    "1. Wash the rice.\n2. Boil the water.",
    "1. **Eiffel Tower**: built for the 1889 fair.\n2. **Louvre**: a museum.",
    "- apples\n- pears\n",
    "1. apples\n2. pears\n",
    "* apples\n* pears\n* plums\n\n",
    "- apples\n\n- pears\n",
    "Fruits:\n- Red:\n  - apples\n  - cherries\n",
    "a) tea\nb) coffee\n",
    "> It is a quote.\n> It ends here.",
    "- [x] Buy the milk.",
    # Tables
    TABLE + "| Paris | France |",
    TABLE + "| Paris | France |\n| Rome | Italy |\n",
    TABLE + "| Paris | a \\| b |",
    TABLE.replace("----", ":--:") + "| Paris | |",
    "Here it is:\n\n" + TABLE + "| Paris | France |\n\nThat is all.",
    # Code
    "```python\nprint('hi'\n```",
    "~~~\ncode (\n~~~\n",
    "````md\n```\n````",
    "```\nx\n```\n\nThis prints x.",
    "1. Do this:\n   ```sh\n   ls (\n   ```",
    '```\nif (a[0] == "\n```\nIt works.',
    # Formulas
    "So we get\n\n$$\nx = 5\n$$",
    "\\[\n\\boxed{42}\n\\]",
    "$$x = 5$$",
    "Thus \\(x \\in [0, 1)\\) holds.",
    # JSON
    '{"name": "Ann", "tags": ["a", "b"]}',
    "[1, 2, 3]",
    "[]",
    "{}",
    '[{"a": "}]"}]\n',
    '{"a": "quote \\" and \\\\"}',
    '{"a": 1}\n{"b": 2}',
    '{"a": 1}\n\nThis is the object.',
    "[1] The source says so.",
    "[Link](https://example.com) is the place.",
]

NOT_ENDS = [
    "",
    " \n\n ",
    "Hello world",
    "Paris",
    "...",
    "?!",
    "😊",
    ").",
    "Wait..",
    "The answer is:",
    "First, we go,",
    "We went;",
    "And then -",
    "And then —",
    "Have a nice day 😊",
    "Bye! 👩‍",
    # Markers and headings
    "1.",
    "12)",
    "a.",
    "IV.",
    "iii.",
    "-",
    "*",
    "•",
    "(b)",
    "**1.**",
    "> 2.",
    "Steps:\n1. Go home.\n2.",
    "Steps:\n1. Go home.\n2.\n",
    "Steps:\n\n- One.\n-",
    "## Title",
    "## What is Python?",
    "### 1. Introduction.",
    "Intro.\n\n## Next\n",
    "**Day 1**",
    "**Day 1:**",
    "**Day 1**:",
    "**What is Python?**",
    "1. **What is Python?**",
    "Title\n=====",
    "Some text.\n\n---",
    "Some text.\n\n***",
    # Abbreviations, initials
    "I met Dr.",
    "I met Dr.\n",
    "Mr.",
    "She saw Mrs.",
    "Ask Prof.",
    "He lives on St.",
    "Fruits, e.g.",
    "Fruits, e.",
    "That is, i.e.",
    "Cats vs.",
    "It takes approx.",
    "See No.",
    "See Fig.",
    "See Vol.",
    "See pp.",
    "See cf.",
    "Martin Luther King Jr.",
    "Apple Inc.",
    "In the U.S.",
    "The novel by J.",
    "The novel by J. K.",
    "The novel by J. R. R.",
    "We meet at 5 p.",
    "On Jan.",
    "El Sr.",
    "La Sra.",
    "¿Y Ud.",
    "Früchte, z.B.",
    "Früchte, z. B.",
    "Das heißt, d.h.",
    "Das heißt, d. h.",
    "In Nr.",
    "Äpfel bzw.",
    "Voici M.",
    "Voici Mme.",
    "(Dr.",
    "**Dr.",
    # Numbers and addresses half written
    "It costs about 3.",
    "The value of pi is 3.",
    "There are 12.",
    "Use version v2.",
    "It costs $19.",
    "It costs **3",
    "Go to www.",
    "Go to www.example.",
    "Go to https://example.",
    "Write to ann@example.",
    "The file .",
    # Items
    "- apples\n- pears",
    "- apples\n",
    "- Apples are red.\n- pears\n",
    "- Apples are red.\n- pears\n- plums\n",
    "- apples\n- pears:\n",
    "- Red:\n- apples\n",
    "- apples\n- pears,\n",
    "1. **Eiffel Tower**\n   - tall\n   - old\n2. **Louvre**\n",
    "1. **Eiffel Tower**\n   A tall one.\n2. **Louvre**\n",
    "- apples\n- " + "a long item without any end " * 4 + "\n",
    "- apples\n\nText\n\n- pears\n",
    "Steps: 1.",
    # Tables
    "| City | Country |",
    "| City | Country |\n",
    TABLE,
    TABLE + "| Paris | France",
    TABLE + "| Paris |",
    TABLE + "| Paris | France | x |",
    TABLE + "| Paris. | France.",
    TABLE + "| Paris | France \\|",
    TABLE + "| Paris | France |\n\n| x | y |",
    "| a | b |\n| c | d |\n| e | f |",
    # Code
    "```python",
    "```python\nprint('Hello.')",
    "```\nDone.\n",
    "```\nDone.\n``",
    "````\nDone.\n```",
    "~~~\nDone.\n```",
    "Text.\n\n```",
    "``` Hello.",
    # JSON
    "{",
    "[",
    '{"a": 1',
    '{"a": "It is over.',
    '{"a": "It is over."',
    "[1, 2, 3.",
    '{"a": 1}\n{"b": "x.',
    "[true, ",
    "[1]",
    "$$\nx = 5",
    "where $$x$$",
    "$$x$$ $$$",
]

OPEN = [
    ("", ()),
    ("Fine.", ()),
    ('"He (or she.', (")", '"')),
    ("(a [b {c.", ("}", "]", ")")),
    ("（全角「引用。", ("」", "）")),
    ("『名前《作品【注。", ("】", "》", "』")),
    ("She said, “Hello.", ("”",)),
    ("Er sagte: „Nein.", ("“",)),
    ("« Bonjour !", ("»",)),
    ("»Nein.", ("«",)),
    ("She said, ‘Hello.", ("’",)),
    ("She said, 'Hello.", ("'",)),
    ("He said, \"It's 'fine.", ("'", '"')),
    ('他说"你好。', ('"',)),
    ("**Note.", ("**",)),
    ("__Note.", ("__",)),
    ("*Note.", ("*",)),
    ("_Note.", ("_",)),
    ("***Note.", ("*", "**")),
    ("这是**重点。", ("**",)),
    ("**Bold *it.", ("*", "**")),
    ("Use `foo.", ("`",)),
    ("Use ``foo ` bar.", ("``",)),
    ('Use `foo ( [ " bar.', ("`",)),
    ("¿Cómo estás.", ("?",)),
    ("¡Qué bien.", ("!",)),
    ("¡Hola! ¿Y tú", ("?",)),
    ("The set \\(x.", ("\\)",)),
    ("The set \\[x.", ("\\]",)),
    ("$$\nx = 5.", ("$$",)),
    ("```py\nx = (1", ("\n```",)),
    ("~~~~\n```\nx", ("\n~~~~",)),
    ("- Do:\n  ```sh\n  ls", ("\n  ```",)),
    ("```py", ("\n```",)),
    ("```py\nx\n```", ()),
    ("```a``` and (b.", (")",)),
    ("| City", ("|",)),
    (TABLE + "| Pa", ("|", "|")),
    (TABLE + "| Paris | Fr", ("|",)),
    (TABLE + '| "Paris | Fr', ('"', "|")),
    (TABLE + "| Paris |", ("|",)),
    (TABLE + "| Paris | France |", ()),
    ('{"a": ["b', ('"', "]", "}")),
    ('{"a": "b\\', ('\\"', "}")),
    ('{"a": "b\\"', ('"', "}")),
    ("[1, [2, 3", ("]", "]")),
    ('{"a": "( “ `', ('"', "}")),
    ('{"a": 1} (b', (")",)),
    ("a) b.", ()),
    ("He said 'I'll go.", ("'",)),
    ("共有**3个。", ("**",)),
    ("A lone » mark.", ()),
    ("_my_var.", ()),
    (TABLE + "| Paris | France | x", ("|",)),
    (":) and ;-) and :-( too.", ()),
    ("(open\n\nnext.", ()),
    ("(open\nnext.", (")",)),
    ("> (open\n>\n> next.", ()),
    ("* item with *star.", ("*",)),
    ("* item", ()),
    ('A 5" disk and 6\'2".', ()),
]

LINE = [
    ("The woods are lovely, dark and deep\n", True),
    ("The woods are lovely, dark and deep", False),
    ("The woods are lovely.\n", True),
    ("The woods are lovely.", False),
    ("The woods are lovely,\n", False),
    ("The woods are lovely:\n", False),
    ("The woods are lovely -\n", False),
    ("The woods are lovely —\n", False),
    ("The (woods are lovely\n", False),
    ("# The woods\n", False),
    ("The **woods:**\n", False),
    ("**The woods**\n", False),
    ("1.\n", False),
    ("---\n", False),
    ("古池や\n", True),
    ("- apples\n", True),
    ("- apples\n-\n", False),
    (TABLE, False),
    (TABLE + "| Paris | France |\n", True),
    ("```\ncode\n", False),
    ("```\ncode\n```\n", True),
    ('{"a": 1}\n', True),
    ('{"a": 1}', False),
    ("\n", False),
]

PARAGRAPH = [
    ("It ends.\n\n", True),
    ("It ends.\n \n", True),
    ("It ends.\n", False),
    ("It ends.", False),
    ("It goes on\n\n", False),
    ("It (ends.\n\n", False),
    ("```\ncode\n```\n", True),
    ("```\ncode\n```", False),
    ("- apples\n- pears\n\n", True),
    ("## Title\n\n", False),
    ('{"a": 1}\n\n', True),
]

OFFSETS = [
    ("", []),
    ("A dog. A cat.", [6, 13]),
    ("A dog.  \n\n A cat.\n", [6, 17]),
    ('He said "No." Then he left.', [13, 27]),
    ("Great! 😊 Bye.", [6, 8, 13]),
    ("Wait... what? Dr. Who?", [5, 7, 13, 22]),
    ("1. One.\n2. Two.", [7, 15]),
    ("- figs\n- pears\n- plums", [14]),
    ("pi is 3.14 or 3.\nYes.", [16, 21]),
    ("It is 3.\n", [8]),
    ("```\nx.\n```\nBye.", [10, 15]),
    (TABLE + "| Paris | France |\n| R.", [len(TABLE) + 18]),
    ('{"a": "b."}', [11]),
    ('{"a": 1} {"b": 2} Bye.', [8, 17, 22]),
    ("你好。再见！", [3, 6]),
    ("(One. Two.) Three.", [11, 18]),
    ("**One.** Two.", [8, 13]),
    ("$$x$$", [5]),
    ("$$x$$ $$$", [5]),
    ("Foo\n?! bar", [5, 6]),
    ("See e.g. this. In 1889. On", [14, 23]),
]


@pytest.mark.parametrize("text", ENDS)
def test_may_end(text: str) -> None:
    assert open_constructs(text) == ()
    assert is_true_end(text)
    assert may_end(text)
    assert last_end(text) >= len(text.rstrip())


@pytest.mark.parametrize("text", NOT_ENDS)
def test_is_not_a_true_end(text: str) -> None:
    assert not is_true_end(text)
    assert not may_end(text)
    assert len(text) not in end_offsets(text)


@pytest.mark.parametrize(("text", "owed"), OPEN)
def test_open_constructs(text: str, owed: tuple[str, ...]) -> None:
    assert open_constructs(text) == owed
    if owed:
        assert not may_end(text)
        assert not may_end(text + "\n")


@pytest.mark.parametrize("text", ["He said (no.", "**No.", '"No.', "¿No.", "“No.", "(No.\n"])
def test_a_true_end_may_lie_in_something_open(text: str) -> None:
    assert is_true_end(text)
    assert not may_end(text)


@pytest.mark.parametrize(("text", "expected"), LINE)
def test_line_boundary(text: str, expected: bool) -> None:
    assert may_end(text, "line") is expected


@pytest.mark.parametrize(("text", "expected"), PARAGRAPH)
def test_paragraph_boundary(text: str, expected: bool) -> None:
    assert may_end(text, "paragraph") is expected


@pytest.mark.parametrize(("text", "offsets"), OFFSETS)
def test_end_offsets(text: str, offsets: list[int]) -> None:
    assert end_offsets(text) == offsets
    assert last_end(text) == (offsets or [0])[-1]


# Pieces that meet in answers, so that random texts are full of half-written markup.
PIECES = (
    [".", "!", "?", "…", "。", " ", "  ", "\n", "\n\n", "\r\n", ",", ":", ";", "-", "😊", "\u200d"]
    + ["a", "Bc", "Dr", "e.g", "No", "you", "don't", "'em", "你好", "www", "3", "1889", "x_y", "\\"]
    + ["`", "```", "~~~", "*", "**", "***", "_", "__", "$$", "\\[", "\\]", ":)", "# ", "> ", "|"]
    + [
        "- ",
        "1. ",
        "  - ",
        "- a\n",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        "“",
        "”",
        "’",
        "«",
        "»",
    ]
    + ["„", "¿", "¡", "| a | b |\n", "|---|---|\n", '{"a":', "[1, ", "true"]
)
snippets = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=30)


def ends_by_definition(text: str) -> list[int]:
    """The prefixes without whitespace behind them that may end, judged with what follows."""
    return [
        i for i in range(len(text) + 1) if stops(text, i) and may_end(text[:i], following=text[i:])
    ]


def stops(text: str, i: int) -> bool:
    return text[:i] == text[:i].rstrip()


@settings(max_examples=300, deadline=None)
@given(snippets)
def test_end_offsets_are_the_prefixes_that_may_end(text: str) -> None:
    assert end_offsets(text, final=True) == ends_by_definition(text)
    assert last_end(text, final=True) == (end_offsets(text, final=True) or [0])[-1]
    growing = end_offsets(text)
    assert set(growing) <= set(end_offsets(text, final=True))
    assert (len(text.rstrip()) in growing) == may_end(text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(ENDS + NOT_ENDS), min_size=2, max_size=3), st.sampled_from(" \n"))
def test_end_offsets_of_joined_answers(texts: list[str], glue: str) -> None:
    text = glue.join(texts)
    assert end_offsets(text, final=True) == ends_by_definition(text)


@settings(max_examples=300, deadline=None)
@given(snippets, snippets)
def test_what_is_settled_stays_an_end(text: str, more: str) -> None:
    end = settled_end(text)
    assert end == 0 or end in end_offsets(text + more) or json_like(text + more)
    assert settled_end(text + more) >= end or json_like(text + more)


def json_like(text: str) -> bool:
    """Whether more text may make JSON of an answer that was read as prose."""
    return text.lstrip()[:1] in ("{", "[")


@settings(max_examples=300, deadline=None)
@given(snippets)
def test_owed_closers_close_everything(text: str) -> None:
    text = text.rstrip() + "."  # a mark at the very end may still become another one
    assert open_constructs(text + "".join(open_constructs(text))) == ()


@settings(max_examples=200, deadline=None)
@given(snippets)
def test_may_end_is_a_true_end_with_nothing_open(text: str) -> None:
    assert may_end(text) == (is_true_end(text) and not open_constructs(text))
    assert not may_end(text, "paragraph") or may_end(text)
    assert not may_end(text, "line") or (not open_constructs(text) and text.rstrip() != text)


@settings(max_examples=200, deadline=None)
@given(snippets, st.sampled_from([" ", "\t", "\u3000", "  "]))
def test_trailing_blanks_change_nothing(text: str, blanks: str) -> None:
    assert may_end(text + blanks) == may_end(text)
    assert open_constructs(text + blanks) == open_constructs(text)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
        max_leaves=8,
    ).map(lambda value: json.dumps({"value": value}, ensure_ascii=False))
)
def test_json_ends_only_when_complete(text: str) -> None:
    assert end_offsets(text) == [len(text)]
    for i in range(1, len(text)):
        owed = open_constructs(text[:i])
        assert owed
        assert open_constructs(text[:i] + "".join(owed)) == ()


@pytest.mark.parametrize(
    ("piece", "ends"),
    [
        ("Hello world. ", 7692),
        ("Hello (world). He said “no”. *Yes*!\n\n", 8107),
        ("- One.\n", 14285),
        ("x.😊", 66665),
        (".", 0),
        ("$", 0),
        ("(", 0),
        ("*", 0),
        ("`", 0),
        ("|", 0),
        ("|-|\n", 24998),
        ("(]{", 0),
        ("[1, ", 0),
        ('{"', 0),
        ("\n", 0),
    ],
)
def test_long_texts_take_linear_time(piece: str, ends: int) -> None:
    """Quadratic time would show as minutes here."""
    text = (piece * 100_000)[:100_000]
    may_end(text)
    open_constructs(text)
    assert len(end_offsets(text)) == ends


@pytest.mark.parametrize("text", ["|a|\n|" + "-" * 100_000 + "x\n", "*" * 100_000 + "x."])
def test_long_runs_take_linear_time(text: str) -> None:
    assert last_end(text) in (0, len(text))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("A cat", 0),
        ("A cat. A dog.", 2),
        ('He said "No." Then (he left).\n', 2),
        ("猫。犬！", 2),
        ("It costs 3.14 euros.", 1),
    ],
)
def test_sentences_are_counted_roughly(text, count):
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("# Remove all lines with no comments.", True),  # a comment of a script
        ("# Remove all lines", False),
        ("## A heading. With a dot", False),
        ("# 1. Introduction.", False),
        ("## What are all of them for?", False),
    ],
)
def test_a_whole_sentence_after_a_hash_is_no_heading(text, ends):
    assert is_true_end(text) is ends

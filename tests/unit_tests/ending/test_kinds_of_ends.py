"""The kinds of texts that are hard to judge: may an answer end there?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.ending.abbreviations import ABBREVIATIONS, UNITS
from langchain_llama_stop.ending.boundaries import (
    end_offsets,
    last_end,
    may_end,
    open_constructs,
    settled_end,
)
from langchain_llama_stop.ending.full_stop import settles

ENDS = {
    "elision": [
        "'Twas a cold night.",
        "'Tisn't so.",
        "'Bout time.",
        "’Tis the season.",
        "'s Avonds regent het.",
        "Hast du 'ne Idee?",
        "L'amico dell'uomo è il cane.",
        "Tell 'im to get 'em.",
    ],
    "quotes": [
        '老师说："请坐。"',
        '他说，"走吧"。',
        "Han sa: ”Hej.”",
        "Hän sanoi: »Hei.»",
        'A 19" screen and a 4" pipe.',
        'They chose "B."',
        "The grade was an “A.”",
        "He took the easy way (plan B.)",
    ],
    "sources": [
        "It works.[1]",
        "It works. [1, 3]",
        "It works.[^2][4]",
        "It works! [2–4]",
        "It works.¹",
        '"It works."[1]',
        "It is 3.[1]",
        "它有效。【1】",
    ],
    "html": [
        "<p>Hello.</p>",
        "<div>\n<p>Hello.</p>\n</div>",
        "<ul>\n<li>Oak</li>\n<li>Elm</li>\n</ul>",
        "<p>One.</p>\n\n<p>Two.</p>",
        "<!-- Remember this. -->",
        "<p>Text.</p> <!-- end -->",
        "Water is H<sub>2</sub>O.",
        "First line.<br>Second line.",
        "Use the <p> tag for paragraphs.",
        "It takes List<String> and Map<K, V>.",
        "if a < b and b > c then stop.",
        "Write to <ann@example.org>.",
    ],
    "latex": [
        "\\begin{align}\nx &= 1\n\\end{align}",
        "\\begin{document}\nHi.\n\nThere.\n\\end{document}",
        "So $x = 1$ and $\\alpha$ is 1000.",
        "It costs $5 or $10 now.",
        "Set $HOME first.",
    ],
    "emphasis": [
        "~~Old.~~ New.",
        "*args holds the rest.",
        "**kwargs and *args are common.",
        "_private is a name, and so is _my_name.",
        "Call f(*items) with **my_options.",
        "It is about ~5 km.",
    ],
    "abbreviations": [
        "Он родился в 1990 г.",
        "Яблоки, груши и т. д.",
        "Jabłka, gruszki itd.",
        "Æbler, pærer osv.",
        "He wore a cap, and he loves art.",
        "Der Mond ist alt.",
        "Dipl.-Ing. Müller ist da.",
        "Viděl jsem vlk.",
    ],
    "code": [
        "int main() {\n  return 0;\n}",
        ".box {\n  color: red;\n}",
        'So:\n\n{\n  "a": 1\n}',
        "f(() => {\n  g();\n});",
    ],
    "units": ["It is 20 °C.", "It draws 220 V.", "It takes 30 s.", "It is 2 L.", "Вес 5 кг."],
    "languages": ["Τι κάνεις;", "วันนี้อากาศดีมากครับ ", "ມື້ນີ້ອາກາດດີຫຼາຍ ", "วันนี้อากาศดีมาก\n"],
}
NO_ENDS = {
    "elision": ["'That will do.", "'Timber is wood.", "'Twelve men came.", "'Come here."],
    "quotes": [
        '老师说："请坐。',
        '母は言った、"おやすみ。',
        '她喊！"快跑。',
        "Han sa: ”Hej.",
        "Hän sanoi: »Hei.",
    ],
    "html": [
        "<p>Hello.",
        "It is <strong>wide.",
        "<ul>\n<li>Oak.</li>",
        "<div>\n\nText.",
        "<!-- Remember this.",
        '<img src="photo.',
        "<a href='https://example.",
        "<answer>It is so.",
        "<p>Hello</p>",
        "<h1>Title</h1>",
    ],
    "latex": [
        "\\begin{align}\nx &= 1.",
        "\\begin{enumerate}\n\\item A.\n\n\\item B.",
        "So $x = 1.",
        "So $\\alpha = 1.",
    ],
    "emphasis": ["~~Never do this.", "This ~~is wrong.", "*It is.", "_It is.", "**note this."],
    "abbreviations": [
        "Her rank is that of a Cmdr.",
        "He spoke to Gnr.",
        "He holds a Ph.",
        "Lt.-Col.",
        "Живёт на пл.",
        "Ver el cap.",
        "Siehe den Art.",
        "Neem fruit mee, d.w.z.",
        "See f.eks.",
        "Patrz na ul.",
        "Viz např.",
        "Vedi il sig.",
        "Π.χ.",
        "Sie wohnt in der Bahnhofstr.",
        "Das Haus in der Karl-Marx-Str.",
        "Treffpunkt: Marktpl.",
    ],
    "sources": ["It works.[1", "It works. [", "It works [1]", "[1]", "The file is a.[0]"],
    "code": [
        "int main() {\n  if (x) {\n  }",
        "int main() {\n  return 0;",
        "A set {a, b}",
        "f({\n  a: {}",
    ],
    "units": ["We meet at 5 p.", "We meet at 5 a.", "It is 5."],
    "languages": ["วันนี้อากาศดีมาก", "ฉันรักประเทศไทยและ ", "0123456789 ", "¿Dónde vives."],
}


@pytest.mark.parametrize("text", [text for texts in ENDS.values() for text in texts])
def test_ends(text):
    assert open_constructs(text) == ()
    assert may_end(text)
    assert last_end(text, final=True) == len(text.rstrip())


@pytest.mark.parametrize("text", [text for texts in NO_ENDS.values() for text in texts])
def test_does_not_end(text):
    assert not may_end(text)
    assert len(text.rstrip()) not in end_offsets(text)


@pytest.mark.parametrize(
    ("text", "owed"),
    [
        ("<p>It is <b>so.", ("</b>", "</p>")),
        ('<img src="a.', ('"', ">")),
        ("<!-- (a.", ("-->",)),
        ("<div>\n\n**So.", ("**", "</div>")),
        ("\\begin{align*}\n(x.", (")", "\\end{align*}")),
        ("~~So.", ("~~",)),
        ("<ul><li>One.<li>Two.", ("</li>", "</li>", "</ul>")),
    ],
)
def test_what_elements_and_environments_owe(text, owed):
    assert open_constructs(text) == owed
    assert open_constructs(text + "".join(owed)) == ()


def test_no_abbreviation_of_the_list_ends_a_sentence():
    for word in ABBREVIATIONS:
        for following in (None, "", " Next", "\nNext"):
            assert not may_end(f"Так это {word}.", following=following), word
        assert word in UNITS or not may_end(f"It was 5 {word}."), word


# --- what follows


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("It is 16.", " 10 plus 7 is"),
        ("You have 12.", " You have 13."),
        ("He drank 2.", "\nShe drank"),
        ("It is 9.", " **Next**"),
        ("It is 16.", ""),
        ("The answer is B.", " Because it is"),
        ("The answer is B.", ""),
        ("Plan B.", " It works"),
        ("The answer is c.", " The others"),
        ("He works for Apple Inc.", " The firm"),
        ("It is in the U.S.", " It is"),
        ("It draws 5 A.", " And"),
        ("วันนี้อากาศดีมาก", " ฉันไปตลาด"),
        ("- figs\n- pears", "\n- plums"),
    ],
)
def test_what_follows_ends_the_doubt(text, following):
    assert may_end(text, following=following)
    assert not may_end(text)
    assert len(text) in end_offsets(text + following, final=True)


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("It is 7.", "5 miles"),
        ("The file is b.", "csv in"),
        ("Visit example.", "com today"),
        ("He called Mr.", " Brown of"),
        ("The novel by J.", " Rowling"),
        ("He met George W.", " Bush in"),
        ("The U.S.", " Senate"),
        ("Er kam am 3.", " Oktober"),
        ("Him kom den 5.", " mai"),
        ("We sell pens, etc.", ", and ink"),
        ("He took appr.", " five"),
        ("The steps: 1.", " Wash it"),
        ("No.", " 5 is"),
        ("We open at 9 a.m.", " on Monday"),
        ("The lake is 10 km.", " away from"),
        ("Pens, rulers etc.", " are sold"),
        ("It is so. [2]", " shows more"),
        ("Lines and so on, u. a.", " auch hier"),
        ("วันนี้อากาศดีมาก", "และฉัน"),
    ],
)
def test_what_follows_shows_that_it_goes_on(text, following):
    assert not may_end(text, following=following)
    assert len(text) not in end_offsets(text + following)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("It is so. And", 0),  # "And" may become "Andy", which tells nothing yet
        ("It is so. And then", 9),
        ("It is so.\nA", 9),
        ("It is so", 0),
        ("门开了。他", 4),
    ],
)
def test_an_end_is_settled_once_the_next_word_is_whole(text, end):
    assert settled_end(text) == end


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["It is 16.", "The answer is B.", "He met J.", "On Main St.", "It is so."]),
    st.text('aT1 .,\n"K(', max_size=6),
    st.text('aT1 .,\n"K(', max_size=6),
)
def test_what_is_settled_is_not_judged_otherwise_later(text, following, more):
    if settles(following):
        judged = may_end(text, following=following)
        assert may_end(text, following=following + more) == judged


@pytest.mark.parametrize(
    "piece",
    [
        "<b",
        "<p>x.",
        "<!--",
        '<a href="',
        "</p>",
        "\\begin{a}",
        "~~a. ",
        "<a b c d ",
        "a.<i>",
        "ก ",
        "3. ",
    ]
    + ["-->", "\\end{a}", "Dr. ", "$x=", "<!-- a", "x.</b>"],
)
def test_long_texts_take_linear_time(piece):
    text = (piece * 60_000)[:60_000]
    may_end(text)
    end_offsets(text, final=True)

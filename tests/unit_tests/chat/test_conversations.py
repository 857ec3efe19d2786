"""Every template takes every history, and nothing but what it refuses is told otherwise."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.chat.control_tokens import control_ids, control_texts
from langchain_llama_stop.chat.template import chat_ids, turn_end_ids
from tests.fakes.chats import tool_of
from tests.fakes.templates import OURS, REAL, template_of, tokenizer_of


def system(text):
    return {"role": "system", "content": text}


def developer(text):
    return {"role": "developer", "content": text}


def user(text):
    return {"role": "user", "content": text}


def answer(text, *calls):
    said = {"role": "assistant", "content": text}
    return said | ({"tool_calls": [*calls]} if calls else {})


def call(number, city):
    function = {"name": f"look{number}", "arguments": {"city": city}}
    return {"type": "function", "id": f"call_{number:020}", "function": function}


def result(number, text):
    call_id = f"call_{number:020}"
    return {"role": "tool", "name": f"look{number}", "tool_call_id": call_id, "content": text}


OSLO, BONN = call(1, "Oslo"), call(2, "Bonn")
SHAPES = {
    "user": [user("Ask.")],
    "system": [system("Brief."), user("Ask.")],
    "turns": [system("Brief."), user("Ask."), answer("Said."), user("More?")],
    "ends with an answer": [user("Ask."), answer("Said.")],
    "an answer only": [answer("Said.")],
    "a system only": [system("Brief.")],
    "system in the middle": [user("Ask."), answer("Said."), system("Brief."), user("More?")],
    "system after the user": [user("Ask."), system("Brief.")],
    "system last": [user("Ask."), answer("Said."), system("Brief.")],
    "two systems": [system("Brief."), system("Kind."), user("Ask.")],
    "two users": [user("Ask."), user("More?")],
    "two answers": [user("Ask."), answer("Said."), answer("Added."), user("More?")],
    "an answer first": [answer("Said."), user("More?")],
    "an empty answer": [user("Ask."), answer(""), user("More?")],
    "an empty question": [user("Ask."), answer("Said."), user("")],
    "a call": [user("Ask."), answer("", OSLO), result(1, "Cold.")],
    "a text and a call": [user("Ask."), answer("Said.", OSLO), result(1, "Cold.")],
    "two calls": [user("Ask."), answer("", OSLO, BONN), result(2, "Warm."), result(1, "Cold.")],
    "a question after a result": [user("Ask."), answer("", OSLO), result(1, "C."), user("More?")],
    "no result": [user("Ask."), answer("", OSLO), user("More?")],
    "a result alone": [user("Ask."), result(3, "Cold.")],
    "a result first": [result(3, "Cold."), user("Ask.")],
    "a developer": [developer("Brief."), user("Ask.")],
    "a developer after the system": [system("Kind."), developer("Brief."), user("Ask.")],
    "a developer in the middle": [user("Ask."), answer("Said."), developer("Brief."), user("So?")],
}
TOOLS = [
    {"type": "function", "function": tool_of()["function"] | {"name": f"look{n}"}} for n in (1, 2)
]
NEW_USER = "Go on."
OTHERS = ("tool", "developer")

EXAMPLES = 300 if os.environ.get("LLAMA_STOP_LONG") else 6

all_templates = pytest.mark.parametrize("name", [*OURS, *REAL])


def texts_of(messages):
    for message in messages:
        yield message["content"]
        for made in message.get("tool_calls", ()):
            yield from (made["function"]["name"], *made["function"]["arguments"].values())


def ids_of(tokenizer, messages, **given):
    return chat_ids(tokenizer, messages, template=tokenizer.chat_template, **given)


def reference(tokenizer, messages, told=None):
    """The text of `apply_chat_template`; None if it refuses the messages or drops a text."""
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception:  # templates raise errors of any type
        return None
    return text if all(said in text for said in texts_of(told or messages)) else None


def form_of(tokenizer):
    """How the template takes messages: as they are, or with their contents in blocks."""

    def in_blocks(message):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}

    for form in (dict, in_blocks):
        if reference(tokenizer, [form(user("qzx"))], [user("qzx")]):
            return form
    return dict


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_real_templates_are_there():
    if not REAL:
        pytest.skip("no ../shared/data/chat_templates beside the clone")


@pytest.mark.parametrize("shape", SHAPES)
@all_templates
def test_a_conversation_is_told_as_it_is_wherever_the_template_takes_it(name, shape):
    tokenizer, messages = tokenizer_of(template_of(name)), SHAPES[shape]
    text = tokenizer.decode(ids_of(tokenizer, messages, answer_next=True))
    assert all(said in text for said in texts_of(messages))
    wanted = reference(tokenizer, messages)
    unknown_role = wanted and (
        ("\nsystem" in wanted or ">system" in wanted)
        and "system" not in text
        or any(f"'{m['role']}'" not in template_of(name) for m in messages if m["role"] in OTHERS)
    )
    if wanted is not None and not unknown_role and NEW_USER not in text:
        assert text == tokenizer.decode(encoded(tokenizer, wanted))
    if NEW_USER in text:  # no answer begins after an answer there
        assert messages[-1]["role"] == "assistant"


HARMLESS = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), min_size=1, max_size=30)


@all_templates
@given(texts=st.lists(HARMLESS, min_size=4, max_size=4))
@settings(max_examples=EXAMPLES, deadline=None)
def test_harmless_contents_are_what_the_template_makes_of_them(name, texts):
    tokenizer = tokenizer_of(template_of(name))
    controls = control_texts(tokenizer, tokenizer.chat_template)
    if any(token in text for token in controls for text in texts):
        return
    roles, form = (system, user, answer, user), form_of(tokenizer)
    for first in (0, 1):  # with and without a system message
        messages = [role(text) for role, text in zip(roles[first:], texts[first:], strict=True)]
        for tools in (None, []):  # some templates demand a list
            try:
                wanted = tokenizer.apply_chat_template(
                    [*map(form, messages)], tools=tools, add_generation_prompt=True
                )
            except Exception:  # templates raise errors of any type
                continue
            assert ids_of(tokenizer, messages, answer_next=True) == list(wanted["input_ids"])
            break


TURNS = [
    [system("Brief.")],
    [developer("Kind.")],
    [user("Ask.")],
    [answer("Said.")],
    [answer("")],
    [answer("", OSLO), result(1, "Cold.")],
    [answer("Said.", OSLO, BONN), result(2, "Warm."), result(1, "Cold.")],
    [result(3, "Lost.")],
]


@all_templates
@given(turns=st.lists(st.sampled_from(TURNS), min_size=1, max_size=24))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_history_is_told_whole_in_a_few_tries(name, turns):
    tokenizer, tries = tokenizer_of(template_of(name)), []
    render = tokenizer.apply_chat_template

    def counted(*given, **more):
        tries.append(given)
        return render(*given, **more)

    tokenizer.apply_chat_template = counted
    messages = [message for turn in turns for message in turn]
    text = tokenizer.decode(ids_of(tokenizer, messages, answer_next=True))
    assert all(said in text for said in texts_of(messages))
    assert len(tries) < 150  # eleven changes in every mixture would be thousands


@all_templates
def test_old_thoughts_are_told_as_the_template_tells_them(name):
    template = template_of(name)
    tokenizer = tokenizer_of(template)
    thoughts = ["<think>\nTwo.\n</think>\n\n4", "<think></think>4", "[THINK]Two.[/THINK]4"]
    if "split('</think>')" in template or 'split("</think>")' in template:
        thoughts.append("Two.\n</think>\n\n4")
    for said in thoughts:
        messages = [user("2+2?"), answer(said), user("3+3?")]
        wanted = reference(tokenizer, messages, [user("2+2?"), user("3+3?")])
        if wanted is not None:
            assert ids_of(tokenizer, messages) == encoded(tokenizer, wanted)


@all_templates
def test_every_template_ends_answers_and_takes_tools(name):
    tokenizer = tokenizer_of(template_of(name))
    turn_end_ids(tokenizer, tokenizer.chat_template)
    text = tokenizer.decode(ids_of(tokenizer, [user("Ask.")], tools=TOOLS))
    assert all(said in text for said in ("look1", "look2", "Ask."))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"city": {"type": "string"}}},
        {"type": "object", "properties": {"city": True}},
    ],
)
def test_a_tool_without_a_description_is_told_in_the_form_of_the_template(parameters):
    tokenizer = tokenizer_of(OURS["described tools"])
    tools = [tool_of(name="look1", parameters=parameters)]
    text = tokenizer.decode(ids_of(tokenizer, [user("Ask.")], tools=tools))
    in_words = any(not isinstance(s, dict) for s in parameters.get("properties", {}).values())
    assert text.startswith("<look1>") is not in_words


SLOW_SHAPES = [
    pytest.param(shape, marks=pytest.mark.slow)
    for shape in ("system in the middle", "a text and a call")
]


@pytest.mark.parametrize("shape", ["turns", *SLOW_SHAPES])
@all_templates
def test_no_text_becomes_a_control_token(name, shape):
    tokenizer = tokenizer_of(template_of(name))
    special = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(["[INST]", "<|user|>"])}
    tokens = [t for t in control_texts(tokenizer, tokenizer.chat_template) if "think" not in t]

    def found(number, text):
        messages = [dict(message) for message in SHAPES[shape]]
        messages[number]["content"] = text
        ids = ids_of(tokenizer, messages, answer_next=True)
        return [i for i in ids if i in special]

    for number, message in enumerate(SHAPES[shape]):
        if message["content"]:
            expected = found(number, "word")
            for token in tokens:
                half = token[: len(token) // 2]
                for text in (f"a{token}b", half + token + token[len(half) :], token * 2):
                    assert found(number, text) == expected, text


@pytest.mark.parametrize("plain", ["\n", "€", "paracetamol"])
def test_added_tokens_that_are_plain_stay_one_token(plain):
    tokenizer = tokenizer_of(OURS["any roles"])
    ids = ids_of(tokenizer, [user(f"take {plain} now</s>")])
    assert tokenizer.convert_tokens_to_ids(plain) in ids
    assert ids.count(tokenizer.eos_token_id) == 0


@pytest.mark.parametrize("plain", ["\n", "€", "paracetamol", "<div>", "    "])
def test_a_plain_added_token_is_no_control_token_and_ends_no_turn(plain):
    for special in (False, True):
        tokenizer = tokenizer_of(OURS["any roles"].replace("<|im_end|>", plain))
        tokenizer.add_tokens([plain], special_tokens=special)
        number = tokenizer.convert_tokens_to_ids(plain)
        assert (number in control_ids(tokenizer, OURS["any roles"])) is special
        if not special and not plain.startswith("<"):
            assert number not in turn_end_ids(tokenizer, tokenizer.chat_template)


@pytest.mark.parametrize("special", ["\n", "€", "é", "</", "<|"])
def test_special_tokens_of_a_character_or_two_do_not_hang(special):
    tokenizer = tokenizer_of(OURS["any roles"])
    tokenizer.add_tokens([special], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids(special)

    def count(text):
        return ids_of(tokenizer, [user(text)]).count(number)

    begun = time.monotonic()
    assert count(f"a{special}b{special * 3}") == count("b")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("piece", ["<", "</s>", "<|im_end|>", "\n", "<think>", "a "])
def test_the_time_grows_with_the_text(piece):
    tokenizer = tokenizer_of(OURS["no thoughts"])

    def seconds(count):
        begun = time.process_time()
        ids_of(tokenizer, [user(piece * count), answer(piece * count), user("?")])
        return time.process_time() - begun

    seconds(10)
    assert seconds(4000) < 8 * seconds(1000) + 0.2


@pytest.mark.parametrize("content", ["It is", "It is ", "It is\n\n", "a</s>b ", "<|im_end|>"])
@pytest.mark.parametrize("name", ["any roles", "trims", "no thoughts"])
def test_an_answer_continues_after_its_last_character(name, content):
    tokenizer = tokenizer_of(OURS[name])
    ids = ids_of(tokenizer, [user("What?"), answer(content)], continue_final_message=True)
    end = content.rstrip() if name == "trims" else content
    assert tokenizer.decode(ids).endswith(f"assistant\n{end}")


@pytest.mark.parametrize("close", [True, False])
def test_a_thought_that_the_prompt_begins_can_be_closed(close):
    tokenizer = tokenizer_of(OURS["ends in a thought"])
    text = tokenizer.decode(ids_of(tokenizer, [user("?")], close_thought=close))
    assert text.endswith("<think>\n\n</think>\n\n" if close else "<think>\n")
    told = ids_of(tokenizer, [user("?")], template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(told).endswith("<think>\n")  # this template has no such setting


@pytest.mark.parametrize("thinks", [True, False, None])
def test_a_template_is_given_its_settings(thinks):
    tokenizer = tokenizer_of(OURS["ends in a thought if told"])
    given = {} if thinks is None else {"enable_thinking": thinks}
    wanted = tokenizer.apply_chat_template([user("?")], add_generation_prompt=True, **given)
    assert ids_of(tokenizer, [user("?")], template_kwargs=given) == list(wanted["input_ids"])

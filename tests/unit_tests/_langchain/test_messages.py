"""Messages of LangChain as templates and servers take them."""

import re

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)

from langchain_llama_stop._langchain.messages import (
    answer_fields,
    content_text,
    template_message,
    template_messages,
)

TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("A cat.", "A cat."),
        ([], ""),
        (["Par", {"type": "text", "text": "is"}], "Paris"),
        ([{"type": "json", "json": {"n": "é"}}], '{"n": "é"}'),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": ""}, "B"], "B"),
        ([TEXT, {"type": "image_url", "image_url": {}}], "What is it?\n[image]"),
        ([{"type": "refusal", "refusal": "I cannot."}], "I cannot."),
        (
            [{"type": "output_text", "text": "Yes."}, {"type": "input_text", "text": "No."}],
            "Yes.No.",
        ),
        ([{"text": "Yes."}], "Yes."),
        ([{"type": "tool_result", "tool_use_id": "1", "content": [TEXT]}], "What is it?"),
        ([{"type": "reasoning", "summary": [], "text": "Hm."}, TEXT], "What is it?"),
        *(
            ([{"type": kind, "id": "1", "input": {"text": "x"}, "value": {}}, TEXT], "What is it?")
            for kind in (
                *("reasoning_content", "redacted_thinking", "tool_use", "tool_call"),
                *("function_call", "web_search_call", "computer_use", "server_tool_call"),
                *("non_standard", "code_interpreter_call", None, 3),
            )
        ),
    ],
)
def test_the_text_of_a_content(content, text):
    assert content_text(content) == text


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"type": "image", "base64": "iVBORw0K", "mime_type": "image/png"}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "iVBORw0K"}}, "audio"),
        ({"type": "file", "base64": "iVBORw0K"}, "file"),
        ({"type": "video", "url": "iVBORw0K"}, "video"),
    ],
)
def test_what_is_no_text_is_told_as_a_word_and_warned_of(block, word, caplog):
    message = ToolMessage([{"type": "text", "text": "done"}, block], tool_call_id="1")
    assert template_message(message)["content"] == f"done\n[{word}]"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert repr(block["type"]) in caplog.text and "iVBORw0K" not in caplog.text


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (SystemMessage("a"), "system"),
        (HumanMessage("a"), "user"),
        (HumanMessageChunk(content="a"), "user"),
        (AIMessageChunk(content="a"), "assistant"),
        (FunctionMessage("a", name="f"), "tool"),
        (ChatMessage("a", role="human"), "user"),
        (ChatMessage("a", role="ai"), "assistant"),
        (ChatMessage("a", role="developer"), "developer"),
        (ChatMessage("a", role="critic"), "critic"),
    ],
)
def test_the_role_of_a_message(message, role):
    assert template_message(message)["role"] == role


def test_results_have_the_names_of_their_calls():
    calls = [{"name": name, "args": {}, "id": name[-1]} for name in ("look_x", "look_y")]
    messages = [AIMessage("", tool_calls=calls)]
    messages += [ToolMessage("a", tool_call_id=call_id) for call_id in ("y", "x", "z")]
    messages += [ToolMessage("a", tool_call_id="x", name="own")]
    names = [message.get("name") for message in template_messages(messages)[1:]]
    assert names == ["look_y", "look_x", None, "own"]


def test_names_and_thoughts_are_told():
    assert template_message(HumanMessage("a", name="Ann"))["name"] == "Ann"
    kept = AIMessage("a", additional_kwargs={"reasoning_content": "Hm."})
    blocks = AIMessage([{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "a"}])
    for message in (kept, blocks):
        told = template_message(message)
        assert (told["content"], told["reasoning_content"]) == ("a", "Hm.")


def test_calls_have_ids_of_nine_letters_and_digits():
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2
    _, fields = answer_fields(text, {"usage_metadata": None}, {"f": {}})
    ids = [call["id"] for call in fields["tool_calls"]]
    assert all(re.fullmatch("[A-Za-z0-9]{9}", call_id) for call_id in ids)
    assert len({*ids}) == 2

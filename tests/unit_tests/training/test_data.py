"""From rows to tokens with a loss: forms, templates, where answers end, and what hides it."""

import json

import pytest
import torch
from transformers import DataCollatorForLanguageModeling
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TrlCollator

from langchain_llama_stop.chat.template import chat_ids
from langchain_llama_stop.training.data import read_rows, to_conversations
from langchain_llama_stop.training.examples import (
    IGNORED,
    check_template,
    encode_conversation,
    supervised_pieces,
    supervision,
)
from tests.fakes import TOKENIZERS

ONE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
TWO = [
    {"role": "system", "content": "Be brief."},
    *ONE,
    {"role": "user", "content": "How?"},
    {"role": "assistant", "content": "So."},
]
EOS = {name: tokenizer.eos_token_id for name, tokenizer in TOKENIZERS.items()}
EOS["bytes"] = TOKENIZERS["bytes"].convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    "row",
    [
        {"text": "### Human: Why?### Assistant: Because."},
        {"text": "### Human: Why? ### Assistant: Because.\n### Human: And now?"},
        {"prompt": "Why?", "completion": " Because.\n"},
        {"input": "### Human: Why? ### Assistant:", "output": "Because.", "lang": "en"},
        {"text": "### Human: Why?", "prompt": "Chat. Why?", "input": "Why?", "output": "Because."},
        {"prompt": ONE[:1], "completion": ONE[1:]},
        {"prompt": ONE[:1], "completion": "Because."},
        {"messages": ONE},
        {"messages": [*ONE, {"role": "user", "content": "And now?"}], "text": None},
    ],
)
def test_every_form_is_recognised(row):
    assert to_conversations([row]) == [ONE]


def test_several_turns_and_a_system_text():
    text = "Be brief.\n### Human: Why?\n### Assistant: Because.\n### Human: How? ### Assistant: So."
    assert to_conversations([{"text": text}, {"messages": TWO}]) == [TWO, TWO]


def test_what_is_said_in_several_messages_is_one_and_greetings_are_dropped():
    spoken = [
        {"role": "assistant", "content": "Hello!"},
        TWO[1],
        {"role": "assistant", "content": "First."},
        {"role": "assistant", "content": "Second."},
    ]
    one = [TWO[1], {"role": "assistant", "content": "First.\n\nSecond."}]
    assert to_conversations([{"messages": spoken}]) == [one]
    assert to_conversations([{"messages": [TWO[0], *spoken]}]) == [[TWO[0], *one]]
    text = "### Human: Why? ### Assistant: First. ### Human: ### Assistant: Second."
    assert to_conversations([{"text": text}]) == [one]


def test_thoughts_are_left_out():
    answer = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nBecause."}
    assert to_conversations([{"messages": [ONE[0], answer]}]) == [ONE]


def test_prompts_without_answers():
    rows = [{"prompt": "Why?"}, {"messages": ONE}, {"text": "### Human: Why? ### Assistant:"}]
    assert to_conversations(rows, answered=False) == [ONE[:1]] * 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Why?"}, "the form is not known"),
        ({"text": "Why? Because."}, "no '### Human:'"),
        ({"prompt": "Why?"}, "it holds no answer"),
        ({"prompt": "Why?", "completion": "  "}, "it holds no answer"),
        ({"prompt": "Why?", "completion": 3}, "the form is not known"),
        ({"messages": "Why?"}, "no list"),
        ({"messages": [{"role": "user"}]}, "no message"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "the role 'tool'"),
        ({"messages": [*ONE[:1], {"role": "assistant", "content": " "}]}, "an answer is empty"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "it holds no answer"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_number(row, reason):
    with pytest.raises(ValueError, match="row 2 is not") as error:
        to_conversations([{"messages": ONE}, row])
    assert reason in str(error.value)


def test_rows_of_a_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": ONE}) + "\n\n" + json.dumps({"prompt": "é"}) + "\n")
    assert read_rows(file) == read_rows(str(file)) == [{"messages": ONE}, {"prompt": "é"}]
    assert read_rows(iter([{"a": 1}])) == [{"a": 1}]
    for text, reason in (('{"a": 1}\n{"a"', "line 2"), ("[1]", "line 1"), ("\n", "holds none")):
        file.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_rows(file)
    file.write_text('\ufeff{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_rows(file) == [{"prompt": "a\u2028b\u0085c"}]
    file.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"`data` has to be UTF-8, but .*rows.jsonl is not"):
        read_rows(file)
    with pytest.raises(ValueError, match="`data` has to hold dicts, but holds 3"):
        read_rows([{"prompt": "a"}, 3])
    with pytest.raises(FileNotFoundError, match=r"`data` is the file .*nowhere.jsonl"):
        read_rows("nowhere.jsonl")
    with pytest.raises(ValueError, match="the list holds none"):
        read_rows([])


def test_a_data_set_that_the_hub_does_not_give():
    with pytest.raises(OSError, match="`data` is 'nobody/nothing', which is no file here"):
        read_rows("nobody/nothing")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_are_supervised_up_to_their_eos_and_nothing_else_is(name):
    tokenizer, eos = TOKENIZERS[name], EOS[name]
    encoded = encode_conversation(tokenizer, TWO, tokenizer.chat_template, [eos])
    assert [encoded.ids[end - 1] for _, end in encoded.answers] == [eos, eos]
    assert encoded.answers[-1][1] == len(encoded.ids)
    texts = [
        tokenizer.decode(encoded.ids[begin : end - 1]).strip() for begin, end in encoded.answers
    ]
    assert texts == ["Because.", "So."]
    prompts = [chat_ids(tokenizer, TWO[:turn], template=tokenizer.chat_template) for turn in (2, 4)]
    # What stands before an answer in training is what a chat puts before it.
    assert [list(encoded.ids[:begin]) for begin, _ in encoded.answers] == prompts
    assert list(encoded.prompt) == prompts[1] and encoded.reference[-1] == eos
    kept = [i for i, label in enumerate(encoded.labels) if label != IGNORED]
    assert kept == [i for begin, end in encoded.answers for i in range(begin, end)]
    pieces = supervised_pieces(tokenizer, encoded)
    assert [supervised for _, supervised in pieces] == [False, True, False, True]
    assert "Because." in pieces[1][0] and tokenizer.convert_ids_to_tokens(eos) in pieces[1][0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_templates_that_think_before_they_answer_are_refused(name):
    tokenizer, template = TOKENIZERS[name], TOKENIZERS[name].chat_template
    check_template(tokenizer, template)
    content = "message['content']" if name != "metaspace" else "content.strip() + ' ' + eos_token"
    assert content in template
    thinks = template.replace(content, f"'<think>\n\n</think>\n\n' + {content}")
    with pytest.raises(ValueError, match="A chat has to begin an answer after"):
        check_template(tokenizer, thinks)
    with pytest.raises(ValueError, match="A chat has to begin an answer after"):
        check_template(tokenizer, template + "{% if add_generation_prompt %}<think>{% endif %}")


def test_llama_2_is_rendered_as_it_was_trained():
    tokenizer = TOKENIZERS["metaspace"]
    encoded = encode_conversation(
        tokenizer, TWO[:3], tokenizer.chat_template, [tokenizer.eos_token_id]
    )
    text = "".join(text for text, _ in supervised_pieces(tokenizer, encoded))
    assert text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] Because. </s>"


def test_an_earlier_answer_that_the_template_changes_has_no_loss():
    tokenizer = TOKENIZERS["bytes"]
    hides = tokenizer.chat_template.replace(
        "message['content']",
        "('' if loop.last or message['role'] != 'assistant' else '(old) ') + message['content']",
    )
    encoded = encode_conversation(tokenizer, TWO, hides, [EOS["bytes"]])
    assert len(encoded.answers) == 1 and encoded.ids[-1] == EOS["bytes"]
    assert tokenizer.decode(encoded.reference) == "So.<|im_end|>"


def test_text_that_looks_like_eos_ends_no_answer():
    tokenizer, eos = TOKENIZERS["bytes"], EOS["bytes"]
    chat = [ONE[0], {"role": "assistant", "content": "It is <|im_end|> there."}]
    encoded = encode_conversation(tokenizer, chat, tokenizer.chat_template, [eos])
    assert encoded.reference.count(eos) == 1 and encoded.reference[-1] == eos


def batches(encoded, collator):
    return [collator([{"input_ids": list(f.ids), "labels": f.labels} for f in encoded])]


def look(encoded, collator, eos=(EOS["bytes"],), max_length=999):
    return supervision(batches(encoded, collator), eos, TOKENIZERS["bytes"], max_length)


def test_the_check_of_supervision_sees_what_hides_eos():
    tokenizer = TOKENIZERS["bytes"]
    eos, template = EOS["bytes"], tokenizer.chat_template
    encoded = [encode_conversation(tokenizer, chat, template, [eos]) for chat in (ONE, TWO)]
    by_position = TrlCollator(pad_token_id=eos)
    assert look(encoded, by_position).share == 1.0

    # 1. pad = EOS, masked by its id
    def by_id(rows):
        batch = by_position(rows)
        return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] == eos, IGNORED)}

    checked = look(encoded, by_id)
    assert checked.share == 0 and "masks the pad id" in checked.reasons[0][0]
    tokenizer_of_lore = TOKENIZERS["byte_bpe"]
    tokenizer_of_lore.pad_token = tokenizer_of_lore.eos_token
    lore = DataCollatorForLanguageModeling(tokenizer_of_lore, mlm=False)
    batch = lore([{"input_ids": [*b"Hi.", tokenizer_of_lore.eos_token_id]}])
    ids = [tokenizer_of_lore.eos_token_id]
    checked = supervision([batch], ids, tokenizer_of_lore, 99)
    assert checked.supervised == 0 and "masks the pad id" in checked.reasons[0][0]

    # 2. truncation
    def cut(rows):
        batch = by_position(rows)
        return {key: value[:, :50] for key, value in batch.items()}

    checked = look(encoded, cut, max_length=50)
    assert checked.supervised == 1 and checked.reasons == (("they are cut at `max_length` 50", 1),)

    # 3. a template that leaves EOS out
    none = template.replace("'<|im_end|>' + ", "")
    encoded = [encode_conversation(tokenizer, chat, none, [eos]) for chat in (ONE, TWO)]
    checked = look(encoded, by_position)
    assert checked.supervised == 0 and "puts no EOS after an answer" in checked.reasons[0][0]

    # 4. a turn-end token that is not EOS
    encoded = [encode_conversation(tokenizer, chat, template, [256]) for chat in (ONE, TWO)]
    checked = look(encoded, by_position, eos=(256,))
    assert (
        checked.supervised == 0
        and "ends with <|im_end|> (260), which is not" in checked.reasons[0][0]
    )

    # 5. no loss at all
    ids = torch.tensor([[1, 2]])
    nothing = {"input_ids": ids, "labels": ids * 0 + IGNORED, "attention_mask": ids * 0 + 1}
    checked = supervision([nothing], [eos], tokenizer, 99)
    assert checked.reasons == (("no token is supervised", 1),)

"""Budgets, EOS ids and prompts."""

import pytest

from langchain_llama_stop.engine.config import token_budget
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import (
    TOKENIZERS,
    byte_ids,
    make_pipeline,
    tiny_llama,
)
from tests.fakes.generation import (
    options,
    scripted,
    tiny,
)


def test_the_pipelines_own_settings_count():
    tokenizer = TOKENIZERS["bytes"]
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    pipeline = make_pipeline(model, tokenizer, max_new_tokens=7)
    opts = GenerationOptions.parse({"eos_reward": False})
    assert len(generate(pipeline, ["Hi"], opts)[0].token_ids) == 7
    assert len(generate(pipeline, ["Hi"], opts.updated({"max_new_tokens": 3}))[0].token_ids) == 3


def test_the_budget_ends_at_the_context_window():
    response = generate(tiny(), ["x" * 500, "Hi"], options(max_new_tokens=40))
    assert len(response[0].token_ids) <= 12  # the window has 512
    assert response[0].eos_source in ("reward", "forced")
    with pytest.raises(ValueError, match="context window of 512 tokens.*has 512 tokens"):
        generate(tiny(), ["x" * 512], options())


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt has to hold at least one character"):
        generate(tiny(), ["Hi", []], options())


def test_every_eos_id_of_the_generation_config_ends_an_answer():
    tokenizer = TOKENIZERS["bytes"]
    other = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pipeline = scripted("bytes", "go", [*byte_ids("yes"), other, *byte_ids("no")])
    pipeline.model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    response = generate(pipeline, ["go"], options())[0]
    assert (response.text, response.eos_source) == ("yes", "model")
    assert response.token_ids[-1] == other


def test_one_bos_where_the_prompt_has_one_already():
    name = "byte_bpe"
    tokenizer = TOKENIZERS[name]
    pipeline = tiny(name=name)
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    plain, with_bos = generate(pipeline, ["Hi", tokenizer.bos_token + "Hi"], options())
    assert plain.prompt_tokens == with_bos.prompt_tokens
    assert plain.text == with_bos.text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What?", "In 4 sentences.\n\nWhat?"),
        ("[INST] What? [/INST]", "[INST] What?\n\nIn 4 sentences. [/INST]"),
        (
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\nWhat?\n\nIn 4 sentences.<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_answer_hint_stands_at_the_end_of_the_users_turn(prompt, expected):
    pipeline = scripted("bytes", expected, byte_ids("Yes."))
    opts = options(max_new_tokens=100, answer_hint="In {sentences} sentences.")
    response = generate(pipeline, [prompt], opts.updated({"return_full_text": True}))[0]
    assert response.text == prompt + "Yes."


@pytest.mark.parametrize(
    ("model", "pipe", "budget"),
    [
        ({"max_length": 4096}, {}, 256),
        ({"max_length": 60}, {}, 50),
        ({"max_length": 60, "max_new_tokens": 12}, {}, 12),
        ({"max_new_tokens": 12}, {"max_length": 60}, 50),
        ({}, {}, 256),
    ],
)
def test_whose_budget_counts(model, pipe, budget, caplog):
    pipeline = tiny()
    pipeline.model.generation_config.update(**model)
    opts = GenerationOptions.parse({"eos_reward": False, "pipeline_kwargs": pipe})
    assert token_budget(pipeline, opts, 10) == budget
    generate(pipeline, ["x" * 10], opts.updated({"max_new_tokens": 3}))
    if len(model) < 2:
        assert "seem to have been set" not in caplog.text


def test_an_answer_that_time_has_cut_says_so():
    opts = options(eos_reward=False, pipeline_kwargs={"max_time": 1e-9})
    response = generate(tiny(), ["x"], opts)[0]
    assert len(response.token_ids) < 40 and response.finish_reason == "length"


def test_one_prompt_is_no_list_of_prompts():
    with pytest.raises(ValueError, match="`prompts` has to be a list of strings, but is 'The sky'"):
        generate(tiny(), "The sky", options())

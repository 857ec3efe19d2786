"""Options: every wrong one is refused with the argument, the rule and the value."""

import copy
import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM
from langchain_llama_stop import options as options_module
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.options import OPTIONS, GenerationOptions
from tests.fakes.generation import tiny

WRONG = [
    ("max_new_tokens", 0),
    ("max_new_tokens", -5),
    ("max_new_tokens", 2.5),
    ("max_new_tokens", "10"),
    ("max_new_tokens", True),
    ("temperature", -0.1),
    ("temperature", "hot"),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", -1),
    ("top_k", -1),
    ("top_k", 1.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", -2),
    ("seed", -1),
    ("seed", "x"),
    ("stop", ""),
    ("stop", [""]),
    ("stop", [3]),
    ("stop_token_ids", 7),
    ("stop_token_ids", [[]]),
    ("stop_token_ids", [-1]),
    ("eos_reward", "yes"),
    ("eos_reward", {"begin": 0.5}),
    ("eos_reward", {"start": 1.4}),
    ("return_full_text", "no"),
    ("return_full_text", 1),
    ("answer_hint", ""),
    ("answer_hint", 5),
    ("answer_hint", "In {words} words"),
    ("answer_hint", "In {} words"),
    ("answer_hint", "In {sentences.x} words"),
    ("answer_hint", "In {sentences[0]} words"),
    ("seed", 2**70),
    ("temperature", -1e-40),
    ("chat_template_kwargs", 3),
    ("answer_hint", "In {sentences words"),
    ("logits_processor", [3]),
    ("logits_processor", 3),
    ("stopping_criteria", ["x"]),
    ("batch_size", 0),
    ("batch_size", None),
    ("prefix_cache", -1),
    ("on_length", "cut"),
    ("on_length", None),
    ("thinking_tokens", -1),
    ("thinking_tokens", None),
    ("prefix_cache", None),
    ("prompt_lookup_num_tokens", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError) as error:
        GenerationOptions.parse({name: value})
    assert (
        "has to" in str(error.value)
        or "no option" in str(error.value)
        or "may" in str(error.value)
        or "empty" in str(error.value)
    )
    inner = name if not isinstance(value, dict) else "start" if "start" in value else "begin"
    assert inner in str(error.value)


@pytest.mark.parametrize("key", ["messages", "tools", "add_generation_prompt", "tokenize", 3])
def test_a_template_gets_messages_by_no_setting(key):
    with pytest.raises(ValueError, match="`chat_template_kwargs` has to hold settings"):
        GenerationOptions.parse({"chat_template_kwargs": {key: True}})


def test_settings_of_a_template_add_up():
    options = GenerationOptions.parse({"chat_template_kwargs": {"a": 1, "b": 1}})
    changed = options.updated({"chat_template_kwargs": {"b": 2}})
    assert changed.chat_template_kwargs == {"a": 1, "b": 2}


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-8, 1e-6, 0.001, 0.0099])
def test_a_tiny_temperature_is_greedy(temperature):
    assert GenerationOptions.parse({"temperature": temperature}).temperature == 0


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ValueError, match="'max_lenght'") as error:
        GenerationOptions.parse({"max_lenght": 5})
    for name in (*OPTIONS, "max_tokens"):
        assert name in str(error.value)


def test_max_tokens_is_max_new_tokens():
    assert GenerationOptions.parse({"max_tokens": 7}).max_new_tokens == 7
    with pytest.raises(ValueError, match="one option"):
        GenerationOptions.parse({"max_tokens": 7, "max_new_tokens": 8})


def test_call_stops_are_added_and_other_options_replaced():
    options = GenerationOptions.parse({"stop": ["A"], "stop_token_ids": [1], "temperature": 0.5})
    call = options.updated({"stop": ["B", "A"], "stop_token_ids": [[2, 3]], "temperature": 0})
    assert call.stop == ("A", "B")
    assert call.stop_token_ids == ((1,), (2, 3))
    assert call.temperature == 0
    assert options.stop == ("A",)


def test_eos_reward_takes_a_bool_a_dict_or_an_object():
    parse = GenerationOptions.parse
    assert parse({}).eos_reward == EosReward()
    assert parse({"eos_reward": True}).eos_reward == EosReward()
    assert parse({"eos_reward": False}).eos_reward is None
    assert parse({"eos_reward": {"start": 0.3}}).eos_reward == EosReward(start=0.3)


def test_pipeline_kwargs_that_are_options_count_as_such():
    options = GenerationOptions.parse({"pipeline_kwargs": {"max_new_tokens": 9, "min_p": 0.1}})
    assert options.max_new_tokens == 9
    assert options.pipeline_kwargs == {"min_p": 0.1}
    both = GenerationOptions.parse({"max_new_tokens": 3, "pipeline_kwargs": {"max_new_tokens": 9}})
    assert both.max_new_tokens == 3


@pytest.mark.parametrize(
    "asked", [{"grammar": "start: /a+/"}, {"json_schema": {"type": "integer"}}]
)
def test_thinking_and_a_grammar_do_not_go_together(asked):
    with pytest.raises(ValueError, match="`thinking_tokens` has to be 0 where .* but is 5"):
        GenerationOptions.parse({"thinking_tokens": 5, **asked})


@pytest.mark.parametrize("schema", [{"type": "colour"}, {"x": {1, 2}}, 3])
def test_a_schema_that_cannot_be_used_is_refused_at_once(schema):
    with pytest.raises(ValueError, match="`json_schema` has to be"):
        GenerationOptions.parse({"json_schema": schema})


def test_a_grammar_of_a_call_replaces_a_schema_and_the_other_way_round():
    options = GenerationOptions.parse({"json_schema": {"type": "integer"}})
    call = options.updated({"grammar": "start: /a+/"})
    assert call.json_schema is None and call.grammar.lark == "start: /a+/"
    assert call.updated({"json_schema": {}}).grammar is None
    assert call.updated({"json_schema": None}).grammar == call.grammar
    with pytest.raises(ValueError, match="say the same"):
        options.updated({"grammar": "start: /a+/", "json_schema": {}})


def test_options_are_frozen():
    with pytest.raises(AttributeError):
        GenerationOptions().seed = 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": 3}, "`stop` has to be a list of strings, but is 3"),
        ({"stop": ("",)}, "`stop` has to hold strings of at least one character"),
        ({"eos_reward": "yes"}, "`eos_reward` has to be a bool or an EosReward"),
    ],
)
def test_the_object_itself_checks_too(options, message):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


def test_the_object_itself_reads_every_way_of_writing():
    options = GenerationOptions(stop=["a"], stop_token_ids=[3], eos_reward=True)
    assert (options.stop, options.stop_token_ids) == (("a",), ((3,),))
    assert options.eos_reward == EosReward()


@pytest.mark.parametrize("value", [5, [1], "x"])
def test_pipeline_kwargs_have_to_be_a_dict(value):
    with pytest.raises(ValueError, match="`pipeline_kwargs` has to be a dict"):
        GenerationOptions.parse({"pipeline_kwargs": value})


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_an_entry_of_the_table_is_complete(option):
    assert option.doc.endswith(".")
    assert (option.server is None) == bool(option.request)
    assert option.server is None or option.server
    assert "typing" not in option.type and "langchain" not in option.type
    option.check(option.name, option.default)  # raises if the default is out of its own range


def test_the_fields_of_all_classes_are_those_of_the_table():
    for kind in (LlamaStopLLM, ChatLlamaStop):
        for name, option in OPTIONS.items():
            field = kind.model_fields[name]
            assert field.default == option.default
            assert " ".join(field.description.split()) == option.doc


TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
CALLS = {
    "llm": (LlamaStopLLM, lambda model, **call: model.invoke("Hi", **call)),
    "llm, batch": (LlamaStopLLM, lambda model, **call: model.batch(["Hi", "Ho"], **call)),
    "llm, stream": (LlamaStopLLM, lambda model, **call: list(model.stream("Hi", **call))),
    "chat": (ChatLlamaStop, lambda model, **call: model.invoke("Hi", **call)),
    "chat, stream": (ChatLlamaStop, lambda model, **call: list(model.stream("Hi", **call))),
    "chat, a tool": (ChatLlamaStop, lambda m, **call: m.bind_tools([TOOL]).invoke("Hi", **call)),
}


@pytest.mark.parametrize("asked", [{}, {"stop": ["x"]}, {"seed": 1, "stop": ["x"], "top_k": 3}])
@pytest.mark.parametrize("kind", CALLS)
def test_options_are_parsed_once_per_call(kind, asked, monkeypatch):
    pipeline, parsed = tiny(), []
    monkeypatch.setattr(pipeline.tokenizer, "chat_template", TEMPLATE)
    make, ask = CALLS[kind]
    model = make(pipeline=pipeline, max_new_tokens=2)
    checked = options_module._checked
    monkeypatch.setattr(options_module, "_checked", lambda v: parsed.append(v) or checked(v))
    ask(model, **asked)
    assert sum(len(values) == len(OPTIONS) for values in parsed) <= 1  # the constructor's
    checked_names = [name for v in parsed if len(v) < len(OPTIONS) for name in v]
    assert sorted(checked_names) == sorted(asked)


class Equal:
    """Processors that equal each other."""

    def __eq__(self, other):
        return True

    def __call__(self, input_ids, scores):
        return scores


CHANGES = {
    "a number": ({"max_new_tokens": 4}, lambda m: setattr(m, "max_new_tokens", 2)),
    "a list": ({"stop": ["a"]}, lambda m: setattr(m, "stop", ["b"])),
    "an item": ({"stop": ["a"]}, lambda m: m.stop.append("b")),
    "a list in a list": ({"stop_token_ids": [[5]]}, lambda m: m.stop_token_ids[0].append(7)),
    "a dict": ({"pipeline_kwargs": {"min_p": 0.1}}, lambda m: m.pipeline_kwargs.update(min_p=0.2)),
    "a list in a dict": (
        {"pipeline_kwargs": {"eos_token_id": [1]}},
        lambda m: m.pipeline_kwargs["eos_token_id"].append(2),
    ),
    "an equal object": (
        {"logits_processor": [Equal()]},
        lambda m: setattr(m, "logits_processor", [Equal()]),
    ),
    "a schema": (
        {"json_schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
        lambda m: m.json_schema["properties"]["a"].update(type="integer"),
    ),
}


@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_field_is_in_force_at_once(kind, change):
    given, alter = CHANGES[change]
    model = kind(pipeline=tiny(), **copy.deepcopy(given))
    for _ in range(2):
        before = model._options()
    alter(model)
    fresh = GenerationOptions.parse({name: getattr(model, name) for name in given})
    name = next(iter(given))
    now = getattr(model._options(), name)
    assert now is getattr(fresh, name) or now == getattr(fresh, name)
    if name == "logits_processor":
        assert now[0] is model.logits_processor[0] is not before.logits_processor[0]


@pytest.mark.parametrize("value", [-1, True])
def test_a_field_changed_to_a_wrong_value_is_refused(value):
    llm = LlamaStopLLM(pipeline=tiny(), max_new_tokens=1, eos_reward=False)
    llm.invoke("Hi")
    llm.max_new_tokens = value
    with pytest.raises(ValueError, match="`max_new_tokens` has to be"):
        llm.invoke("Hi")


def test_what_was_parsed_is_no_part_of_a_model():
    pipeline = tiny()
    used, fresh = (LlamaStopLLM(pipeline=pipeline, max_new_tokens=2) for _ in range(2))
    used.invoke("Hi", stop=["x"], logits_processor=[lambda input_ids, scores: scores])
    assert used == fresh
    assert used.__dict__.keys() == fresh.__dict__.keys()


def test_calls_of_threads_do_not_mix():
    llm = LlamaStopLLM(pipeline=tiny(), max_new_tokens=2, eos_reward=False)
    with ThreadPoolExecutor(8) as pool:
        asked = [{"max_new_tokens": 1 + i % 5, "stop": [str(i % 3)]} for i in range(200)]
        found = list(pool.map(lambda call: llm._asked(None, call), asked))
    for call, options in zip(asked, found, strict=True):
        assert (options.max_new_tokens, *options.stop) == (call["max_new_tokens"], *call["stop"])


def test_options_are_a_frozen_dataclass():
    options = GenerationOptions(max_new_tokens=3)
    assert dataclasses.replace(options, seed=1).max_new_tokens == 3
    assert dataclasses.asdict(options)["max_new_tokens"] == 3
    with pytest.raises(AttributeError):
        del options.stop
    with pytest.raises(ValueError, match=r"^`max_new_tokens` has to be"):
        dataclasses.replace(options, max_new_tokens=0)
    assert pickle.loads(pickle.dumps(options)) == copy.deepcopy(options) == options


def test_the_nearest_known_name_is_suggested():
    with pytest.raises(ValueError, match="Unknown option 'temprature'. Did you mean 'temperature'"):
        GenerationOptions.parse({"temprature": 0})


def test_what_is_replaced_has_to_go_together_too():
    grammar = GenerationOptions.parse({"grammar": "start: /a+/"}).grammar
    options = GenerationOptions.parse({"thinking_tokens": 5})
    with pytest.raises(ValueError, match="`thinking_tokens` has to be 0 where .* or tools"):
        options.replaced(grammar=grammar)

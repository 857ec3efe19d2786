"""The command line on scripted models: what it reads, writes and refuses."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from langchain_llama_stop import cli, loading
from langchain_llama_stop.cli.flags import options_from
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.options import OPTIONS, GenerationOptions
from tests.fakes import (
    LLAMA2_TEMPLATE,
    ScriptedLlama,
    byte_ids,
    byte_tokenizer,
    make_pipeline,
    scripted_answers,
)
from tests.fakes.files import save_tiny


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def refuse_loading(monkeypatch):
    def load_pipeline(*args, **kwargs):
        pytest.fail("nothing may be loaded before the arguments are checked")

    monkeypatch.setattr(loading, "load_pipeline", load_pipeline)


@pytest.fixture
def model_that_says(monkeypatch):
    """Loads a model that answers one prompt, whichever model is named."""

    def install(answer, prompt, template=None):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        eos = tokenizer.eos_token_id
        ids = tuple(tokenizer(prompt)["input_ids"])
        scores = scripted_answers({ids: byte_ids(answer)}, len(tokenizer), eos)
        pipeline = make_pipeline(ScriptedLlama(len(tokenizer), scores, eos, eos), tokenizer)
        calls = []

        def load_pipeline(model, quantization=None, adapter=None, *, progress, **more):
            calls.append((model, quantization, adapter, *more.items()))
            progress(f"Loading {model}")
            return pipeline

        monkeypatch.setattr(loading, "load_pipeline", load_pipeline)
        return calls

    return install


def parse(*argv):
    return cli.build_parser().parse_args(argv)


def test_defaults():
    ask = vars(parse("ask", "Why?"))
    assert ask.pop("run") is cli.ask.run_ask
    options = {name: ask.pop(name) for name in OPTIONS if name in ask}
    assert {name: value for name, value in options.items() if value is not None} == {
        "max_new_tokens": 256,
        "temperature": 0.0,
    }
    assert options_from(parse("ask", "Why?")) == {"max_new_tokens": 256, "temperature": 0.0}
    loading = {
        "model": "demo",
        "adapter": None,
        "quantization": "nf4",
        "device": None,
        "dtype": None,
        "revision": None,
        "token": None,
        "trust_remote_code": False,
        "system": None,
    }
    assert ask == {"question": "Why?", "raw": False, "json": False, **loading}
    chat = vars(parse("chat"))
    assert chat.pop("run") is cli.chat.run_chat
    assert {name: value for name, value in chat.items() if name not in OPTIONS} == loading
    demo = vars(parse("demo"))
    assert demo.pop("run") is cli.demo.run_demo
    assert demo == {
        "question": None,
        "agent": False,
        "max_new_tokens": 96,
        "quantization": "nf4",
        "svg": None,
    }


FLAGS = {
    "max_new_tokens": ("8", 8),
    "temperature": ("0.7", 0.7),
    "top_p": ("0.9", 0.9),
    "seed": ("3", 3),
    "stop": ("END", ("END",)),
    "top_k": ("5", 5),
    "repetition_penalty": ("1.1", 1.1),
    "answer_hint": ("Be brief.", "Be brief."),
    "grammar": ("start: /a+/", Grammar("start: /a+/")),
    "stop_token_ids": ("7", ((7,),)),
    "chat_template_kwargs": ('{"enable_thinking": false}', {"enable_thinking": False}),
    "pipeline_kwargs": ('{"typical_p": 0.9}', {"typical_p": 0.9}),
    "logprobs": (None, True),
    "top_logprobs": ("2", 2),
    "batch_size": ("3", 3),
    "max_calls": ("4", 4),
    "prefix_cache": ("0", 0),
    "on_length": ("trim", "trim"),
    "thinking_tokens": ("0", 0),
    "prompt_lookup_num_tokens": ("0", 0),
    "timeout": ("2.5", 2.5),
    "on_timeout": ("raise", "raise"),
    "return_full_text": (None, True),
    "split_special_tokens": (None, True),
}


@pytest.mark.parametrize("name", FLAGS)
def test_an_option_has_a_flag(name):
    written, value = FLAGS[name]
    flag = "--" + name.replace("_", "-")
    args = parse("ask", flag, *([] if written is None else [written]), "Why?")
    assert getattr(GenerationOptions.parse(options_from(args)), name) == value


def test_the_reward_can_be_turned_off():
    assert options_from(parse("ask", "--no-eos-reward", "Why?"))["eos_reward"] is False


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_every_option_but_objects_has_a_flag(command):
    flags = {name for name in OPTIONS if hasattr(parse(command), name)}
    assert {*OPTIONS} - flags == {"logits_processor", "stopping_criteria", "assistant_model"}
    assert flags == {*FLAGS, "eos_reward", "json_schema"}


def test_the_loading_flags_reach_the_loader(model_that_says):
    calls = model_that_says("So.", prompt="Why?")
    flags = ["--device", "cpu", "--dtype", "float32", "--revision", "v1", "--token", "t"]
    assert cli.main(["ask", *flags, "--trust-remote-code", "--model", "m", "Why?"]) == 0
    assert dict(calls[0][3:]) == {
        "device_map": "cpu",
        "dtype": "float32",
        "revision": "v1",
        "token": "t",
        "trust_remote_code": True,
    }


@pytest.mark.parametrize(
    ("argument", "stop"),
    [
        (r"\nObservation:", "\nObservation:"),
        (r"a\tb", "a\tb"),
        (r"C:\\new", r"C:\new"),
        (r"\d\w", r"\d\w"),
        ("\n", "\n"),
    ],
)
def test_stops_are_unescaped_and_add_up(argument, stop):
    assert parse("ask", "--stop", argument, "--stop", "END", "Why?").stop == [stop, "END"]


@pytest.mark.parametrize(
    "argv",
    [
        *([], ["sing"], ["chat", "x"], ["ask", "--quantization", "fp4", "x"], ["demo", "Why?"]),
        *(["ask", "--json-schema", "nowhere.json", "x"], ["ask", "--pipeline-kwargs", "[1]", "x"]),
        ["ask", "--chat-template-kwargs", "{", "x"],
    ],
)
def test_what_argparse_refuses(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert "usage: llama-stop" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["ask"], ["chat"], ["finetune"], ["diagnose"]])
def test_help_states_purpose_examples_and_defaults(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    help_ = capsys.readouterr().out
    assert " ".join(help_.split()).count("default: ") >= (
        1 if command == ["diagnose"] else 3 if command else 0
    )
    assert ("examples:\n  llama-stop" in help_) == bool(command)
    assert all(len(line) <= 100 for line in help_.splitlines())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ask", "--max-new-tokens", "0", "x"], "`max_new_tokens` has to be a whole number of 1"),
        (
            ["ask", "--temperature", "-1", "x"],
            "`temperature` has to be 0 (greedy) or more",
        ),
        (["ask", "--seed", "-1", "x"], "`seed` has to be a whole number of 0"),
        (["ask", "--stop", "", "x"], "`stop`"),
        (["ask", "--raw", "--system", "y", "x"], "`--system` needs the chat template"),
        (["ask", " "], "`question` has to hold at least one word"),
        (["demo", "--question", ""], "`question` has to hold at least one word"),
        (["demo", "--max-new-tokens", "0"], "`max_new_tokens` has to be a whole number of 1"),
        (["finetune", "--epochs", "0", "x.jsonl"], "`epochs` has to be a whole number of 1"),
        (["finetune", "--learning-rate", "2", "x.jsonl"], "`learning_rate` has to be over 0"),
        (["finetune"], "Either `data` or `self_distil` has to be given"),
        (["finetune", "x.jsonl", "--self-distil", "y.jsonl"], "Either `data` or `self_distil`"),
        (["finetune", "nowhere.jsonl"], "nowhere.jsonl, which does not exist"),
        (["finetune", "--show", "0", "x.jsonl"], "`--show` has to be a whole number of 1"),
        (["finetune", "--show", "3"], "`--show` needs data"),
        (["diagnose", "demo", "--max-new-tokens", "0"], "`max_new_tokens` has to be a whole"),
    ],
)
def test_wrong_values_are_refused_before_loading(argv, message, capsys, refuse_loading):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("llama-stop: error: ") and message in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError("no such\n  thing"), 2, "llama-stop: error: no such thing\n"),
        (ImportError("Install it"), 2, "llama-stop: error: Install it\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_errors_are_one_line(error, code, line, monkeypatch, capsys):
    def load_pipeline(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading, "load_pipeline", load_pipeline)
    assert cli.main(["ask", "x"]) == code
    assert capsys.readouterr() == ("", line)


def test_other_errors_keep_their_traceback(monkeypatch):
    def load_pipeline(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(loading, "load_pipeline", load_pipeline)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ask", "x"])


def test_ask_without_a_chat_template(model_that_says, capsys, caplog):
    calls = model_that_says("Because. 😀", prompt="Why?")
    arguments = ["--model", "m", "--adapter", "a", "--quantization", "none"]
    assert cli.main(["ask", *arguments, "Why?"]) == 0
    out, err = capsys.readouterr()
    assert out == "Because. 😀\n"
    assert calls == [("m", None, "a")]
    summary = "14 tokens · finish_reason=stop · stop_reason=None · eos_source=model · "
    assert err.startswith(summary) and err.endswith(" tokens/s\n") and err.count("\n") == 1
    assert "m has no chat template: it continues the text" in caplog.text


def test_ask_with_stops(model_that_says, capsys):
    model_that_says("Thought: look.\nObservation: 3", prompt="Why?")
    assert cli.main(["ask", "--stop", "XY", "--stop", r"\nObs", "Why?"]) == 0
    out, err = capsys.readouterr()
    assert out == "Thought: look.\n"
    assert r"finish_reason=stop · stop_reason='\nObs' · eos_source=None" in err


def test_ask_without_the_eos_reward(model_that_says, capsys):
    model_that_says("On and on and on", prompt="Why?")
    assert cli.main(["ask", "--no-eos-reward", "--max-new-tokens", "6", "Why?"]) == 0
    out, err = capsys.readouterr()
    assert out == "On and\n"
    assert "6 tokens · finish_reason=length · stop_reason=None · eos_source=None" in err


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (["--raw"], "Why?"),
        ([], "<s>[INST] Why? [/INST]"),
        (["--system", "Be brief."], "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST]"),
    ],
)
def test_ask_applies_the_chat_template(arguments, prompt, model_that_says, capsys):
    model_that_says("Because.", prompt=prompt, template=LLAMA2_TEMPLATE)
    assert cli.main(["ask", *arguments, "Why?"]) == 0
    assert capsys.readouterr().out == "Because.\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "`--system` needs a chat template, but the model's tokenizer has none"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}",
            "The chat template cannot render these 2 messages",
        ),
    ],
)
def test_ask_says_that_a_system_prompt_has_no_place(template, message, model_that_says, capsys):
    model_that_says("", prompt="Why?", template=template)
    assert cli.main(["ask", "--system", "Be brief.", "Why?"]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def pipe_in(monkeypatch):
    """Puts bytes into stdin: a pipe, as a shell makes it."""

    def put(content):
        read, write = os.pipe()
        with open(write, "wb") as file:
            file.write(content)
        monkeypatch.setattr(sys, "stdin", open(read, encoding="utf-8"))

    yield put
    sys.stdin.close()


@pytest.mark.parametrize(
    ("content", "arguments", "prompt"),
    [
        ("A\nWhy?\n", ["-"], "A\nWhy?"),
        ("A\nWhy?\n", [], "A\nWhy?"),
        ("\ufeffWhy?", ["-"], "Why?"),
        ("A text.\n\n", ["Why?"], "A text.\n\nWhy?"),
        ("x = 1\n", ["What is x?"], "x = 1\n\nWhat is x?"),
        ("\n", ["Why?"], "Why?"),
        ("", ["Why?"], "Why?"),
    ],
)
@pytest.mark.parametrize("template", [None, LLAMA2_TEMPLATE])
def test_ask_reads_stdin(content, arguments, prompt, template, pipe_in, model_that_says, capsys):
    if template:
        prompt = f"<s>[INST] {prompt} [/INST]"
    model_that_says("Because.", prompt=prompt, template=template)
    pipe_in(content.encode())
    assert cli.main(["ask", *arguments]) == 0
    assert capsys.readouterr().out == "Because.\n"


def test_ask_does_not_wait_for_what_is_no_pipe(model_that_says, capsys, monkeypatch):
    model_that_says("Because.", prompt="Why?")
    with open(os.devnull) as null:
        monkeypatch.setattr(sys, "stdin", null)
        assert cli.main(["ask", "Why?"]) == 0


@pytest.mark.parametrize("content", [b"\n", b"", b" \t\n"])
def test_ask_refuses_an_empty_stdin(content, refuse_loading, pipe_in, capsys):
    pipe_in(content)
    assert cli.main(["ask", "-"]) == 2
    assert "`question` has to hold at least one word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "byte"),
    [
        (b"caf\xe9", "byte 3 is 0xe9"),
        (b"\xff\xfeW\0h\0", "byte 0 is 0xff"),
        (b"a\x80", "byte 1 is 0x80"),
    ],
)
@pytest.mark.parametrize("argument", ["-", "Why?"])
def test_ask_refuses_what_is_no_utf_8(content, byte, argument, refuse_loading, pipe_in, capsys):
    pipe_in(content)
    assert cli.main(["ask", argument]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"stdin has to be text in UTF-8, but its {byte}" in err


def test_ask_refuses_an_argument_that_is_no_utf_8(refuse_loading, capsys):
    assert cli.main(["ask", "caf\udce9"]) == 2  # as Python gives the byte 0xe9
    assert "lone surrogate" in capsys.readouterr().err


@pytest.mark.parametrize("template", [None, LLAMA2_TEMPLATE])
def test_ask_prints_json(template, model_that_says, capsys):
    prompt = "<s>[INST] Why? [/INST]" if template else "Why?"
    model_that_says('Because "so". é', prompt=prompt, template=template)
    assert cli.main(["ask", "--json", "--top-logprobs", "1", "Why?"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == "" and answer["answer"] == 'Because "so". é'
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", None)
    assert answer["eos_source"] == "model" and answer["seconds"] > 0
    assert answer["usage_metadata"]["output_tokens"] == len(answer["logprobs"]["content"]) == 17


@pytest.mark.parametrize("template", [None, LLAMA2_TEMPLATE])
def test_ask_obeys_a_json_schema(template, model_that_says, capsys, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "type": "object",
                "properties": {"n": {"type": "integer"}},
                "required": ["n"],
                "additionalProperties": False,
            }
        )
    )
    prompt = "<s>[INST] Why? [/INST]" if template else "Why?"
    model_that_says("Because.", prompt=prompt, template=template)
    assert cli.main(["ask", "--json-schema", str(schema), "Why?"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["n"]


@pytest.mark.parametrize("content", ["[1]", "{", "\xff", None])
def test_a_schema_file_that_cannot_be_read(content, refuse_loading, capsys, tmp_path):
    file = tmp_path / "schema.json"
    if content:
        file.write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit):
        cli.main(["ask", "--json-schema", str(file), "Why?"])
    assert f"argument --json-schema: {file} cannot be read: " in capsys.readouterr().err


def test_a_terminal_is_not_changed_by_an_answer(model_that_says, monkeypatch):
    model_that_says("\x1b]0;title\x07a\tb\nc\x9b31m", prompt="Why?")
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", written)
    assert cli.main(["ask", "--raw", "Why?"]) == 0
    assert written.getvalue() == "]0;titlea\tb\nc31m\n"


def test_the_package_is_a_command():
    command = [sys.executable, "-m", "langchain_llama_stop", "--version"]
    assert subprocess.check_output(command, text=True).startswith("llama-stop ")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.3, 0.7, 1.5, 3, 5, 8, 12])
def test_ctrl_c_at_any_moment(delay, tmp_path):
    """While it imports, loads, answers: the model is tiny and never ends by itself."""
    folder = save_tiny(tmp_path / "tiny", max_position_embeddings=100_000)
    arguments = ["--model", str(folder), "--quantization", "none", "--max-new-tokens", "90000"]
    endless = ["--no-eos-reward", "--pipeline-kwargs", '{"min_new_tokens": 90000}']
    begin = (  # what comes before `main` is Python's own
        "import sys; from langchain_llama_stop import cli; build = cli.build_parser; "
        "cli.build_parser = lambda argv: (print('begun', flush=True), build(argv))[1]; "
        "sys.exit(cli.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", begin, "ask", *arguments, *endless, "Why?"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where tests run in the background, SIGINT is ignored, and so it were in here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err and b"Exception" not in err


def test_a_ctrl_c_in_a_finalizer_is_not_lost(monkeypatch):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt

    def run(argv):
        Interrupted()
        time.sleep(5)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["ask"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def class_whose_making_is_interrupted():
    class Attribute:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    type("Owner", (), {"x": Attribute()})


def as_imports_do(make):
    """As transformers' lazy imports tell of an error."""
    try:
        make()
    except BaseException as error:
        raise ModuleNotFoundError("Could not import module 'pipeline'.") from error


def cleaned_up_badly(make):
    try:
        make()
    finally:
        raise RuntimeError("half made")


def broken_off():
    raise KeyboardInterrupt


def missing():
    raise ModuleNotFoundError("No module named 'x'.")


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([as_imports_do, broken_off], 130),
        ([as_imports_do, class_whose_making_is_interrupted], 130),
        ([cleaned_up_badly, broken_off], 130),
        ([as_imports_do, cleaned_up_badly, broken_off], 130),
        ([as_imports_do, missing], 2),
    ],
)
def test_a_ctrl_c_that_becomes_another_error_is_one(steps, code, monkeypatch, capsys):
    *around, run = steps
    for step in reversed(around):
        run = functools.partial(step, run)
    monkeypatch.setattr(cli, "_run", lambda argv: run())
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["ask"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert ("error: Could not" in capsys.readouterr().err) is (code == 2)


def test_output_that_the_terminal_cannot_show(model_that_says, monkeypatch):
    model_that_says("Yes 😀", prompt="Why?")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert cli.main(["ask", "Why?"]) == 0
    assert written.getvalue() == b"Yes ?\n"


PROMPT = "<s>[INST] <<SYS>>\nYou are a helpful travel guide.\n<</SYS>>\n\nWhy? [/INST]"
ANSWER = "Because it is so. And then it goes on and on without any end in sight"


def test_demo(model_that_says, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    calls = model_that_says(ANSWER, prompt=PROMPT, template=LLAMA2_TEMPLATE)
    picture = tmp_path / "demo.svg"
    arguments = ["--question", "Why?", "--max-new-tokens", "24", "--svg", str(picture)]
    assert cli.main(["demo", *arguments, "--quantization", "int8"]) == 0
    assert calls == [("demo", "int8", None)]
    out, err = capsys.readouterr()
    assert err == ""
    rows = [line.split("  ") for line in out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["Plain HuggingFacePipeline", "Trimmed afterwards", "LlamaStopLLM"] in cells
    end = "Because it is so."
    assert ["answer", "Because it is so. And th", end, end] in cells
    assert ["✂ cut here", "✓ ends here", "✓ ends here"] in cells
    assert ["tokens used", "24 of 24", "17 of 24", "18 of 24"] in cells
    assert ["finish_reason", "not given (length)", "not given (length)", "stop"] in cells
    assert ["eos_source", "none", "none", "reward"] in cells
    assert f"The table is in {picture}." in out.replace("\n", "")
    assert "LlamaStopLLM" in picture.read_text()


def test_demo_is_fair_to_a_plain_answer_that_ends(model_that_says, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model_that_says("So.", prompt=PROMPT, template=LLAMA2_TEMPLATE)
    assert cli.main(["demo", "--question", "Why?", "--max-new-tokens", "24"]) == 0
    out = capsys.readouterr().out
    assert "cut here" not in out and out.count("✓ ends here") == 3
    assert out.count("not given (stop)") == 2
    assert out.count("4 of 24") == 3


@pytest.mark.parametrize(
    "answer",
    [
        "It is so. It was. And then it goes on",
        "Two. One and 16. And then",
        "He said: “So it is now.” And",
    ],
)
def test_demo_judges_all_answers_alike(answer, model_that_says, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model_that_says(answer, prompt=PROMPT, template=LLAMA2_TEMPLATE)
    budget = str(len(answer[: answer.rindex(" And")].encode()))  # ends with its last token
    assert cli.main(["demo", "--question", "Why?", "--max-new-tokens", budget]) == 0
    out = capsys.readouterr().out
    assert "cut here" not in out and out.count("✓ ends here") == 3
    assert out.count(f"{budget} of {budget}") == 3


def test_demo_shows_what_an_agent_invents(model_that_says, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    prompt = cli.demo._AGENT_PROMPT.format(question="When does the Louvre open?")
    model_that_says(" need it.\nAction: opening_hours\nObservation: 25:00", prompt=prompt)
    picture = tmp_path / "agent.svg"
    assert cli.main(["demo", "--agent", "--svg", str(picture)]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["Action: opening_hours", "Action: opening_hours"] in cells
    assert ["Observation: 25:00", "✓ stops"] in cells  # the plain pipeline does not read `stop`
    assert ["✂ all of this is invented"] in cells
    assert ["stop_reason", "not given", r"'\nObservation:'"] in cells
    assert "invented" in picture.read_text()


def test_demo_shows_its_own_cuts(model_that_says, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    model_that_says("no end in sight at all and on", prompt=PROMPT, template=LLAMA2_TEMPLATE)
    assert cli.main(["demo", "--question", "Why?", "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("✂ cut here") == 3 and "forced" in out


def test_names_are_no_markup(model_that_says, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")  # the stages are shown
    prompt = PROMPT.replace("Why?", "Is [/b] [red] markup?")
    model_that_says("[/i] is.", prompt=prompt, template=LLAMA2_TEMPLATE)
    assert cli.main(["demo", "--question", "Is [/b] [red] markup?"]) == 0
    out, err = capsys.readouterr()
    assert "“Is [/b] [red] markup?” in 96 tokens" in out and out.count("[/i] is.") == 3
    assert all(f"{name} answer" in err for name in ("The plain pipeline", "LlamaStopLLM"))
    model_that_says("No.", prompt="Why?")
    assert cli.main(["ask", "--model", "[/x]", "Why?"]) == 0
    assert "Loading [/x]" in capsys.readouterr().err


def test_finetune_shows_what_it_would_train_on(model_that_says, capsys, tmp_path):
    model_that_says("So.", prompt=PROMPT, template=LLAMA2_TEMPLATE)
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": f"A [red]{n}[/]."} for n in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--show", "2", "--held-out", "1", "--output-dir", str(tmp_path / "out")]
    assert cli.main(["finetune", str(data), *arguments]) == 0
    out = capsys.readouterr().out
    form = r"<s>\[INST\] What is (\d)\? \[/INST\]▶ A \[red\](\d)\[/\]\. </s>◀"
    shown = re.findall(form, out.replace("\n", ""))
    assert len(shown) == 2 and all(a == b for a, b in shown)
    assert "4 rows, 1 of them to be held out; 0 others are too long." in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_diagnose_prints_findings_and_says_whether_one_is_serious(model_that_says, capsys):
    model_that_says("So.", prompt=PROMPT, template=LLAMA2_TEMPLATE)
    assert cli.main(["diagnose", "m", "--prompt", "Why?", "--stop", "</s>"]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"error +eos-never-learned *\n(.|\n)+warning +prompt-without-template *\n", out
    )
    assert re.search(r"  fix +stop_token_ids=\[\[258\]\]", out)
    assert "3 findings, 1 of them serious." in out
    assert cli.main(["diagnose", "m", "--prompt", "Why?", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [f["code"] for f in findings] == ["eos-never-learned", "prompt-without-template"]
    assert findings[0].keys() == {"severity", "code", "message", "why", "fix"}


def test_a_closed_pipe_ends_it_quietly():
    code = """
        import sys
        from langchain_llama_stop import cli
        import langchain_llama_stop.cli.ask

        cli.ask.run_ask = lambda args: [print("word" * 1000) for _ in range(1000)]
        sys.exit(cli.main(["ask", "x"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""

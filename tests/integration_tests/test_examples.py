"""The examples do what they say."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import httpx
import pytest
import torch
from langchain_core.tools import render_text_description
from langchain_huggingface import HuggingFacePipeline

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop._langchain import source as model_source
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.engine.thread import engine_of

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # on a busy machine a second thread costs more than it gives
ROOT = Path(__file__).parents[2]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"


@pytest.fixture
def example(demo_pipeline, monkeypatch):
    """Imports an example, which then gets the model that is loaded already."""

    def load_pipeline(*, model, quantization, **kwargs):
        assert (model, quantization) == ("demo", "nf4")
        return demo_pipeline

    monkeypatch.setattr(model_source, "load_pipeline", load_pipeline)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_every_example_is_tested_and_says_what_it_shows():
    found = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    names = "agent chain diagnose finetune landing memory_agent paris rag rag_server react_agent"
    # The last one needs a server: `make test-vllm` tests it.
    assert found == [*names.split(), "structured", "vllm_server"]
    for name in found:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert text.lstrip("r").startswith('"""') and f"python examples/{name}.py" in text


def test_paris(converted_models, demo_pipeline):
    result = subprocess.run(
        [sys.executable, EXAMPLES / "paris.py"],
        env={**os.environ, "LLAMA_STOP_CACHE": converted_models, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.split("--- ")[1:]
    cut, whole = (part.partition(":\n")[2].strip() for part in (first, second))
    assert cut.startswith("Bonjour! Welcome") and not may_end(cut)
    assert whole.startswith("Bonjour! Welcome") and may_end(whole)


def test_chain(example, capsys):
    answers = example("chain").main()
    out = capsys.readouterr().out
    for word, answer in zip(("bridge", "library", "echo"), answers, strict=True):
        assert word in answer and may_end(answer) and answer in out


def test_landing(example, capsys):
    answers = example("landing").main()
    out = capsys.readouterr().out
    used = [a.generation_info["usage_metadata"]["output_tokens"] for a in answers]
    assert used == sorted(used) and all(map(int.__le__, used, (32, 64, 128, 256)))
    for answer in answers:
        assert may_end(answer.text) and answer.text in out
        assert answer.generation_info["eos_source"] in ("model", "reward")


def test_rag(example, capsys):
    found, answer = example("rag").main()
    assert found.page_content.startswith("Breakfast is served from 7:30")
    assert "7:30" in answer.text and may_end(answer.text)
    assert answer.generation_info["finish_reason"] == "stop"
    assert answer.generation_info["eos_source"] in ("model", "reward")
    out = capsys.readouterr().out
    assert found.page_content in out and answer.text in out


def test_react_agent(example, capsys, demo_pipeline):
    module = example("react_agent")
    written = module.main()
    # Without its stop the agent's model makes up the result of the tool; with it, it asks the tool.
    assert "Observation:" in written["without"][0]
    assert not any("Observation:" in text for text in written["with"])
    assert written["with"][0].endswith("Action: opening_hours\nAction Input: Louvre")
    assert "The agent answers: The Louvre opens at 10:00." in capsys.readouterr().out

    prompt = module.PROMPT.format(
        tools=render_text_description([module.opening_hours]),
        tool_names="opening_hours",
        input="When does the Louvre open?",
        agent_scratchpad="",
    )
    settings = {"max_new_tokens": 64, "do_sample": False, "return_full_text": False}
    plain = HuggingFacePipeline(pipeline=demo_pipeline)
    text = plain.invoke(prompt, stop=["\nObservation:"], pipeline_kwargs=settings)
    assert "\nObservation:" in text  # the plain pipeline does not read `stop`


def test_agent(example, capsys):
    conversations = example("agent").main()
    out = capsys.readouterr().out
    for messages, name, args in zip(
        conversations,
        ("get_weather", "get_opening_hours"),
        ({"location": "San Francisco"}, {"museum": "Louvre"}),
        strict=True,
    ):
        called, result, answer = messages[-3:]
        assert [(c["name"], c["args"]) for c in called.tool_calls] == [(name, args)]
        assert called.response_metadata["finish_reason"] == "tool_calls"
        assert result.tool_call_id == called.tool_calls[0]["id"]
        assert may_end(answer.content) and not answer.tool_calls
        assert answer.content in out


def test_memory_agent(example, capsys):
    first, second, third, fourth = example("memory_agent").main()
    assert [len([m for m in part if m.type == "human"]) for part in (first, second)] == [1, 1]
    # What was said before came out of the file: all of it, and only of this conversation.
    for before, after in ((first, third), (second, fourth)):
        assert [m.text for m in after[: len(before)]] == [m.text for m in before]
    assert "Bob" not in str(third) and "Francisco" not in str(fourth)
    out = capsys.readouterr().out
    assert all(may_end(part[-1].text) and part[-1].text in out for part in (third, fourth))


@pytest.fixture
def rag_server(example, demo_pipeline, tmp_path):
    """The web server of the example, over three files."""
    import uvicorn

    for name, text in {
        "meals.md": "# Meals\n\nBreakfast is from 7:30 to 10:00 in the winter garden.",
        "dogs.md": "# Dogs\n\nDogs are welcome. They sleep in the room.",
        "bus.md": "# Bus\n\nThe night bus N12 stops in front of the house.",
    }.items():
        (tmp_path / name).write_text(text)
    chat = ChatLlamaStop(pipeline=demo_pipeline, temperature=0, max_tokens=48)
    long = ChatLlamaStop(pipeline=demo_pipeline, temperature=0, max_tokens=4000, eos_reward=False)
    module = example("rag_server")
    servers = []
    for model in (chat, long):
        config = uvicorn.Config(module.make_app(tmp_path, model), port=0, log_level="warning")
        server = uvicorn.Server(config)
        Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.05)
        servers.append(server)
    yield [f"http://127.0.0.1:{s.servers[0].sockets[0].getsockname()[1]}/ask" for s in servers]
    for server in servers:
        server.should_exit = True


def asked(url, question):
    with httpx.stream("GET", url, params={"question": question}, timeout=200) as response:
        return [json.loads(line) for line in response.iter_lines()]


def test_rag_server_serves_two_clients_and_one_that_leaves(rag_server, demo_pipeline):
    url, long = rag_server
    questions = {"When is breakfast?": "meals.md", "Where do dogs sleep?": "dogs.md"}
    with ThreadPoolExecutor() as pool:
        for lines, file in zip(
            pool.map(asked, [url, url], questions), questions.values(), strict=True
        ):
            first, *pieces, last = lines
            source = first["sources"][0]
            assert (source["number"], source["file"], source["line"]) == (1, file, 1)
            assert len(pieces) > 2 and may_end("".join(piece["text"] for piece in pieces))
            assert last["finish_reason"] == "stop" and last["usage"]["output_tokens"] <= 48
    with httpx.stream("GET", long, params={"question": "When is breakfast?"}) as response:
        lines = response.iter_lines()
        assert "sources" in next(lines) and "text" in next(lines)
    # The client has left: nobody is at the model any more.
    until = time.monotonic() + 20
    while not engine_of(demo_pipeline.model).idle and time.monotonic() < until:
        time.sleep(0.1)
    assert engine_of(demo_pipeline.model).idle


def test_structured(example, capsys):
    long, short = example("structured").main()
    assert long.city == short.city == "Paris"
    assert "`max_new_tokens` has to be" in capsys.readouterr().out


def test_diagnose(example, capsys, converted_models):
    found = [[finding.code for finding in part] for part in example("diagnose").main()]
    assert found == [["eos-learned"], ["turn-end-not-eos"], ["eos-learned"]]
    out = capsys.readouterr().out
    fix = "pipeline.model.generation_config.eos_token_id = [0, 2]"
    assert f"    {fix}\n" in out and fix in (EXAMPLES / "diagnose.py").read_text()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_finetune(example, capsys, tmp_path, converted_models):
    module = example("finetune")
    rows = sorted(module.ANSWERS.read_text(encoding="utf-8").splitlines(), key=len)[:10]
    module.ANSWERS = tmp_path / "few.jsonl"
    module.ANSWERS.write_text("\n".join(rows), encoding="utf-8")
    folder = tmp_path / "adapter"
    report = module.main(str(folder), max_new_tokens=16, held_out=2, epochs=1)
    assert (folder / "adapter_model.safetensors").exists() and report.examples == 8
    out = capsys.readouterr().out
    assert report.table() in out and f"--- adapter: {folder}, finish_reason: " in out


def test_our_own_answers_are_short_and_end():
    lines = (EXAMPLES / "short_answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["prompt"] for row in rows}) == len(rows) == 120
    open_ended = [row["prompt"] for row in rows if not may_end(row["completion"])]
    letters = [prompt for prompt in open_ended if prompt.startswith("Write a")]
    assert len(letters) == 2 and len(open_ended) == 3  # and "12.", which may be a list's marker


def run_first_block(path, capsys):
    """Runs the first Python block of a page; what it has printed comes in pieces, one an answer."""
    block = path.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    exec(compile(block, path.name, "exec"), {})
    return re.split("(?=Bonjour!)", capsys.readouterr().out)[1:]


def test_the_first_lines_of_the_readme(capsys):
    first, stopped, streamed = run_first_block(ROOT / "README.md", capsys)
    landed, reason = first.rstrip("\n").rsplit("\n", 1)
    assert may_end(landed) and "Louvre" in landed and reason == "stop"
    assert stopped.endswith("to the \n")
    assert may_end(streamed) and landed.startswith(streamed[:100])


def test_the_first_lines_of_the_docs():
    readme, start = (path.read_text("utf-8") for path in (ROOT / "README.md", DOCS / "index.md"))
    assert re.findall("```python\n.*?```", start, re.DOTALL)[0] in readme


def test_the_lines_about_the_llm_class(capsys):
    page = DOCS / "index.md"
    block = re.findall("```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(block, page.name, "exec"), {})
    landed, stopped, *rest = re.split("(?=Bonjour!)", capsys.readouterr().out)[1:]
    assert may_end(landed) and "Louvre" in landed
    assert stopped.endswith("to the \n")
    streamed, _, batch = rest[0].partition("[")
    assert may_end(streamed) and landed.startswith(streamed[:100])
    answers = ast.literal_eval(f"[{batch}{''.join(rest[1:])}")
    assert len(answers) == 2 and all(map(may_end, answers))


RUN = [DOCS / "why-not-stop.md", *sorted((DOCS / "how-to").glob("*.md"))]


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_what_the_docs_show(path, demo_pipeline, monkeypatch, capsys):
    def load(*, model, quantization, **kwargs):
        assert (model, quantization) == ("demo", "nf4")
        return demo_pipeline

    monkeypatch.setattr(model_source, "load_pipeline", load)
    text = path.read_text(encoding="utf-8")
    blocks = re.findall("(<!-- not run -->\n)?```python\n(.*?)```", text, re.DOTALL)
    for marked, block in blocks:
        if not marked:
            exec(compile(block, path.name, "exec"), {"__name__": path.stem})
            assert capsys.readouterr().out.strip()

"""The shape of the house: imports point downwards, files stay small, importing stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import langchain_llama_stop

PACKAGE = Path(langchain_llama_stop.__file__).parent
LAYERS = [
    [
        "_version",
        "dtypes",
        "marks",
        "once",
        "gguf_cache",
        "grammars",
        "probes",
        "training_bar",
        "training_files",
    ],
    [
        "boundaries",
        "calls",
        "loading",
        "stop_sequences",
        "detokenization",
        "tool_calling",
        "testing",
    ],
    ["eos_reward", "kv_cache", "closers", "endings"],
    ["prefix_cache", "guessing"],
    ["decoding", "memory"],
    ["jobs"],
    ["batches"],
    ["reading"],
    ["scheduling"],
    ["options", "placeholders", "vocabulary"],
    ["settings", "stopping_criteria", "landing", "constrained", "chat_templates"],
    ["training_options", "training_data", "merging"],
    ["training_examples"],
    ["eos_probes"],
    ["logits_process"],
    ["rows", "vllm_args", "vllm_servers"],
    ["generation", "model_options", "model_source", "findings", "serialization"],
    ["diagnosis"],
    ["training_report", "training_preparation"],
    ["training"],
    ["llms", "messages", "tools", "vllm_processor"],
    ["prompts", "structured_output", "vllm_requests"],
    ["chat_models", "console", "vllm_chat"],
    ["vllm"],
    ["demo", "commands"],
    ["cli"],
    ["__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.glob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_downwards(path):
    assert path.stem in LEVEL, f"{path.stem} has no place in the layers yet"
    for name in imported(path):
        head, _, tail = name.partition(".")
        module = tail.partition(".")[0]
        if head == "langchain_llama_stop" and module in LEVEL and module != "_version":
            assert LEVEL[module] < LEVEL[path.stem], f"{path.stem} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_only_the_langchain_layer_knows_langchain(path):
    known = ("llms", "chat_models", "model_options", "messages", "prompts", "structured_output")
    known += ("tools", "demo", "probes", "serialization", "testing", "vllm_chat", "vllm_requests")
    if path.stem not in known:
        assert not any(name.startswith("langchain_core") for name in imported(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_file_is_much_over_300_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_text_and_number_modules_import_nothing_heavy():
    for name in ("boundaries", "marks", "stop_sequences", "eos_reward"):
        for module in imported(PACKAGE / f"{name}.py"):
            assert module.partition(".")[0] in {*sys.stdlib_module_names, "langchain_llama_stop"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import langchain_llama_stop", ["torch", "transformers", "langchain_core"]),
        ("from langchain_llama_stop import EosReward, find_stop", ["torch", "transformers"]),
        ("from langchain_llama_stop import LlamaStopLLM", ["torch", "transformers"]),
        ("import langchain_llama_stop.loading", ["torch", "transformers"]),
        ("from langchain_llama_stop import ChatLlamaStopServer", ["torch", "transformers"]),
    ],
)
def test_importing_is_light(statement, absent):
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_public_name_can_be_imported():
    for name in langchain_llama_stop.__all__:
        assert getattr(langchain_llama_stop, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = langchain_llama_stop.Nonsense

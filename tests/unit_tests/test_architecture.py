"""The shape of the house: which wing may import which, small files, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import langchain_llama_stop

PACKAGE = Path(langchain_llama_stop.__file__).parent
ANYBODY = {"_version", "_checks", "_lazy", "_optional", "_files", "_weights", "_locks"}
SHARED = {"options", "tokens", "ending", "grammar", "engine", "loading"}
MAY_IMPORT = {
    **{name: set() for name in (*ANYBODY, "tokens", "loading", "testing")},
    "ending": {"tokens"},
    "grammar": {"tokens"},
    "options": {"ending", "grammar"},
    "chat": {"tokens", "grammar"},
    "engine": {"options", "tokens", "ending", "grammar"},
    "_langchain": {*SHARED, "chat"},
    "llms": {"options", "tokens", "engine", "_langchain"},
    "chat_models": {"options", "tokens", "engine", "_langchain", "chat"},
    "vllm": {"options", "ending", "chat", "_langchain"},
    "diagnosis": {"options", "tokens", "ending", "chat", "engine", "loading"},
    "training": {"options", "tokens", "ending", "chat", "engine", "loading", "diagnosis"},
    "__main__": {"cli"},
    "cli": {*SHARED, "chat", "_langchain", "llms", "chat_models", "diagnosis", "training"},
}
LANGCHAIN = {"_langchain", "llms", "chat_models", "vllm", "testing", "cli"}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(PACKAGE).with_suffix(""))


def wing_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    wing = wing_of(path)
    if wing == "__init__":
        return
    assert wing in MAY_IMPORT, f"{wing} has no place in the table yet"
    for name in imported(path):
        head, _, tail = name.partition(".")
        other = tail.partition(".")[0]
        if head == "langchain_llama_stop" and other in MAY_IMPORT and other != wing:
            assert other in MAY_IMPORT[wing] | ANYBODY, f"{wing} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_langchain_wings_know_langchain(path):
    if wing_of(path) not in LANGCHAIN:
        assert not any(name.startswith("langchain_core") for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_few_files_stand_at_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_text_and_number_modules_import_nothing_heavy():
    for name in ("boundaries", "markup", "stop_strings", "reward"):
        for module in imported(PACKAGE / "ending" / f"{name}.py"):
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

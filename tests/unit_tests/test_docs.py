"""The docs name nothing that does not exist, and every block of Python in them is sound."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import langchain_llama_stop
from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, LlamaStopLLM

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]
)
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
MODELS = (LlamaStopLLM, ChatLlamaStop, ChatLlamaStopServer)
OPTIONS = {
    *(name for model in MODELS for name in model.model_fields),
    *(f.alias for model in MODELS for f in model.model_fields.values() if f.alias),
    *(
        "max_tokens",
        "llm",
        "tools",
        "tool_choice",
        "continue_final_message",
        "config",
        "stream_mode",
    ),
    "base_url",
}
"""What the models take in the constructor or in a call."""
CONSTRUCTORS = {*(model.__name__ for model in MODELS), "from_model_id"}
CALLS = {"invoke", "ainvoke", "stream", "astream", "batch", "abatch", "bind", "generate"}


def name_of(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding="utf-8")


def blocks_of(path):
    return FENCE.findall(text_of(path))


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def of_a_model(node):
    """Whether a call is one of a variable that the docs use for a model."""
    owner = getattr(node.func, "value", None)
    return getattr(owner, "id", "") in ("llm", "chat", "model")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_blocks_compile_and_their_names_exist(path):
    for block in blocks_of(path):
        tree = ast.parse(block, str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                there = getattr(module, "__all__", ())  # without importing what a name stands for
                for alias in node.names:
                    assert alias.name in there or hasattr(module, alias.name), alias.name
            elif isinstance(node, ast.Call):
                if called(node) in CONSTRUCTORS or (called(node) in CALLS and of_a_model(node)):
                    names = {keyword.arg for keyword in node.keywords} - {None}
                    assert names <= OPTIONS, f"{called(node)}: {sorted(names - OPTIONS)}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    code = "\n".join(match[0] for match in CODE.finditer(text_of(path)))
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", code, re.MULTILINE):
        assert name in targets, name
    for name in re.findall(r"(?:^|`)llama-stop ([a-z]+)", code, re.MULTILINE):
        assert name in {"ask", "chat", "demo", "diagnose", "finetune"}, name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_exist(path):
    if "CHANGELOG" in path.name:
        return
    roots = (ROOT, ROOT / "langchain_llama_stop", ROOT / "benchmarks", ROOT / "examples")
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+(?:\.py|\.md|\.jinja|/))`", text_of(path)):
        assert any((root / name).exists() for root in roots) or name in MADE, name


MADE = {"site/", "data/", "conftest.py", "acme.py", "test_loading.py"}
"""What only some machines have, or what is named without its folder."""


def test_links_of_the_files_beside_the_docs():
    for path in PAGES:
        if (ROOT / "docs") not in path.parents:  # those inside are checked by mkdocs
            for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text_of(path)):
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200


def test_every_public_name_has_its_place_in_the_api():
    listed = re.findall(
        r"^::: langchain_llama_stop\.(\w+)$", text_of(ROOT / "docs" / "api.md"), re.M
    )
    wings = {"testing"}  # listed as a whole; the processor of the server is listed by its path
    assert set(listed) - wings == set(langchain_llama_stop.__all__) - {"__version__"}


def test_every_finding_is_explained():
    page = text_of(ROOT / "docs" / "why-not-stop.md")
    folder = ROOT / "langchain_llama_stop" / "diagnosis"
    codes = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Call) and called(node) == "Finding":
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                words = [item.value for item in given if isinstance(item, ast.Constant)]
                codes.add(next(w for w in words if re.fullmatch(r"[a-z]+(-[a-z]+)+", str(w))))
    assert codes and codes == set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_is_included_exists(path):
    included = [line for line in text_of(path).splitlines() if re.match(r"\W*-+ ?8", line)]
    for line in included:  # written as it has to be: a formatter once took it for Python
        name = re.fullmatch(r'--8<-- "([\w/.]+)(?::\d+)?"', line)
        assert name and (ROOT / name[1]).exists(), line


def test_options_become_a_table():
    entry = {"type": "int | None", "default": None, "doc": "What\n  it is."}
    options = {
        "budget": SimpleNamespace(**entry, aliases=("most",), server=None),
        "rows": SimpleNamespace(type="int", default=16, doc="Rows.", aliases=(), server="set it"),
    }
    first, second = hooks().options_table(options).splitlines()[2:]
    names = '<span id="budget"></span>`budget`<br>(`most`)'
    assert first == f"| {names} | `int | None` | What it is. | none | yes |"
    assert second == '| <span id="rows"></span>`rows` | `int` | Rows. | `16` | no: set it |'


def test_pages_without_the_marker_stay_as_they_are():
    assert hooks().on_page_markdown("# A page", page=None, config=None, files=None) == "# A page"


def test_the_options_page_holds_every_option():
    page = text_of(ROOT / "docs" / "options.md")
    written = hooks().on_page_markdown(page, page=None, config=None, files=None)
    options = importlib.import_module("langchain_llama_stop.options").OPTIONS
    for name in options:
        assert f"`{name}`" in written
    assert "<!-- options -->" not in written

"""The public names where the packages of an extra are missing, or broken."""

import importlib
import json
import math
import subprocess
import sys
import types

import pytest

from langchain_llama_stop._lazy import lazy_names

CLIENT = ["httpx2"]
OTHERS = ["accelerate", "bitsandbytes", "gguf", "peft", "datasets", "matplotlib", "trl"]
"""The packages of the extra `vllm`, and those of `quantization` and `train`."""

FACTS = """
import inspect, json, pydoc, sys
sys.modules.update(dict.fromkeys({packages}))
import langchain_llama_stop as root, langchain_llama_stop.vllm as vllm
root_names, vllm_names = dict(), dict()
exec("from langchain_llama_stop import *", root_names)
exec("from langchain_llama_stop.vllm import *", vllm_names)
from langchain_llama_stop import ChatLlamaStopServer
texts = {m: pydoc.render_doc(m, renderer=pydoc.plaintext) for m in (root, vllm)}
facts = dict(
    imported=all(name in root_names for name in root.__all__)
    and all(name in vllm_names for name in vllm.__all__),
    listed=dir(root) == sorted(root.__all__) and dir(vllm) == sorted(vllm.__all__),
    has=all(hasattr(m, name) for m in (root, vllm) for name in m.__all__),
    members=[len(inspect.getmembers(m)) == len(m.__all__) for m in (root, vllm)],
    help=[all(n in text for n in m.__all__ if n != "__version__") for m, text in texts.items()],
    one_class=ChatLlamaStopServer is root.ChatLlamaStopServer is vllm.ChatLlamaStopServer,
    kinds=[isinstance(3, ChatLlamaStopServer), issubclass(int, ChatLlamaStopServer)],
    nonsense=hasattr(root, "Nonsense") or hasattr(vllm, "Nonsense"),
    errors=[],
)
for made in [
    lambda: vllm.ChatLlamaStopServer(model="m"),
    lambda: vllm.EosRewardLogitsProcessor(None, "cpu"),
    lambda: root.merge_adapter("model", "adapter", "{folder}/merged"),
    lambda: root.finetune("model", [], "{folder}"),
    lambda: root.load_pipeline("{folder}/model.gguf"),
][: {calls}]:
    try:
        made()
    except ImportError as error:
        facts["errors"].append(str(error))
    except Exception:
        pass
server = vllm.ChatLlamaStopServer
facts["server"] = [server.__name__, server.__qualname__, server.__module__, str(server.__doc__)]
facts["server_help"] = pydoc.render_doc(server, renderer=pydoc.plaintext)
print(json.dumps(facts))
"""


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("missing", [CLIENT, OTHERS], ids=["vllm", "quantization and train"])
def test_a_missing_extra_breaks_no_import(missing, tmp_path):
    """vLLM itself is missing in both cases: it cannot be installed beside the other extras."""
    (tmp_path / "model.gguf").touch()
    code = FACTS.replace("{packages}", repr([*missing, "vllm"])).replace("{folder}", str(tmp_path))
    code = code.replace("{calls}", "2" if missing is CLIENT else "5")
    facts = json.loads(run(code).splitlines()[-1])
    assert facts["imported"] and facts["listed"] and facts["has"] and facts["one_class"]
    assert facts["members"] == facts["help"] == [True, True]
    assert facts["kinds"] == [False, False] and not facts["nonsense"]
    quantization = "Install it: pip install 'langchain-llama-stop[quantization]'"
    expected = ["EosRewardLogitsProcessor needs the package vllm. Install it: pip install vllm"]
    if missing is CLIENT:
        expected += [
            "ChatLlamaStopServer needs the package httpx2. "
            "Install it: pip install 'langchain-llama-stop[vllm]'"
        ]
    else:
        expected += [
            f"`adapter` needs the package peft. {quantization}",
            "finetune needs the package trl. Install it: pip install 'langchain-llama-stop[train]'",
            f"A `.gguf` file needs the package gguf. {quantization}",
        ]
    for start in expected:
        assert [e for e in facts["errors"] if e.startswith(start)], (start, facts["errors"])
    assert len(facts["errors"]) == len(expected)
    name, qualname, module, doc = facts["server"]
    assert name == qualname == "ChatLlamaStopServer"
    assert module == "langchain_llama_stop.vllm.chat_model"
    assert doc.startswith("ChatLlamaStopServer needs the package httpx2") == (missing is CLIENT)
    assert doc.splitlines()[0] in facts["server_help"]


@pytest.mark.parametrize(
    "error",
    [
        ImportError("broken"),
        ImportError("broken", name="httpx2"),
        ModuleNotFoundError("broken"),
        ModuleNotFoundError("broken", name="httpcore2"),
        ModuleNotFoundError("broken", name="langchain_core.messages"),
        ModuleNotFoundError("broken", name="httpx2"),  # which is installed
        SyntaxError("broken"),
    ],
    ids=repr,
)
def test_a_broken_package_is_not_taken_for_a_missing_one(monkeypatch, error):
    def fail(name):
        raise error

    load, _ = lazy_names("package", {"Server": "langchain_llama_stop.vllm.chat_model"})
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(type(error), match="broken"):
        load("Server")


def test_a_name_is_loaded_once(monkeypatch):
    package = types.ModuleType("package")
    package.__all__ = ["sqrt", "floor"]
    monkeypatch.setitem(sys.modules, "package", package)
    load, names = lazy_names("package", {"sqrt": "math"})
    assert load("sqrt") is math.sqrt is package.sqrt
    assert names() == ["floor", "sqrt"]
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'floor'"):
        load("floor")


def test_a_broken_package_is_an_error_of_the_public_name():
    code = (
        "import sys, types\n"
        "sys.modules['langchain_core'] = types.ModuleType('langchain_core')\n"
        "import langchain_llama_stop\n"
        "try: hasattr(langchain_llama_stop, 'ChatLlamaStopServer')\n"
        "except ImportError as error: print(error)"
    )
    assert "'langchain_core' is not a package" in run(code)


def test_a_stand_in_while_the_extra_is_missing():
    """A subclass of it says what is missing, too; after an installation the name is the class."""
    code = (
        "import sys; sys.modules['httpx2'] = None\n"
        "from langchain_llama_stop import ChatLlamaStopServer\n"
        "class Mine(ChatLlamaStopServer):\n"
        "    def __init__(self, **options): pass\n"
        "try: Mine(model='m')\n"
        "except ImportError as error: print(error)\n"
        "del sys.modules['httpx2']\n"
        "from langchain_llama_stop import ChatLlamaStopServer\n"
        "print(hasattr(ChatLlamaStopServer, 'invoke'))"
    )
    error, installed = run(code).splitlines()
    assert error.startswith("ChatLlamaStopServer needs the package httpx2. Install it: pip install")
    assert installed == "True"


def test_the_servers_environment_needs_no_langchain():
    """There the package is installed without its dependencies."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['langchain_core', 'langchain_huggingface']))\n"
        "from langchain_llama_stop.vllm import *\n"
        "try: ChatLlamaStopServer(model='m')\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install 'langchain-llama-stop[vllm]'" in run(code)

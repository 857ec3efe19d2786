"""Which checks of our `testing` hold, for our classes and for others: `make bench-conformance`.

The suites run on the demo model in NF4, greedy, with `HuggingFacePipeline` and `ChatHuggingFace` of
langchain-huggingface set up as well as their options allow: greedy, with a budget, and answers
without the prompt; the budget is in `pipeline_kwargs` too, as `from_model_id` puts it there.
Prints a Markdown table. A few minutes.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, load_pipeline
from langchain_llama_stop.testing import StopChatModelTests, StopLLMTests

BUDGET = 24
PACKAGES = ("langchain-core", "langchain-huggingface", "torch", "transformers")
PIPELINE: Any = None


class OnDemoModel:
    """What all four classes share: the model, and a count of its forward passes."""

    passes = 0

    @pytest.fixture(autouse=True)
    def counted(self) -> Iterator[None]:
        """Counts forward passes."""
        torch.set_num_threads(1)  # for one row of so small a model a second thread costs time
        hook = PIPELINE.model.register_forward_pre_hook(self.count)
        yield
        hook.remove()

    def count(self, *args: Any) -> None:
        """Counts one."""
        self.passes += 1

    def steps(self, model: Any) -> int:
        """The passes of this test."""
        return self.passes


class Ours(OnDemoModel):
    """The options of our classes."""

    @property
    def model_params(self) -> dict[str, Any]:
        """The pipeline, greedy; without the reward, so that all four answer alike."""
        return {
            "pipeline": PIPELINE,
            "temperature": 0,
            "max_tokens": BUDGET,
            "eos_reward": False,
        }


class TestLlamaStopLLM(Ours, StopLLMTests):
    """Ours."""

    model_class = LlamaStopLLM  # type: ignore[assignment]


class TestChatLlamaStop(Ours, StopChatModelTests):
    """Ours."""

    model_class = ChatLlamaStop  # type: ignore[assignment]


def hugging_face(tokens: int) -> dict[str, Any]:
    """Arguments of a `HuggingFacePipeline` whose pipeline has this budget."""
    kwargs = {"max_new_tokens": tokens, "do_sample": False, "return_full_text": False}
    pipeline = transformers.pipeline(
        "text-generation", model=PIPELINE.model, tokenizer=PIPELINE.tokenizer, **kwargs
    )
    return {"pipeline": pipeline, "pipeline_kwargs": kwargs}


class TestHuggingFacePipeline(OnDemoModel, StopLLMTests):
    """langchain-huggingface's LLM."""

    model_class = HuggingFacePipeline  # type: ignore[assignment]

    @property
    def model_params(self) -> dict[str, Any]:
        """A pipeline of its own."""
        return hugging_face(BUDGET)

    def budget(self, tokens: int) -> dict[str, Any]:
        """Another pipeline."""
        return hugging_face(tokens)

    def call_budget(self, tokens: int) -> dict[str, Any]:
        """Arguments that it hands to the pipeline."""
        return {"pipeline_kwargs": {"max_new_tokens": tokens}}


class TestChatHuggingFace(OnDemoModel, StopChatModelTests):
    """langchain-huggingface's chat model."""

    model_class = ChatHuggingFace  # type: ignore[assignment]

    @property
    def model_params(self) -> dict[str, Any]:
        """Around the LLM above; the model has no name on the hub, so the tokenizer is given."""
        return {**self.budget(BUDGET), "tokenizer": PIPELINE.tokenizer, "model_id": "demo"}

    def budget(self, tokens: int) -> dict[str, Any]:
        """Another LLM inside, and the field that ChatHuggingFace has for a budget."""
        return {"llm": HuggingFacePipeline(**hugging_face(tokens)), "max_tokens": tokens}

    def call_budget(self, tokens: int) -> dict[str, Any]:
        """Arguments that it hands to the LLM."""
        return {"pipeline_kwargs": {"max_new_tokens": tokens}}


CLASSES = [TestHuggingFacePipeline, TestLlamaStopLLM, TestChatHuggingFace, TestChatLlamaStop]


class Collector:
    """Collects outcomes by class and check, while pytest runs."""

    def __init__(self) -> None:
        """Starts with no rows."""
        self.rows: list[dict[str, str]] = []

    def message(self, report: pytest.TestReport) -> str:
        """The message of a check, or the error that was raised in it."""
        if isinstance(report.longrepr, tuple):  # of a skipped one: file, line, reason
            return report.longrepr[2].removeprefix("Skipped: ")
        crash = getattr(report.longrepr, "reprcrash", None)
        return str(crash.message if crash else report.longrepr).removeprefix("Failed: ")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Stores the outcome of a test."""
        if report.when == "call" or report.outcome != "passed" and report.when == "setup":
            _, name, check = report.nodeid.split("::")
            check, _, case = check.removeprefix("test_").partition("[")
            self.rows.append(
                {
                    "class": name.removeprefix("Test"),
                    "check": check,
                    "case": case.removesuffix("]"),
                    "outcome": report.outcome,
                    "message": "" if report.passed else self.message(report),
                }
            )


def cell(rows: list[dict[str, str]]) -> str:
    """The table's cell for the cases of a check."""
    counted = [row["outcome"] == "passed" for row in rows if row["outcome"] != "skipped"]
    if not counted:
        return "–"
    if len(counted) == 1:
        return "pass" if counted[0] else "**fail**"
    share = f"{sum(counted)}/{len(counted)}"
    return share if all(counted) else f"**{share}**"


def table(rows: list[dict[str, str]]) -> str:
    """The outcomes as a Markdown table, with the checks in the order in which they ran."""
    names = [cls.__name__.removeprefix("Test") for cls in CLASSES]
    lines = [f"| check | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    checks = dict.fromkeys(row["check"] for row in rows)
    for check in (*checks, None):
        cells = [
            cell([r for r in rows if r["class"] == n and check in (r["check"], None)])
            for n in names
        ]
        title = f"`{check}`" if check else "all"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the suites, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument(
        "--messages", action="store_true", help="print the messages of failing checks"
    )
    args = parser.parse_args()
    # pytest imports this file as a second module, which needs the pipeline too.
    import conformance

    conformance.PIPELINE = load_pipeline("demo", quantization="nf4")
    collector, output = Collector(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(
            [__file__, "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore"],
            plugins=[collector],
        )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(output.getvalue())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"\n{table(collector.rows)}")
    if args.messages:
        for row in collector.rows:
            if row["outcome"] == "failed":
                print(f"\n{row['class']} {row['check']} [{row['case']}]\n  {row['message']}")
    if args.json:
        report = {"versions": versions, "machine": platform.machine(), "outcomes": collector.rows}
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""`llama-stop diagnose`: find out why a model does not stop."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.cli.console import load, show_stages
from langchain_llama_stop.cli.flags import (
    add_adapter_flag,
    add_command,
    add_option_flag,
    add_quantization_flag,
)

if TYPE_CHECKING:
    from langchain_llama_stop.diagnosis.checks import Finding

PURPOSE = "Find out why a model does not stop."
_EPILOG = """
examples:
  llama-stop diagnose meta-llama/Llama-3.2-1B-Instruct
  llama-stop diagnose demo --adapter adapter --json
  llama-stop diagnose ./my-model --prompt "Q: Why? A:" --max-new-tokens 128

The exit status is 1 if there is an error among the findings.
"""
_OPTIONS = ("max_new_tokens", "repetition_penalty", "stop")
"""Options as the user gives them to the model, which findings are about."""
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "green"}


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "diagnose", run_diagnose, PURPOSE, _EPILOG)
    parser.add_argument("model", help='"demo", local folder, .gguf file or hub id')
    add_adapter_flag(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="a prompt to check, as you send it")
    for name in _OPTIONS:
        add_option_flag(parser, name, note="What you use now. ")
    add_quantization_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run_diagnose(args: argparse.Namespace) -> int:
    """Prints findings about a model; returns 1 if there is an error among them, else 0."""
    from langchain_llama_stop.options import GenerationOptions

    options = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    GenerationOptions.parse(options)  # refuses wrong values before anything is loaded
    with show_stages(transient=True) as begin_stage:
        pipeline = load(args.model, args.quantization, args.adapter, begin_stage)
        from langchain_llama_stop.diagnosis.diagnose import diagnose

        findings = diagnose(pipeline, args.prompt, progress=begin_stage, **options)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        _print(findings)
    return int(any(finding.severity == "error" for finding in findings))


def _print(findings: list[Finding]) -> None:
    """Prints a small table for each finding, and how many there are."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for finding in findings:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_row(Text(finding.severity, _COLOURS[finding.severity]), Text(finding.code))
        lines = {"seen": finding.message, "why": finding.why, "fix": finding.fix}
        for name, line in lines.items():
            if line:
                table.add_row(Text(f"  {name}", "dim"), Text(line))
        console.print(table, "")
    serious = sum(finding.severity == "error" for finding in findings)
    count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    console.print(f"{count}, {serious} of them serious.")

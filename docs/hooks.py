"""What mkdocs does besides: the table of options, and the pictures of `assets/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKER = "<!-- options -->"
ROOT = Path(__file__).parents[1]


def options_table(options: Mapping[str, Any]) -> str:
    """Writes the options as a Markdown table, one row each, in the order of the mapping.

    Args:
        options: Names and entries of `langchain_llama_stop.options.OPTIONS`: `type` and `doc` are
            texts, `default` a value, `aliases` other names, `server` what to set on a vLLM server
            instead (None: a request carries the option).

    Returns:
        The table.
    """
    lines = ["| option | type | meaning | default | on a vLLM server |", "|---|---|---|---|---|"]
    for name, option in options.items():
        names = f"`{name}`" + "".join(f"<br>(`{alias}`)" for alias in option.aliases)
        cells = (
            f'<span id="{name}"></span>{names}',
            f"`{option.type}`",
            " ".join(option.doc.split()),  # a `|` in backticks splits no cell here
            "none" if option.default is None else f"`{option.default!r}`",
            "yes" if option.server is None else f"no: {option.server}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pictures of `assets/`, which the README shows too, to the site."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "assets").iterdir()):
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the table of options where its marker stands; without the options the build fails."""
    if MARKER not in markdown:
        return markdown
    from langchain_llama_stop.options import OPTIONS

    return markdown.replace(MARKER, options_table(OPTIONS))

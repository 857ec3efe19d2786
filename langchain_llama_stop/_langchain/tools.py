"""Tools, and what goes with them, in OpenAI's form, however they are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_llama_stop.grammar.schema import json_grammar


def format_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Writes tools in OpenAI's form.

    Args:
        tools: Pydantic classes, functions, LangChain tools, or dicts in OpenAI's form.

    Returns:
        One dict per tool, with name and parameters.

    Raises:
        ValueError: If one cannot be described, has no name, no schema, or one that cannot be
            compiled.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise ValueError(f"`tools` has to be a list of tools, but is {tools!r}.")
    formatted = []
    for tool in tools:
        try:
            described = convert_to_openai_tool(tool)
        except Exception as error:  # LangChain raises what it meets
            raise ValueError(
                f"`tools` has to hold functions with a docstring, Pydantic classes, LangChain "
                f"tools or dicts in OpenAI's form, but holds {tool!r}: {error}"
            ) from error
        function = described.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
            raise ValueError(
                f"Each of `tools` has to have a schema of its arguments (`parameters`), but "
                f"{tool!r} has none: for a tool without arguments give "
                "{'type': 'object', 'properties': {}}."
            )
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"Each of `tools` has to have a name, but {tool!r} has {name!r}.")
        json_grammar(function["parameters"], f"The schema of the tool {name!r}")
        formatted.append(described)
    return formatted


def format_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Reads `tool_choice`.

    Args:
        choice: As LangChain, OpenAI and Anthropic write it.
        tools: The tools, in OpenAI's form.

    Returns:
        None, "auto", "none", "any", or the name of a tool.

    Raises:
        ValueError: If it names none of the tools, or demands a call where there are none.
    """
    names = [tool["function"]["name"] for tool in tools]
    known = choice
    if isinstance(choice, Mapping):  # {"type": "function", "function": …}, {"type": "any"}
        known = choice.get("function", choice)
        known = known.get("name", choice.get("type")) if isinstance(known, Mapping) else choice
    if isinstance(known, bool):
        known = "any" if known else None
    known = "any" if known == "required" else known
    allowed = ["auto", "none", *(["any", *names] if names else [])]
    if known is not None and known not in allowed:
        where = "" if names else " where `tools` is empty"
        raise ValueError(
            f"`tool_choice` has to be one of {', '.join(map(repr, allowed))}{where}, but is "
            f"{choice!r}."
        )
    return None if known is None else str(known)


def format_response(response_format: Any) -> dict[str, Any]:
    """Reads `response_format`.

    Args:
        response_format: As OpenAI writes it.

    Returns:
        Its JSON schema.

    Raises:
        ValueError: If it holds none.
    """
    given = response_format if isinstance(response_format, Mapping) else {}
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, dict):
        raise ValueError(
            "`response_format` has to be {'type': 'json_schema', 'json_schema': {'schema': {…}}}, "
            f"but is {response_format!r}: give the schema that answers have to fit."
        )
    return schema


def tool_call_chunks(
    calls: Sequence[Mapping[str, Any]], invalid: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Writes tool calls as the chunks of a stream, each whole in one.

    Args:
        calls: Tool calls of an `AIMessage`.
        invalid: Its invalid ones. LangChain finds them in the chunks: their tags are no JSON.

    Returns:
        Chunks for an `AIMessageChunk`.
    """
    written = [{**call, "args": json.dumps(call["args"])} for call in calls]
    return [
        {"name": c["name"], "args": c["args"], "id": c["id"], "index": index}
        for index, c in enumerate([*written, *invalid])
    ]

"""Reads tools, `tool_choice` and `response_format`, whichever form the user writes them in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from langchain_llama_stop.grammar.schema import json_grammar, tool_argument


def format_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Converts tools into OpenAI's form.

    Args:
        tools: Pydantic classes, functions, LangChain tools, or dicts in OpenAI's form.

    Returns:
        One dict per tool, `{"type": "function", "function": {"name": …, "parameters": …}}`.

    Raises:
        ValueError: If a tool cannot be converted, has no name or no schema, or has a schema that
            llguidance cannot compile.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise ValueError(f"`tools` has to be a list of tools, but is {tools!r}.")
    formatted = []
    for tool in tools:
        try:
            described = convert_to_openai_tool(tool)
        except Exception as error:  # LangChain raises errors of many types
            raise ValueError(
                f"`tools` has to hold functions with a docstring, Pydantic classes, LangChain "
                f"tools or dicts in OpenAI's form, but holds {tool!r}: {error}"
            ) from error
        function = described.get("function")
        if not isinstance(function, dict):
            raise ValueError(f"Each of `tools` has to have a `function`, but {tool!r} has none.")
        function = {**function, "parameters": _parameters(tool, function)}
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"Each of `tools` has to have a name, but {tool!r} has {name!r}.")
        json_grammar(function["parameters"], tool_argument(name))
        formatted.append({**described, "function": function})
    return formatted


def _parameters(tool: Any, function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, empty if the schema names nothing."""
    given = recursive_schema(getattr(tool, "args_schema", tool)) or function.get("parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"The schema of the tool {function.get('name')!r} has to be a dict, but is {given!r}."
        )
    schema = {k: v for k, v in given.items() if k not in ("title", "description")}
    told = schema.keys() - {"$schema", "type", "required"}
    return {"type": "object", **({} if told else {"properties": {}}), **schema}


def recursive_schema(value: Any) -> dict[str, Any] | None:
    """The JSON schema of a Pydantic class that refers to itself: LangChain drops such parts."""
    if not (isinstance(value, type) and issubclass(value, BaseModel)):
        return None
    schema = value.model_json_schema()
    return schema if "$ref" in str(schema.get("$defs")) else None


def format_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Reads `tool_choice`.

    Args:
        choice: What the user gave, in LangChain's, OpenAI's or Anthropic's form.
        tools: The tools, in OpenAI's form.

    Returns:
        None, "auto", "none", "any", or the name of a tool.

    Raises:
        ValueError: If it names none of the tools, or demands a call where there are no tools.
    """
    names = [tool["function"]["name"] for tool in tools]
    name = choice
    if isinstance(choice, Mapping):  # {"type": "function", "function": …}, {"type": "any"}
        function = choice.get("function", choice)
        name = function.get("name", choice.get("type")) if isinstance(function, Mapping) else choice
    if isinstance(name, bool):
        name = "any" if name else None
    name = "any" if name == "required" else name
    allowed = ["auto", "none", *(["any", *names] if names else [])]
    if name is not None and name not in allowed:
        where = "" if names else " where `tools` is empty"
        raise ValueError(
            f"`tool_choice` has to be one of {', '.join(map(repr, allowed))}{where}, but is "
            f"{choice!r}."
        )
    return None if name is None else str(name)


def format_response(response_format: Any) -> dict[str, Any] | None:
    """Reads a `response_format`.

    Args:
        response_format: In OpenAI's form: a JSON schema, "json_object" (as others write it, maybe
            with a schema) or "text"; or a class, which may stand in place of a schema too.

    Returns:
        The JSON schema that answers have to fit; None if they may be any text.

    Raises:
        ValueError: If it says neither.
    """
    if isinstance(response_format, type):
        return dict(convert_to_json_schema(response_format))
    fields = response_format if isinstance(response_format, Mapping) else {}
    inner = fields.get("json_schema")
    schema = (inner if isinstance(inner, Mapping) else fields).get("schema")
    if isinstance(schema, type):
        return dict(convert_to_json_schema(schema))
    if schema is None and fields.get("type") in ("json_object", "text"):
        return {"type": "object"} if fields["type"] == "json_object" else None
    if not isinstance(schema, dict):
        raise ValueError(
            "`response_format` has to be {'type': 'json_schema', 'json_schema': {'schema': {…}}}, "
            f"but is {response_format!r}: give the schema that answers have to fit."
        )
    return schema


def without_response_format(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the option `json_schema` in place of a `response_format`."""
    rest = dict(arguments)
    if (given := rest.pop("response_format", None)) is not None:
        if (schema := format_response(given)) is not None:
            rest["json_schema"] = schema
    return rest


def tool_call_chunks(
    calls: Sequence[Mapping[str, Any]], invalid: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Writes the tool calls of an `AIMessage` for an `AIMessageChunk`, one chunk per call.

    Invalid calls are chunks too: LangChain sees that they are invalid, as they are no JSON.
    """
    as_json = [{**call, "args": json.dumps(call["args"])} for call in calls]
    return [
        {"name": c["name"], "args": c["args"], "id": c["id"], "index": index}
        for index, c in enumerate([*as_json, *invalid])
    ]

"""Answers as objects: a chat model, constrained to a schema, and the parser behind it."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_llama_stop.grammars import json_grammar

_METHODS = ("json_schema", "json_mode", "function_calling")


def structured_output(
    chat: BaseChatModel,
    schema: Any,
    method: str,
    include_raw: bool,
    options: dict[str, Any],
) -> Runnable[Any, Any]:
    """Builds what `ChatLlamaStop.with_structured_output` gives.

    Args:
        chat: The model.
        schema: A Pydantic class, TypedDict, or JSON schema.
        method: "json_schema", "json_mode" or "function_calling".
        include_raw: Whether to give {"raw", "parsed", "parsing_error"}.
        options: Options of the generation.

    Returns:
        A runnable that gives an instance of the class, else a dict.

    Raises:
        ValueError: If `method` is another one, or `schema` cannot be used.
    """
    if method not in _METHODS:
        raise ValueError(
            f"`method` has to be one of {', '.join(map(repr, _METHODS))}, but is {method!r}."
        )
    wanted, known = _json_schema(schema), isinstance(schema, type) and is_basemodel_subclass(schema)
    grammar = json_grammar(wanted, "`schema`")
    traced = {"kwargs": {"method": method}, "schema": wanted}
    # What the constructor asks of all answers does not hold for these.
    options = {"grammar": None, "json_schema": None, **options}
    parser: Runnable[Any, Any]
    llm: Runnable[Any, Any]
    if method == "function_calling":
        if wanted.get("type", "object") != "object":
            raise ValueError(
                f"`schema` has to describe an object for 'function_calling', but its type is "
                f"{wanted['type']!r}: use method='json_schema'."
            )
        name = str(wanted.get("title") or getattr(schema, "__name__", "answer"))
        said = {key: wanted[key] for key in ("description",) if key in wanted}
        parameters = {k: v for k, v in wanted.items() if k not in ("title", "description")}
        tool = {"type": "function", "function": {"name": name, **said, "parameters": parameters}}
        options |= {"tool_choice": name, "ls_structured_output_format": traced}
        llm = chat.bind_tools([tool], **options)
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)
            if known
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    else:
        # In JSON mode the prompt tells the schema; decoding is held to it all the same.
        told = method == "json_schema"
        options["json_schema" if told else "grammar"] = wanted if told else grammar
        llm = chat.bind(ls_structured_output_format=traced, **options)
        parser = PydanticOutputParser(pydantic_object=schema) if known else JsonOutputParser()
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    both = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return RunnableMap(raw=llm) | both


def _json_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema of what is given as one: a class, a tool, or a JSON schema itself."""
    if isinstance(schema, Mapping) and not schema.keys() & {"name", "function", "toolSpec"}:
        if not schema:
            raise ValueError("`schema` has to describe the answers, but is {}.")
        return dict(schema)
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        own = schema.model_json_schema()
        if "$ref" in str(own.get("$defs")):  # LangChain leaves out what refers to itself
            return own
    try:
        return convert_to_json_schema(schema)
    except Exception as error:  # LangChain raises what it meets
        raise ValueError(
            f"`schema` has to be a Pydantic class, a TypedDict or a JSON schema, but is "
            f"{schema!r}: {error}"
        ) from error

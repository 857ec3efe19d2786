"""Answers as objects: a chat model, constrained to a schema, and the parser behind it."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_llama_stop.grammars import json_grammar


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
        ValueError: If `method` is another one.
    """
    known = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced = {"kwargs": {"method": method}, "schema": convert_to_json_schema(schema)}
    parser: Runnable[Any, Any]
    llm: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        llm = chat.bind_tools(
            [schema], tool_choice=name, ls_structured_output_format=traced, **options
        )
        parser = (
            PydanticToolsParser(tools=[schema], first_tool_only=True)
            if known
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        wanted = convert_to_json_schema(schema)
        # In JSON mode the prompt tells the schema; decoding is held to it all the same.
        told = method == "json_schema"
        options["json_schema" if told else "grammar"] = wanted if told else json_grammar(wanted)
        llm = chat.bind(ls_structured_output_format=traced, **options)
        parser = PydanticOutputParser(pydantic_object=schema) if known else JsonOutputParser()
    else:
        raise ValueError(
            f"`method` has to be 'json_schema', 'json_mode' or 'function_calling', but is "
            f"{method!r}."
        )
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    both = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return RunnableMap(raw=llm) | both

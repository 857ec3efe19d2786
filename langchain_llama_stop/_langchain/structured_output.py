"""`bind_tools` and `with_structured_output` of our chat models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_llama_stop._langchain.tools import (
    format_choice,
    format_tools,
    recursive_schema,
    without_response_format,
)
from langchain_llama_stop.grammar.schema import json_grammar, violation

_METHODS = ("json_schema", "json_mode", "function_calling")


class BindingMixin:
    """Binds a chat model to tools, or to a schema that its answers have to fit."""

    def _tools_are_bound(self) -> None:
        """Is called with each `bind_tools`."""

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Gives the model tools.

        Args:
            tools: Pydantic classes, functions, LangChain tools, or dicts in OpenAI's form.
            tool_choice: None or "auto": the model decides. "none": it calls no tool. "any",
                "required" or True: it calls at least one. A name: it calls that tool. Decoding is
                constrained: each call is to one of these tools, with arguments of its schema.
            **kwargs: Options of the generation. Also `response_format` in OpenAI's form, a JSON
                schema for answers that call no tool, and `parallel_tool_calls`: with False an
                answer holds one call at most.

        Returns:
            The model with its tools.

        Raises:
            ValueError: If a tool cannot be converted, or `tool_choice` names none of them.
        """
        kwargs.pop("strict", None)  # decoding is always constrained to the schemas
        kwargs = without_response_format(kwargs)
        formatted = format_tools(tools)
        choice = format_choice(tool_choice, formatted)
        self._tools_are_bound()
        return cast(BaseChatModel, self).bind(tools=formatted, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Makes the model answer with an object of a schema; decoding is constrained to it.

        Args:
            schema: A Pydantic class, TypedDict, or JSON schema; None with "json_mode" allows any
                object.
            method: "json_schema": the answer is the object. "function_calling": the object is
                the arguments of a tool call. "json_mode": as "json_schema", but the schema is not
                added to the prompt; the user's own prompt has to describe it.
            include_raw: Whether to return a dict of "raw", "parsed" and "parsing_error" instead.
            **kwargs: Options of the generation.

        Returns:
            A runnable that returns an instance of the class, or a dict if `schema` is no Pydantic
            class.

        Raises:
            ValueError: If `method` is none of the three, or `schema` cannot be used.
        """
        kwargs.pop("strict", None)  # as in `bind_tools`
        if method not in _METHODS:
            raise ValueError(
                f"`method` has to be one of {', '.join(map(repr, _METHODS))}, but is {method!r}."
            )
        if schema is None and method == "json_mode":
            schema = {"type": "object"}
        json_schema = _json_schema(schema)
        is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
        model_class: Any = schema if is_pydantic else None
        chat = cast(BaseChatModel, self)
        trace = {"kwargs": {"method": method}, "schema": json_schema}
        # The constructor's `grammar` and `json_schema` do not apply to these answers.
        options = {"grammar": None, "json_schema": None, **kwargs}
        checked: dict[str, Any]
        parser: Runnable[Any, Any]
        llm: Runnable[Any, Any]
        if method == "function_calling":
            if json_schema.get("type", "object") != "object":
                raise ValueError(
                    f"`schema` has to describe an object for 'function_calling', but its type is "
                    f"{json_schema['type']!r}: use method='json_schema'."
                )
            name = str(json_schema.get("title") or getattr(schema, "__name__", "answer"))
            function: dict[str, Any] = {"name": name}
            if "description" in json_schema:
                function["description"] = json_schema["description"]
            function["parameters"] = {
                k: v for k, v in json_schema.items() if k not in ("title", "description")
            }
            checked = function["parameters"]
            tool = {"type": "function", "function": function}
            options |= {"tool_choice": name, "ls_structured_output_format": trace}
            llm = chat.bind_tools([tool], **options)
            parser = (
                PydanticToolsParser(tools=[model_class], first_tool_only=True)
                if model_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            grammar, checked = json_grammar(json_schema, "`schema`"), json_schema
            if method == "json_schema":
                options["json_schema"] = json_schema
            else:  # "json_mode": the same constraint, but nothing is added to the prompt
                options["grammar"] = grammar
            llm = chat.bind(ls_structured_output_format=trace, **options)
            parser = (
                PydanticOutputParser(pydantic_object=model_class)
                if model_class
                else JsonOutputParser()
            )
        checks = _Checks(checked)
        parser = RunnableGenerator(checks.run, checks.arun) | parser
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        both = parsed.with_fallbacks([failed], exception_key="parsing_error")
        return RunnableMap(raw=llm) | both


class _Checks:
    """Lets whole answers through: LangChain's parsers would close cut JSON without a word."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def run(self, answers: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
        """Raises after the last piece of an answer that is cut or does not fit its schema."""
        pieces = []
        for answer in answers:
            pieces.append(_require_complete(answer))
            yield answer
        self._require_fitting(pieces)

    async def arun(self, answers: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
        """As `run`."""
        pieces = []
        async for answer in answers:
            pieces.append(_require_complete(answer))
            yield answer
        self._require_fitting(pieces)

    def _require_fitting(self, pieces: list[BaseMessage]) -> None:
        text = "".join(piece.text for piece in pieces)
        calls = [call for piece in pieces for call in getattr(piece, "tool_calls", ())]
        try:
            value = calls[0]["args"] if calls else json.loads(text)
        except ValueError:  # the parser says so
            return
        if problem := violation(self._schema, value, "`schema`"):
            raise OutputParserException(
                f"The answer does not fit its schema, which decoding does not enforce: {problem}",
                llm_output=text,
            )


def _require_complete(answer: BaseMessage) -> BaseMessage:
    if answer.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "The answer was cut before its object was complete: give more `max_tokens`.",
            llm_output=answer.text,
        )
    return answer


def _json_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema of a class or a tool, or a copy of one that is a JSON schema already."""
    if isinstance(schema, Mapping) and not schema.keys() & {"name", "function", "toolSpec"}:
        if not schema:
            raise ValueError("`schema` has to describe the answers, but is {}.")
        return dict(schema)
    if own := recursive_schema(schema):
        return own
    try:
        return convert_to_json_schema(schema)
    except Exception as error:  # LangChain raises errors of many types
        raise ValueError(
            f"`schema` has to be a Pydantic class, a TypedDict or a JSON schema, but is "
            f"{schema!r}: {error}"
        ) from error

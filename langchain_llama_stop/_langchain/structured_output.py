"""Tools and answers as objects: what a chat model is bound to, and the parser behind it."""

from __future__ import annotations

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
from pydantic import BaseModel

from langchain_llama_stop._langchain.tools import format_choice, format_response, format_tools
from langchain_llama_stop.grammar.schema import json_grammar

_METHODS = ("json_schema", "json_mode", "function_calling")


class BindingMixin:
    """How our chat models are given tools, and schemas that their answers have to fit."""

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
            tool_choice: None or "auto" leaves it to the model, "none" calls none, "any" (also
                "required", True) calls some of them, a name calls that one. A call is always one
                of these tools with arguments of its schema: decoding is constrained to it.
            **kwargs: Options of the generation, `response_format` in OpenAI's form among them: a
                JSON schema that an answer has to fit which calls no tool.

        Returns:
            The model with its tools.

        Raises:
            ValueError: If a tool cannot be described, or `tool_choice` names none of them.
        """
        kwargs.pop("strict", None)  # decoding is always held to the schemas
        if (response_format := kwargs.pop("response_format", None)) is not None:
            kwargs["json_schema"] = format_response(response_format)
        formatted = format_tools(tools)
        choice = format_choice(tool_choice, formatted)
        return cast(BaseChatModel, self).bind(tools=formatted, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Makes the model answer with an object of a schema; decoding is constrained to it.

        Args:
            schema: A Pydantic class, TypedDict, or JSON schema.
            method: "json_schema": the answer is the object. "function_calling": it is the
                arguments of a tool call. "json_mode": as "json_schema", but the model is not told
                the schema; the prompt has to say it.
            include_raw: Whether to give {"raw", "parsed", "parsing_error"}.
            **kwargs: Options of the generation.

        Returns:
            A runnable that gives an instance of the class, else a dict.

        Raises:
            ValueError: If `method` is another one.
        """
        kwargs.pop("strict", None)
        return structured_output(cast(BaseChatModel, self), schema, method, include_raw, kwargs)


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
    parser = RunnableGenerator(_whole, _awhole) | parser
    if not include_raw:
        return llm | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    both = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return RunnableMap(raw=llm) | both


def _whole(answers: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    """Refuses an answer that was cut: parsers would complete what is there of it."""
    for answer in answers:
        yield _uncut(answer)


async def _awhole(answers: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for answer in answers:
        yield _uncut(answer)


def _uncut(answer: BaseMessage) -> BaseMessage:
    if answer.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "The answer was cut before its object was complete: give more `max_tokens`.",
            llm_output=answer.text,
        )
    return answer


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

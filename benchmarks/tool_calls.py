"""Whether the demo model calls tools where it should, and what leaks of the example where not.

Its template knows no tools: they are described in a system message, with an example exchange.
"""

import argparse
import json
import platform
from concurrent.futures import ThreadPoolExecutor

import torch
import transformers
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import tool

from langchain_llama_stop import ChatLlamaStop, load_pipeline
from langchain_llama_stop.chat.tool_formats import UNKNOWN


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def search(query: str) -> str:
    """Search the web for pages about a query."""
    return f"Three pages about {query}."


@tool
def send_email(to: str, text: str) -> str:
    """Send an email to a person."""
    return f"Sent to {to}: {text}"


@tool
def magic_function(input: int) -> int:
    """Applies a magic function to an input."""
    return input + 2


WANTED = [
    ([get_weather, multiply], "What is the weather in Paris?", "get_weather"),
    ([get_weather, multiply], "How is the weather in Oslo today?", "get_weather"),
    ([get_weather, search], "Is it raining in London?", "get_weather"),
    ([get_weather], "Tell me the weather in Tokyo.", "get_weather"),
    ([get_weather, multiply], "Multiply 12 and 34.", "multiply"),
    ([multiply], "What is 7 times 8? Use the tool.", "multiply"),
    ([multiply, search], "How much is 25 times 4?", "multiply"),
    ([search], "Search the web for llamas.", "search"),
    ([search, send_email], "Find pages about the history of tea.", "search"),
    ([send_email], "Send an email to Ada: I am late.", "send_email"),
    ([send_email, get_weather], "Write an email to Tom that the party is on Friday.", "send_email"),
    ([magic_function], "What is the value of magic_function(3)? Use the tool.", "magic_function"),
]
"""Tools, a question that asks for one of them, and its name."""
NEUTRAL = [
    *("ok", "Thanks!", "Hello.", "Good morning.", "How are you?", "I am tired.", "Yes."),
    *("Goodbye.", "Hm.", "Who are you?", "Tell me a joke.", "Name a river in France."),
    *("Who wrote Hamlet?", "Write a line about the sea."),
]
"""Questions that ask for no tool."""
EXAMPLE = ("Rome", "10:45")
"""What only the example exchange tells of."""


def answers(chat: ChatLlamaStop, work: list[tuple], system: str) -> list:
    """The answer to each of some questions, with its tools; eight at once share their passes."""
    before = [SystemMessage(system)] if system else []

    def ask(item: tuple) -> AIMessage:
        tools, question, _ = item
        return chat.bind_tools(tools).invoke([*before, ("human", question)])

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, work))


def main() -> None:
    """Asks all questions, and prints how many were answered in which way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "nf4"], default="float32")
    parser.add_argument("--system", default="", help="a system message before each question")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--show", action="store_true", help="print every answer")
    args = parser.parse_args()
    assert all(word in str(UNKNOWN.example()) for word in EXAMPLE)
    transformers.logging.set_verbosity_error()
    how = {"quantization": "nf4"} if args.dtype == "nf4" else {"dtype": args.dtype}
    chat = ChatLlamaStop(
        pipeline=load_pipeline("demo", **how), temperature=0, max_tokens=args.max_tokens
    )
    neutral = [([get_weather, multiply], question, "") for question in NEUTRAL]
    called = answers(chat, WANTED, args.system)
    others = answers(chat, neutral, args.system)
    if args.show:
        for (_, question, _), answer in zip([*WANTED, *neutral], [*called, *others], strict=True):
            calls = [(call["name"], call["args"]) for call in answer.tool_calls]
            print(f"{question!r}: {json.dumps(calls) if calls else repr(answer.content)}")
    names = [[call["name"] for call in answer.tool_calls] for answer in called]
    right = sum(wanted in found for found, (_, _, wanted) in zip(names, WANTED, strict=True))
    leaks = [a for a in others if any(word in str(a.content) for word in EXAMPLE)]
    machine = f"{platform.machine()}, torch {torch.__version__}"
    print(f"demo model, {args.dtype}, {machine}, transformers {transformers.__version__}")
    made = f"{sum(map(bool, names))} of {len(names)}"
    print(f"calls where one is wanted: {made}, the right tool {right}")
    print(f"calls where none is wanted: {sum(bool(a.tool_calls) for a in others)} of {len(others)}")
    print(f"answers that tell of the example: {len(leaks)} of {len(others)}")


if __name__ == "__main__":
    main()

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


def show(work: list[tuple], found: list[AIMessage]) -> None:
    """Prints every answer."""
    for (_, question, _), answer in zip(work, found, strict=True):
        calls = [(call["name"], call["args"]) for call in answer.tool_calls]
        print(f"{question!r}: {json.dumps(calls) if calls else repr(answer.content)}", flush=True)


def main() -> None:
    """Asks all questions, and prints how many were answered in which way."""
    parser = argparse.ArgumentParser(description=__doc__)
    dtypes = ["float32", "bfloat16", "nf4"]
    parser.add_argument("--dtypes", nargs="+", choices=dtypes, default=["float32", "nf4"])
    parser.add_argument("--only", choices=["wanted", "neutral"], help="leave out the other half")
    parser.add_argument("--system", default="", help="a system message before each question")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--show", action="store_true", help="print every answer")
    args = parser.parse_args()
    assert all(word in str(UNKNOWN.example()) for word in EXAMPLE)
    transformers.logging.set_verbosity_error()
    machine = f"{platform.machine()}, torch {torch.__version__}"
    print(f"demo model, greedy, {machine}, transformers {transformers.__version__}\n")
    print("| | calls where wanted | the right tool | calls where not | tell of the example |")
    print("|---|--:|--:|--:|--:|", flush=True)
    neutral = [([get_weather, multiply], question, "") for question in NEUTRAL]
    for dtype in args.dtypes:
        how = {"quantization": "nf4"} if dtype == "nf4" else {"dtype": dtype}
        pipeline = load_pipeline("demo", **how)
        chat = ChatLlamaStop(pipeline=pipeline, temperature=0, max_tokens=args.max_tokens)
        cells = ["–"] * 4
        if args.only != "neutral":
            found = answers(chat, WANTED, args.system)
            names = [[call["name"] for call in answer.tool_calls] for answer in found]
            right = sum(asked in n for n, (_, _, asked) in zip(names, WANTED, strict=True))
            cells[:2] = [f"{sum(map(bool, names))} of {len(names)}", f"{right} of {len(names)}"]
            if args.show:
                show(WANTED, found)
        if args.only != "wanted":
            found = answers(chat, neutral, args.system)
            leaks = sum(any(word in str(a.content) for word in EXAMPLE) for a in found)
            calls = sum(bool(answer.tool_calls) for answer in found)
            cells[2:] = [f"{calls} of {len(found)}", f"{leaks} of {len(found)}"]
            if args.show:
                show(neutral, found)
        print(f"| {dtype} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

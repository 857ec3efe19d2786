"""An agent that remembers: its conversations are kept in a file of SQLite.

    python examples/memory_agent.py

It needs `pip install 'langchain-llama-stop[examples]'`. Each question is asked by an agent of its
own, as if the program had been started again; what was said before comes from the file.
"""

import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver

from langchain_llama_stop import ChatLlamaStop


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}, 24 degrees."


def ask(question: str, file: Path, conversation: str) -> list[AnyMessage]:
    """Asks a new agent; returns the whole conversation, what is in the file included."""
    model = ChatLlamaStop(model="demo", quantization="nf4", temperature=0, max_tokens=48)
    with SqliteSaver.from_conn_string(str(file)) as memory:
        agent = create_agent(model, [get_weather], checkpointer=memory)
        config = {"configurable": {"thread_id": conversation}}
        state = agent.invoke({"messages": [("human", question)]}, config)
    messages: list[AnyMessage] = state["messages"]
    print(f"{conversation}: {question}\n  {messages[-1].text}")
    return messages


def main() -> list[list[AnyMessage]]:
    """Asks in two conversations, by turns; returns what each question's conversation held."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.sqlite"
        return [
            ask("What is the weather in San Francisco, CA?", file, "ada"),
            ask("Hello! My name is Bob.", file, "bob"),
            ask("Which city did I ask about?", file, "ada"),
            ask("What is my name?", file, "bob"),
        ]


if __name__ == "__main__":
    main()

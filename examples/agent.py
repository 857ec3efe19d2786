"""An agent with two tools on a model of 135 million parameters.

    python examples/agent.py

The model decides when to call a tool. Once a call has begun, decoding is constrained to the tools
and their arguments. After the result it answers. The second question is streamed by LangGraph.
"""

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import tool

from langchain_llama_stop import ChatLlamaStop

HOURS = {"louvre": "The Louvre is open from 10:00 to 18:00."}


@tool
def get_opening_hours(museum: str) -> str:
    """Get the opening hours of a museum."""
    return HOURS.get(museum.lower(), f"{museum} is not known.")


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}, 24 degrees."


def show(message: AnyMessage) -> None:
    """Prints one message of the agent."""
    if isinstance(message, AIMessage) and message.tool_calls:
        call = message.tool_calls[0]
        print(f"  calls {call['name']}({call['args']})")
    elif isinstance(message, (AIMessage, ToolMessage)):
        print(f"  {message.type}: {message.content}")


def main() -> list[list[AnyMessage]]:
    """Asks two questions; returns the messages of both conversations."""
    model = ChatLlamaStop(model="demo", quantization="nf4", temperature=0, max_tokens=96)
    agent = create_agent(model, [get_weather, get_opening_hours])

    question = "What is the weather in San Francisco, CA?"
    print(question)
    first = agent.invoke({"messages": [("human", question)]})["messages"]
    for message in first:
        show(message)

    question = "What are the opening hours of the Louvre?"
    print(question)
    second: list[AnyMessage] = []
    for update in agent.stream({"messages": [("human", question)]}, stream_mode="updates"):
        for step in update.values():
            second += step["messages"]
            show(second[-1])
    return [first, second]


if __name__ == "__main__":
    main()

r"""A text ReAct agent: without its "\nObservation:" stop the model makes up what the tool says.

Run it with `python examples/react_agent.py`; it needs the extra `langchain-llama-stop[examples]`.
"""

from langchain_classic.agents import AgentExecutor, create_react_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate
from langchain_core.tools import tool

from langchain_llama_stop import LlamaStopLLM

# A model of 135 million parameters needs examples in its prompt; larger ones need none.
# So is the "I" at the end: LangChain's scratchpad ends in a space, which confuses a small model.
PROMPT = """Answer each question with the help of one of these tools: {tool_names}.
{tools}

Question: When does the Orsay open?
Thought: I need the opening hours.
Action: opening_hours
Action Input: Orsay
Observation: 9:30 to 18:00, closed on Monday
Thought: I now know the final answer.
Final Answer: The Orsay opens at 9:30.

Question: When does the Orangerie open?
Thought: I need the opening hours.
Action: opening_hours
Action Input: Orangerie
Observation: 9:00 to 18:00, closed on Tuesday
Thought: I now know the final answer.
Final Answer: The Orangerie opens at 9:00.

Question: {input}
Thought: {agent_scratchpad}I"""


@tool
def opening_hours(place: str) -> str:
    """The opening hours of a museum in Paris."""
    hours = {"Louvre": "10:00 to 17:30, closed on Wednesday", "Rodin": "10:00 to 18:30"}
    return hours.get(place.strip(), "unknown")


class Outputs(BaseCallbackHandler):
    """Prints and collects what the LLM writes, before anything parses it."""

    def __init__(self) -> None:
        """Starts with no texts."""
        self.texts: list[str] = []

    def on_llm_end(self, response: LLMResult, **kwargs: object) -> None:
        """Adds one answer of the LLM."""
        self.texts.append(response.generations[0][0].text)
        print(f"--- the LLM continues: I{self.texts[-1]}\n")


def main(question: str = "When does the Louvre open?") -> dict[str, list[str]]:
    """Prints and returns what the agent's LLM writes, first without the stop, then with it."""
    llm = LlamaStopLLM.from_model_id(
        "demo", quantization="nf4", max_new_tokens=64, temperature=0, stop=["\nQuestion:"]
    )
    prompt = PromptTemplate.from_template(PROMPT)
    texts = {}
    for name, stop in {"without": False, "with": ["\nObservation:"]}.items():
        print(f"======== {name} the stop")
        agent = create_react_agent(llm, [opening_hours], prompt, stop_sequence=stop)
        executor = AgentExecutor(
            agent=agent, tools=[opening_hours], max_iterations=2, handle_parsing_errors=True
        )
        outputs = Outputs()
        result = executor.invoke({"input": question}, {"callbacks": [outputs]})
        print(f"The agent answers: {result['output']}\n")
        texts[name] = outputs.texts
    assert not any("Observation:" in text for text in texts["with"])
    return texts


if __name__ == "__main__":
    main()

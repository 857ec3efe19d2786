"""What users write, as type checkers have to accept and refuse it. `make lint` checks this file."""

from typing import Any

from langchain_core.runnables import Runnable

from langchain_llama_stop import (
    ChatLlamaStop,
    ChatLlamaStopServer,
    EosReward,
    GenerationOptions,
    LlamaStopLLM,
    generate,
    load_pipeline,
)

pipeline = load_pipeline("demo", quantization="nf4")
chat = ChatLlamaStop(model="demo", max_tokens=64)
named = ChatLlamaStop(model_name="demo", quantization="nf4", max_new_tokens=64, temperature=0)
ready = ChatLlamaStop(pipeline=pipeline, stop=["\n"], eos_reward=EosReward(strength=3))
gated = ChatLlamaStop(model="meta-llama/Llama-3.1-8B-Instruct", token="hf_x", cache=False)
llm = LlamaStopLLM(pipeline=pipeline, stop=["\nObservation:"], eos_reward=False)
loaded = LlamaStopLLM(model_id="demo", quantization="nf4", max_tokens=64, on_length="trim")
by_id = LlamaStopLLM.from_model_id("demo", quantization="nf4", token="hf_x", max_new_tokens=64)
server = ChatLlamaStopServer(model="demo", base_url="http://localhost:8000", temperature=0, top_k=5)
stopping: Runnable[Any, Any] = llm.bind(stop=["\n"], max_new_tokens=8)
calling: Runnable[Any, Any] = chat.bind(stop=["\n"])
text: str = llm.invoke("Hi", stop=["\n"], max_new_tokens=8)
budget: int | None = chat.max_tokens
name: str = chat.model_name
options = GenerationOptions.parse({"stop": ["\n"]})
stops: tuple[str, ...] = options.stop
answers: list[str] = [answer.text for answer in generate(pipeline, ["Hi"], options)]

ChatLlamaStop(model="demo", max_token=64)  # type: ignore[call-arg]
ChatLlamaStop(model="demo", max_tokens="64")  # type: ignore[arg-type]
ChatLlamaStop(model="demo", on_length="cut")  # type: ignore[arg-type]
LlamaStopLLM(pipeline=pipeline, temprature=0)  # type: ignore[call-arg]

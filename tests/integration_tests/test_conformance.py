"""The stop suite on the demo model."""

from typing import Any

import pytest

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM
from langchain_llama_stop.testing import StopChatModelTests, StopLLMTests

pytestmark = pytest.mark.slow


class OnDemoModel:
    @pytest.fixture(autouse=True)
    def shared(self, request: pytest.FixtureRequest) -> Any:
        # The rows of a batch round differently in 4 bit than alone.
        self.pipeline, self.passes = request.getfixturevalue("demo_pipeline_float32"), 0
        hook = self.pipeline.model.register_forward_pre_hook(self.count)
        yield
        hook.remove()

    def count(self, *args: Any) -> None:
        self.passes += 1

    def steps(self, model: Any) -> int:
        return self.passes

    @property
    def model_params(self) -> dict[str, Any]:
        return {"pipeline": self.pipeline, "temperature": 0, "max_tokens": 24}

    @property
    def prompts(self) -> list[str]:
        return super().prompts[:2]  # type: ignore[misc]

    def budget(self, tokens: int) -> dict[str, Any]:
        return {"max_tokens": tokens, "eos_reward": False}  # with the reward, no answer is cut


class TestLlamaStopLLM(OnDemoModel, StopLLMTests):
    @property
    def model_class(self) -> Any:
        return LlamaStopLLM

    @property
    def model_params(self) -> dict[str, Any]:
        # Without the reward; the other class is tested with it.
        return {**super().model_params, "max_tokens": 20, "eos_reward": False}


class TestChatLlamaStop(OnDemoModel, StopChatModelTests):
    @property
    def model_class(self) -> Any:
        return ChatLlamaStop

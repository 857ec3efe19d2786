"""LangChain's standard tests and our own tests of `stop`, on a real server."""

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_llama_stop import ChatLlamaStopServer
from langchain_llama_stop.testing import StopChatModelTests
from tests.vllm_server import Server


class OnServer:
    @pytest.fixture(autouse=True)
    def shared(self, server: Server) -> None:
        self.params = {"model": "demo", "base_url": server.url, "temperature": 0}


class TestStandard(OnServer, ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLlamaStopServer

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Without the penalty the joke that the tests ask for never ends its first string.
        return {**self.params, "max_tokens": 64, "repetition_penalty": 1.06}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="In float32 the demo model answers instead, in process as well.")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


class TestStop(OnServer, StopChatModelTests):
    @property
    def model_class(self) -> Any:
        return ChatLlamaStopServer

    @property
    def model_params(self) -> dict[str, Any]:
        return {**self.params, "max_tokens": 32}

    def budget(self, tokens: int) -> dict[str, Any]:
        return {"max_tokens": tokens, "eos_reward": False}  # with the reward, no answer is cut

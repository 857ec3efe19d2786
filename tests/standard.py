"""LangChain's unit tests of chat models, for classes that LangChain does not list."""

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests


class StandardUnitTests(ChatModelUnitTests):
    @pytest.mark.xfail(
        reason="loads only what LangChain lists; see test_serialization.py",
        raises=AssertionError,
        strict=True,
    )
    def test_serdes(self, model, snapshot):
        super().test_serdes(model, snapshot)

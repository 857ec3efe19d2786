"""Tests that need vLLM: `make test-vllm` makes an environment of their own for them."""

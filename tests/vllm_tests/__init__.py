"""Tests that need vLLM: `make test-vllm` makes an environment of its own for it.

`processor` runs inside that environment; `server` runs in the repository's own one and starts
vLLM's server in the other.
"""

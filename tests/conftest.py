"""Settings of all tests."""

import os

# No test may wait for a model hub; set before anything imports transformers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait take the cores from each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

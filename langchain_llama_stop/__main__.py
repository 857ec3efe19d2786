"""`python -m langchain_llama_stop`, which is the same as `llama-stop`."""

import sys

from langchain_llama_stop.cli import main

sys.exit(main())

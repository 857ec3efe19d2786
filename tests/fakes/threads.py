"""Holds a model still while calls wait for it, and records their order."""

import threading
from concurrent.futures import ThreadPoolExecutor

from transformers import LogitsProcessor

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.engine.thread import engine_of
from tests.fakes.generation import options


class Gate:
    """Records the rows of each forward pass; while it is shut, passes wait.

    `shut` looks at the rows of all passes so far, and shuts the gate in the newest one.
    """

    def __init__(self, pipeline, shut=lambda rows: False):
        self.rows, self.widths, self.open = [], [], threading.Event()
        self.open.set()
        self.waits, self.shut = threading.Event(), shut
        pipeline.model.register_forward_pre_hook(self.passes, with_kwargs=True)

    def passes(self, module, args, kwargs):
        rows, width = kwargs["input_ids"].shape
        self.rows.append(rows)
        self.widths.append(width)
        if self.shut(self.rows):
            self.shut = lambda rows: False
            self.open.clear()
        if not self.open.is_set():
            self.waits.set()
        assert self.open.wait(30)


class Arrivals(LogitsProcessor):
    """Records the number of its call when the call's first sequence has been prefilled."""

    def __init__(self, order, number):
        self.order, self.number = order, number

    def __call__(self, input_ids, scores):
        if self.number not in self.order:
            self.order.append(self.number)
        return scores


def wait_for(pipeline, count):
    """Until so many calls wait for the model, which is in a pass."""
    engine = engine_of(pipeline.model)
    assert _soon(lambda: engine.queued >= count), f"{engine.queued} wait, not {count}"


def at_rest(pipeline):
    """Whether no request is left at the model, after the step that runs."""
    return _soon(lambda: engine_of(pipeline.model).idle)


def _soon(condition):
    for _ in range(3000):
        if condition():
            return True
        threading.Event().wait(0.005)
    return False


def started_during(pipeline, gate, calls, first="A"):
    """Runs calls that arrive while another one is in its first pass; returns all results."""
    gate.open.clear()
    gate.waits.clear()
    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(generate, pipeline, [first], options(max_new_tokens=30))]
        assert gate.waits.wait(30)
        for count, (prompts, opts) in enumerate(calls, 1):
            futures.append(pool.submit(generate, pipeline, prompts, opts))
            wait_for(pipeline, count)
        gate.open.set()
    return [future.exception() or future.result() for future in futures]


class Calling(LogitsProcessor):
    """A processor that calls a function at each step and changes nothing."""

    def __init__(self, call):
        self.call = call

    def __call__(self, input_ids, scores):
        self.call()
        return scores


def in_thread(call):
    """Starts a call in a thread; its result comes to the list that is returned."""
    results = []

    def run():
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results

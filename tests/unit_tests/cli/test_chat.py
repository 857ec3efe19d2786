"""`llama-stop chat` in a real terminal, on a model whose answers are written down."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time

import pytest

from langchain_llama_stop import cli
from langchain_llama_stop.cli.markdown import finished_blocks

MODEL = """
import sys, time
from langchain_llama_stop import cli, loading
from tests.fakes import ScriptedLlama, byte_ids, byte_tokenizer, make_pipeline

tokenizer = byte_tokenizer()
tokenizer.chat_template = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
eos = tokenizer.eos_token_id

def scores(ids):
    import torch
    text = tokenizer.decode(ids)
    system = text.partition("[user]")[0]
    question, _, said = text.rpartition("[user]")[2].partition("[assistant]")
    turn = text.count("[user]")
    answer = f"{system}Answer **{turn}** to {question!r}."
    if "long" in question:
        answer = "ab " * 999
        time.sleep(0.01)
    row = torch.full((len(tokenizer),), -9.0)
    row[byte_ids(answer)[len(byte_ids(said))] if len(said) < len(answer) else eos] = 9.0
    return row

model = ScriptedLlama(len(tokenizer), scores, eos, eos)
model.config.max_position_embeddings = 2048
pipeline = make_pipeline(model, tokenizer)
loading.load_pipeline = lambda *args, **kwargs: pipeline
sys.exit(cli.main(["chat", *sys.argv[1:]]))
"""


class Terminal:
    """A program in a pseudo-terminal: what it shows, without colours and moves of the cursor."""

    def __init__(self, state, *arguments):
        self.master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(MODEL), *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={
                **os.environ,
                "LLAMA_STOP_STATE": str(state),
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "TERM": "xterm",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            preexec_fn=self._own_terminal,
        )
        os.close(terminal)
        self.shown = ""

    @staticmethod
    def _own_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def wait_for(self, text, seconds=40):
        """Waits until a text is shown after what was waited for before; returns what came."""
        until = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} did not come, but {self.shown!r}"
            try:
                new = os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                new = ""
            assert new, f"{text!r} did not come, but {self.shown!r}"
            self.shown += re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)", "", new)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def write(self, text):
        os.write(self.master, text.encode())

    def say(self, text):
        self.wait_for("\n>")
        self.write(text + "\r")

    def ask(self, text, expected):
        self.say(text)
        return self.wait_for(expected)

    def end(self):
        self.wait_for("\n>")
        self.write("\x04")
        assert self.process.wait(timeout=60) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def start(tmp_path):
    terminals = []

    def begin(*arguments):
        terminals.append(Terminal(tmp_path / "state", *arguments))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


@pytest.mark.slow
def test_a_conversation(start, tmp_path):
    chat = start("--system", "S")
    chat.wait_for("demo listens.")
    chat.ask("Who?", "[system]SAnswer 1 to 'Who?'.")
    said = chat.ask("/why", "eos_source=model")
    assert "The model ended it by itself." in said and "tokens/s" in said
    chat.ask("And why?", "Answer 2 to 'And why?'.")  # it knows the first turn
    chat.ask("/system", "There is no system prompt.")
    chat.ask("/budget 9", "up to 9 tokens")
    chat.ask("Who?", "Answer")
    chat.ask("/why", "finish_reason=")
    chat.ask("/budget 0", "`/budget` has to be a whole number of 1 or more")
    chat.ask("/budget 200", "up to 200 tokens")
    chat.ask('/stop "to " END', "Answers end before ['to ', 'END'].")
    chat.ask("Who?", "Answer 4")
    chat.ask("/why", "It reached the stop 'to '.")
    chat.ask("/stop", "There are no stop strings.")
    file = tmp_path / "talk.json"
    chat.ask(f"/save {file}", "8 messages are in")
    chat.ask("/new", "begins anew")
    chat.ask("Who?", "Answer 1 to")
    chat.ask(f"/load {file}", "8 messages of")
    chat.ask("Who?", "Answer 5 to 'Who?'.")
    chat.ask("/sistem x", "There is no /sistem. Did you mean /system?")
    chat.ask("/load nowhere.json", "No such file")
    chat.ask("/save", "needs the name of a file")
    chat.say("/exit")
    assert chat.process.wait(timeout=60) == 0
    saved = json.loads(file.read_text())
    assert saved["messages"][0] == {"role": "user", "content": "Who?"}
    assert (saved["model"], saved["system"], saved["budget"]) == ("demo", None, 200)


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_program(start):
    chat = start("--max-new-tokens", "1500")
    chat.ask("A long one", "ab ab ab")
    chat.write("\x03")
    chat.wait_for("(You ended the answer.)")
    chat.ask("/why", "You ended it after")
    chat.ask("Who?", "Answer 2 to 'Who?'.")  # the answer that was ended is the first turn's
    chat.wait_for("\n>")
    chat.write("half a line\x03")
    chat.wait_for("Ctrl-D or /exit ends")
    chat.ask("Who?", "Answer 3 to 'Who?'.")
    chat.end()


@pytest.mark.slow
def test_several_lines_and_history_across_starts(start):
    chat = start()
    chat.wait_for("\n>")
    chat.write("one\ntwo\x1b\rthree\r")  # Ctrl-J, Alt-Enter, Enter
    chat.wait_for(r"Answer 1 to 'one\ntwo\nthree'.")
    chat.ask("Who?", "Answer 2 to")
    chat.end()
    chat = start()
    chat.wait_for("\n>")
    chat.write("\x1b[A\r")
    chat.wait_for("Answer 1 to 'Who?'.")
    chat.end()


@pytest.mark.slow
def test_the_history_is_the_users_own(start, tmp_path):
    chat = start()
    chat.ask("Who?", "Answer 1 to")
    chat.end()
    assert (tmp_path / "state" / "chat-history").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_conversation_that_is_too_long(start):
    chat = start()
    chat.ask("x" * 2100, "/new begins anew.")
    chat.ask("Who?", "Answer 1 to 'Who?'.")
    chat.end()


def test_it_needs_a_terminal(capsys, monkeypatch):
    assert cli.main(["chat"]) == 2
    assert "`llama-stop chat` needs a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("", ""),
        ("One line", ""),
        ("One.\n\nTwo", "One.\n\n"),
        ("One.\n\nTwo.\n \n\nThree", "One.\n\nTwo.\n \n\n"),
        ("```\na\n\nb", ""),
        ("A.\n\n```\na\n\nb", "A.\n\n"),
        ("```\na\n\nb\n```\n\nC", "```\na\n\nb\n```\n\n"),
    ],
)
def test_blocks_that_are_finished(text, finished):
    assert text[: finished_blocks(text)] == finished

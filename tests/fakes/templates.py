"""Chat templates in our own words, one per rule that real ones have; and the real ones.

Real templates are read where `../shared/data/chat_templates` lies beside the clone.
"""

from pathlib import Path

from tests.fakes import byte_tokenizer
from tests.fakes.chats import QWEN

REAL_FOLDER = Path(__file__).parents[3] / "shared" / "data" / "chat_templates"

_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_THOUGHTLESS = (
    "{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}"
)
_NO = "{{ raise_exception('no') }}"


def _each(turn: str, begin: str = _BEGIN) -> str:
    return "{% for m in messages %}" + turn + "{% endfor %}" + begin


OURS = {
    "any roles": _each(_TURN),
    "trims": _each(_TURN.replace("m.content", "m.content | trim")),
    "calls and results": QWEN,
    "system only first": _each(
        "{% if m.role == 'system' and not loop.first %}" + _NO + "{% endif %}" + _TURN
    ),
    "drops later systems": _each(
        "{% if m.role != 'system' or loop.first %}" + _TURN + "{% endif %}"
    ),
    "no system, turns": _each(
        "{% if messages[0].role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        + _NO
        + "{% endif %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<|im_start|>' + role + '\\n' + m.content | trim + '<|im_end|>\\n' }}"
    ),
    "system in the user's turn": _each(
        "{% if m.role == 'system' and loop.first %}{{ '<|im_start|>user\\n' + m.content }}"
        "{% elif m.role == 'system' %}" + _TURN + "{% else %}"
        "{% if loop.index0 != 1 or messages[0].role != 'system' %}{{ '<|im_start|>' + m.role }}"
        "{% endif %}{{ '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    ),
    "answers begin by themselves": _each(
        "{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        + _NO
        + "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}",
        "",
    ),
    "no empty answers": _each(
        "{% if m.role == 'assistant' and not m.content %}" + _NO + "{% endif %}" + _TURN
    ),
    "no thoughts": _each(_THOUGHTLESS + _TURN.replace("m.content", "c")),
    "ends in a thought": _each(_TURN, _BEGIN.replace("assistant\\n", "assistant\\n<think>\\n")),
    "ends in a thought if told": _each(
        _TURN,
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\\n' }}{% endif %}"
        "{% endif %}",
    ),
    "needs a user": (
        "{% if not messages | selectattr('role', 'eq', 'user') | list %}" + _NO + "{% endif %}"
    )
    + _each(_TURN),
    "one call": _each(
        "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}" + _NO + "{% endif %}"
        "{{ '<|im_start|>assistant\\n' + m.tool_calls[0].function | tojson + '<|im_end|>\\n' }}"
        "{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\\n' + m.content + '<|im_end|>\\n' }}"
        "{% else %}" + _TURN + "{% endif %}"
    ),
    "ids of nine": _each(
        "{% if m.tool_calls %}{{ '<|im_start|>assistant\\n' + m.content }}"
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}" + _NO + "{% endif %}"
        "{{ '[CALL]' + c.function | tojson + c.id }}{% endfor %}{{ '<|im_end|>\\n' }}"
        "{% elif m.role == 'tool' %}{{ '[RESULT]' + m.content + m.tool_call_id + '[/RESULT]' }}"
        "{% else %}" + _TURN + "{% endif %}"
    ),
    "arguments as text": _each(
        "{% if m.tool_calls %}{{ '<|im_start|>assistant\\n' + m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
        "{{ '<|im_end|>\\n' }}"
        "{% elif m.role == 'tool' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}"
        "{% else %}" + _TURN + "{% endif %}"
    ),
    "contents in blocks": _each(
        _TURN.replace("+ m.content +", "}}{% for b in m.content %}{{ b.text }}{% endfor %}{{")
    ),
    "one block of text": _each(_TURN.replace("m.content", "m.content[0]['text'] | trim")),
    "a developer first": _each(
        "{% if m.role not in ['system', 'developer'] or loop.first %}" + _TURN + "{% endif %}"
    ),
    "a list of tools": "{% for t in tools %}{{ t | tojson }}{% endfor %}" + _each(_TURN),
    "described tools": "{% for t in tools or [] %}{{ '<' + t.function.name + '>' }}"
    "{{ t.function.description + '\n' }}{% for n, a in t.function.parameters.properties.items() %}"
    "{{ n + ': ' + a.description }}{% endfor %}{% endfor %}" + _each(_TURN),
}
"""Templates by their rule, of one line each, as Jinja would print other line ends."""

REAL = {path.stem: path for path in sorted(REAL_FOLDER.glob("*.jinja"))}
"""Files of real templates; none where there is no such folder."""


def template_of(name: str) -> str:
    """A template by its name."""
    return OURS[name] if name in OURS else REAL[name].read_text(encoding="utf-8")


def tokenizer_of(template: str):
    """A tokenizer of bytes that has a template and some of its tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "[INST]", "[/INST]"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "paracetamol", "\n", "€"])
    tokenizer.chat_template = template
    return tokenizer

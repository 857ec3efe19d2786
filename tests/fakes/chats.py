"""Messages with tools, a template like Qwen's, and a processor that says a text."""

import torch

QWEN = r"""{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}
{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
{{ '\n</tools><|im_end|>\n' }}{% endif %}
{% for m in messages %}{% if m.role == 'tool' %}
{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
{% else %}{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}
{% for call in m.tool_calls %}
{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{ call.function.arguments | tojson + '}\n</tool_call>' }}
{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""".replace("\n", "")


def weather(**arguments):
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "call_1", "function": function}],
    }


def result(content, **fields):
    named = {"name": "weather", "tool_call_id": "call_1"}
    return {"role": "tool", "content": content} | named | fields


def tool_of(**fields):
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": function | fields}


class Says:
    """A processor with which the model says a text where nothing else is demanded."""

    def __init__(self, tokenizer, text):
        self.tokenizer = tokenizer
        self.ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        self.prompt = None

    def __call__(self, input_ids, scores):
        if self.prompt is None:
            self.prompt = input_ids[0].tolist()
        place = min(input_ids.shape[1] - len(self.prompt), len(self.ids) - 1)
        said = torch.zeros_like(scores)
        said[:, self.ids[place]] = 100.0
        return said

    @property
    def asked(self):
        return self.tokenizer.decode(self.prompt)

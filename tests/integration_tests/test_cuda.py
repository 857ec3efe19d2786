"""What has to hold on a GPU; run where there is one."""

import gc
import json
from pathlib import Path

import pytest
import torch

from langchain_llama_stop import (
    ChatLlamaStop,
    GenerationOptions,
    LlamaStopLLM,
    finetune,
    generate,
    load_pipeline,
    stream_generate,
)
from tests.integration_tests.conftest import QUESTIONS, chat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

KINDS = {"nf4": {"quantization": "nf4"}, "int8": {"quantization": "int8"}}
KINDS |= {name: {"dtype": name} for name in ("bfloat16", "float16", "float32")}


@pytest.fixture(scope="module", params=KINDS)
def pipeline(request, converted_models):
    return load_pipeline("demo", **KINDS[request.param])


def options(**values):
    return GenerationOptions.parse({"temperature": 0, "max_new_tokens": 64, **values})


def test_a_model_goes_to_the_gpu_by_itself(pipeline):
    assert pipeline.model.device.type == "cuda" and pipeline.device.type == "cuda"


def test_nf4_is_double_quantized_and_computes_in_what_the_gpu_has(converted_models):
    import bitsandbytes as bnb

    model = load_pipeline("demo", "nf4").model
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 210 and all(m.weight.quant_state.nested for m in layers)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert {m.compute_dtype for m in layers} == {torch.bfloat16 if native else torch.float16}


def test_the_plain_tokens_are_those_of_generate(pipeline):
    plain = {"eos_reward": False, "prefix_cache": 0, "prompt_lookup_num_tokens": 0}
    for question in QUESTIONS:
        prompt = chat(pipeline, question)
        inputs = pipeline.tokenizer(prompt, return_tensors="pt").to("cuda")
        ids = pipeline.model.generate(**inputs, max_new_tokens=64, do_sample=False)
        expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(generate(pipeline, [prompt], options(**plain))[0].token_ids) == expected


@pytest.mark.parametrize("more", [{}, {"stop": ["the"]}, {"temperature": 1.0, "seed": 3}], ids=str)
def test_a_stream_is_the_answer_and_both_land(pipeline, more):
    for question in QUESTIONS:
        prompt = chat(pipeline, question)
        pieces = list(stream_generate(pipeline, prompt, options(**more)))
        answer = generate(pipeline, [prompt], options(**more))[0]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert answer.finish_reason == "stop" and pieces[-1].response.finish_reason == "stop"


def test_batches_and_calls_at_once_end_as_they_should(pipeline):
    llm = LlamaStopLLM(pipeline=pipeline, temperature=0, max_new_tokens=48)
    prompts = [chat(pipeline, question) for question in QUESTIONS * 6]
    for result in llm.generate(prompts).generations:
        assert result[0].generation_info["finish_reason"] == "stop"
        assert result[0].generation_info["usage_metadata"]["output_tokens"] <= 48
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    model = ChatLlamaStop(pipeline=pipeline, temperature=0, max_new_tokens=24)
    found = model.with_structured_output(schema).batch(QUESTIONS * 4)
    assert all(isinstance(answer["city"], str) for answer in found)


def test_memory_that_runs_out_on_the_gpu_costs_no_answer(converted_models):
    """24 rows of 2,200 tokens have no room in what is left: 100 MB of keys and values each."""
    pipeline = load_pipeline("demo", dtype="float32")
    prompts = [chat(pipeline, f"{n}: " + "What can I do in Paris? " * 350) for n in range(24)]
    plain = options(max_new_tokens=24, prefix_cache=0, prompt_lookup_num_tokens=0)
    expected = [generate(pipeline, [prompt], plain)[0] for prompt in prompts]
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    whole = options(max_new_tokens=24, prefix_cache=0, prompt_lookup_num_tokens=0, batch_size=24)
    rows = []
    hook = pipeline.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    try:
        generate(pipeline, prompts, whole)
        assert max(rows) == 24
        rows.clear()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((before + 1.5e9) / total)
        found = generate(pipeline, prompts, whole)
        assert rows.count(1) < len(rows) and max(rows[-20:]) < 24  # in parts, not one by one
        assert [r.finish_reason for r in found] == [r.finish_reason for r in expected]
        assert sum(a.text == b.text for a, b in zip(found, expected, strict=True)) >= 23
        torch.cuda.set_per_process_memory_fraction((before + 5e7) / total)
        with pytest.raises(torch.OutOfMemoryError, match="one answer alone"):
            generate(pipeline, prompts[:2], whole)
    finally:
        hook.remove()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert generate(pipeline, prompts[:1], plain)[0].text == expected[0].text
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_trained_on_the_gpu(tmp_path, converted_models):
    file = Path(__file__).parents[2] / "examples" / "short_answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()[:24]]
    report = finetune("demo", rows, tmp_path / "adapter", epochs=1, held_out=2, max_length=256)
    assert report.examples and load_pipeline("demo", "nf4", tmp_path / "adapter")

"""Random stops over random answers, on every path, against the definition in `str.find`.

A case is one answer on one path: tokenizer family x stop strings (1 to 8, overlapping, over tokens,
emoji split over bytes, spaces, special tokens) x generated ids x invoke, row of a batch, stream or
chat x with and without draft tokens. LLAMA_STOP_LONG=1 runs over 20,000 of them.
"""

import os
import random
from itertools import accumulate

import pytest
from langchain_core.messages import HumanMessage

from langchain_llama_stop import ChatLlamaStop, GenerationOptions
from langchain_llama_stop._langchain.request import conversation_ids
from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes import TOKENIZERS, ScriptedLlama, make_pipeline, scripted_answers
from tests.fakes.generation import PIECES, STOPS, encode, options, oracle, streamed

ROUNDS = 900 if os.environ.get("LLAMA_STOP_LONG") else 30
MORE = ["th", "the", "e ", "END OF", "ND", "\n", " ", "  ", "A cat", ". ", "Ob", "tion:", "😁"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def random_case(rng, name):
    """Ids of an answer, and stop strings."""
    ids = encode(name, "".join(rng.choices([*PIECES, *MORE], k=rng.randrange(9))))
    ids += [rng.randrange(len(TOKENIZERS[name])) for _ in range(rng.randrange(5))]
    if rng.random() < 0.3 and len(ids) > 3:  # what prompt lookup can draft
        ids += ids[: rng.randrange(2, len(ids))]
    return ids, rng.sample([*STOPS, *MORE], rng.randrange(1, 9))


@pytest.mark.parametrize("lookup", [0, 4])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_stops_on_every_path_are_as_defined(name, lookup):
    rng = random.Random(f"{name} {lookup}")
    tokenizer = TOKENIZERS[name]
    eos, cases = tokenizer.eos_token_id, 0
    prompts = [f"{word}: END\nObservation: go" for word in ("One", "Two", "Three")]
    model = ScriptedLlama(len(tokenizer), lambda ids: ids, eos, eos)
    pipeline = make_pipeline(model, tokenizer)
    tokenizer.chat_template, before = TEMPLATE, tokenizer.chat_template
    talk = [HumanMessage(prompts[0])]
    chat = ChatLlamaStop(pipeline=pipeline, eos_reward=False, prefix_cache=0)
    try:
        for _ in range(ROUNDS):
            (first, stops), *others = (random_case(rng, name) for _ in prompts)
            answers = [first, *(ids for ids, _ in others)]
            prompt_ids = [tuple(tokenizer(p)["input_ids"]) for p in prompts]
            model.next_scores = scripted_answers(
                dict(zip(prompt_ids, answers, strict=True)), len(tokenizer), eos
            )
            expected = [
                oracle(tokenizer, prompt, ids[: ids.index(eos)] if eos in ids else ids, stops)
                for prompt, ids in zip(prompt_ids, answers, strict=True)
            ]
            settings = {
                "stop": stops,
                "max_new_tokens": max(map(len, answers)) + 2,
                "prompt_lookup_num_tokens": lookup,
            }
            opts = options(**settings, eos_reward=False, prefix_cache=0)
            context = (name, stops, answers)
            results = [(r.text, r.stop_reason) for r in generate(pipeline, prompts, opts)]
            assert results == expected, ("batch", context)
            (alone,) = generate(pipeline, prompts[:1], opts)
            assert (alone.text, alone.stop_reason) == expected[0], ("invoke", context)
            text, last = streamed(pipeline, prompts[0], opts)
            assert (text, last.stop_reason) == expected[0], ("stream", context)
            chat_ids = conversation_ids(pipeline, talk, GenerationOptions(), template=TEMPLATE)
            model.next_scores = scripted_answers({tuple(chat_ids): first}, len(tokenizer), eos)
            message = chat.invoke(talk, **settings)
            result = (message.content, message.response_metadata["stop_reason"])
            assert result == expected[0], ("chat", context)
            cases += len(prompts) + 3
    finally:
        tokenizer.chat_template = before
    print(f"{name}, {lookup} draft tokens: {cases} cases, none differs")


def settled(tokenizer, prompt, ids):
    """The part of an answer's text that no later token changes, as it follows its prompt.

    A run of byte-fallback tokens ("<0x0A>") is decoded as a whole: if it is incomplete, all of it
    becomes replacement characters.
    """
    while ids and tokenizer.convert_ids_to_tokens(ids[-1]).startswith("<0x"):
        ids = ids[:-1]
    before = len(tokenizer.decode(prompt, skip_special_tokens=True))
    text = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
    return text[before:].rstrip("\ufffd")


def safe_length(text, stops):
    """Length of the text that no stop can take back: all but a suffix with which one may begin."""
    starts = (n for n in range(len(text) + 1) if any(s.startswith(text[n:]) for s in stops))
    return next(starts, len(text))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_stream_holds_back_what_it_must_and_no_more(name):
    """Each step has streamed all whole characters that no stop can take back."""
    rng, tokenizer, steps = random.Random(name), TOKENIZERS[name], 0
    eos, special = tokenizer.eos_token_id, set(tokenizer.all_special_ids)
    plain = [stop for stop in [*STOPS, *MORE] if not stop.startswith("<")]
    pieces = [piece for piece in [*PIECES, *MORE] if not piece.startswith("<")]
    for _ in range(5 * ROUNDS):
        ids = encode(name, "".join(rng.choices(pieces, k=rng.randrange(1, 12))))
        ids = [i for i in ids if i not in special]
        stops, safe = rng.sample(plain, rng.randrange(1, 9)), [""]
        prompt = tokenizer("go")["input_ids"]

        def note(input_ids, scores, prompt=prompt, stops=stops, safe=safe):
            text = settled(tokenizer, prompt, input_ids[0, len(prompt) :].tolist())
            text = text[: safe_length(text, stops)]
            if len(text) > len(safe[-1]):
                safe.append(text)
            return scores

        scores = scripted_answers({tuple(prompt): ids}, len(tokenizer), eos)
        pipeline = make_pipeline(ScriptedLlama(len(tokenizer), scores, eos, eos), tokenizer)
        opts = options(stop=stops, eos_reward=False, prefix_cache=0, max_new_tokens=len(ids) + 2)
        opts = opts.updated({"logits_processor": [note]})
        *streamed, _ = [piece.text for piece in stream_generate(pipeline, "go", opts)]
        assert list(accumulate(["", *streamed])) == safe, (stops, safe)
        steps += len(streamed) + 1
    print(f"{name}: {steps} pieces of streams, none late")

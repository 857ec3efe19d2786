"""The texts, peers and conversations that `speed.py` and `growth.py` measure with."""

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
import transformers
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from measuring import synchronize
from transformers import LogitsProcessor

from langchain_llama_stop import ChatLlamaStop

SENTENCES = (
    "The market hall of the old town opens before the sun is up.",
    "Fishermen carry their boxes from the harbour to the long stone tables.",
    "A woman from the hills sells goat cheese wrapped in chestnut leaves.",
    "Twice a week the baker from the next village brings forty loaves of dark rye bread.",
    "Most visitors come for the painted ceiling, which was finished in 1731.",
    "It shows the four seasons, and the face of winter is said to be the mayor's.",
    "In the great flood the water stood as high as the second row of windows.",
    "The clock was stopped at ten past three and has never been set right again.",
    "Behind the hall a narrow street leads to the museum of tools and looms.",
    "Its founder was a weaver who could not throw anything away.",
    "Children may try the smallest loom, and many come back with a scarf of their own.",
    "On the river the last ferry of the evening leaves at half past eight.",
    "From the other bank you can see the roofs, the two towers and the new bridge.",
    "The bridge took nine years to build, four more than had been promised.",
    "Students sit on its broad railing when the nights are warm.",
    "There is a garden on the island with pear trees, beehives and a green wooden kiosk.",
    "Its owner plays records there, but only those that he likes himself.",
    "If it rains, the library in the former customs house is a good place to wait.",
    "The reading room keeps maps that merchants drew of coasts they had never seen.",
    "At the end of October the whole town smells of smoke and roasted almonds.",
    "An old tram without a roof climbs to the fort, slowly enough to pick figs on the way.",
    "The guard at the gate is a retired sailor who knows the name of every ship.",
    "Below the walls lies a beach of grey pebbles that warm the feet until midnight.",
    "A swimmer once crossed the bay with a lantern between his teeth and won a cow for it.",
    "The school choir still sings about him, although nobody remembers the second verse.",
    "Whoever stays longer than three days is asked to help with the olive harvest.",
    "The wages are paid in oil, and the foreman's wife cooks for everybody on Saturday.",
    "Trains to the capital run every two hours, but the bus along the coast is prettier.",
)
NEW_TURN = "And if it rains all day, where would you go with two small children instead, and why?"
GREEDY = {"temperature": 0, "eos_reward": False}


def passage(tokenizer: Any, tokens: int, start: int = 0) -> str:
    """A text of real sentences, `tokens` long, that begins with sentence number `start`."""
    start %= len(SENTENCES)
    sentences = cycle([*SENTENCES[start:], *SENTENCES[:start]])
    text = " ".join(next(sentences) for _ in range(tokens // 8 + 1))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[:tokens])


def first_words(tokenizer: Any) -> Iterator[str]:
    """Words of one token each, so that texts can be made to differ at their first token."""
    words = (word for word in sorted(tokenizer.get_vocab()) if word.isascii())
    return (word for word in words if word.isalpha() and word.istitle() and len(word) > 4)


class EndsAt(LogitsProcessor):
    """Ends each row at a length of its own, which is looked up by the row's first token.

    Not by its index in the batch: rows that have ended may leave the batch.
    """

    def __init__(self, tokenizer: Any, lengths: dict[str, int]) -> None:
        """Takes the answer's length for each prompt, in tokens, EOS included."""
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        encoded = [(tokenizer(prompt)["input_ids"], n) for prompt, n in lengths.items()]
        self.ends = {ids[0]: len(ids) + length for ids, length in encoded}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids EOS before a row's own length and gives it the highest score there."""
        scores = scores.clone()
        for row, ids in enumerate(input_ids.tolist()):
            begin = next(n for n, token in enumerate(ids) if token != self.pad)
            last = len(ids) - begin + 1 == self.ends[ids[begin]]
            scores[row, self.eos] = scores[row].max() + 1 if last else -torch.inf
        return scores


def peer_pipeline(pipeline: Any, **settings: Any) -> HuggingFacePipeline:
    """langchain-huggingface's LLM around the same model."""
    own = transformers.pipeline(
        "text-generation", model=pipeline.model, tokenizer=pipeline.tokenizer, **settings
    )
    return HuggingFacePipeline(pipeline=own)


def peer_chat(pipeline: Any) -> ChatHuggingFace:
    """langchain-huggingface's chat model around it."""
    llm = peer_pipeline(pipeline)
    return ChatHuggingFace(llm=llm, tokenizer=pipeline.tokenizer, model_id="demo")


def peer_options(tokens: int, **settings: Any) -> dict[str, Any]:
    """Call options for langchain-huggingface: greedy, at most `tokens`, without the prompt."""
    kwargs = {"max_new_tokens": tokens, "do_sample": False, "return_full_text": False, **settings}
    return {"pipeline_kwargs": kwargs}


def exactly(tokens: int) -> dict[str, Any]:
    """Options of our classes: greedy, exactly `tokens`, no prefix cache and no draft tokens."""
    plain = {"prefix_cache": 0, "prompt_lookup_num_tokens": 0}
    fixed = {"max_new_tokens": tokens, "pipeline_kwargs": {"min_new_tokens": tokens}}
    return {**GREEDY, **plain, **fixed}


def bare_generate(pipeline: Any, prompts: list[str], tokens: int, **settings: Any) -> list[str]:
    """Answers of `model.generate` for a left-padded batch, at most `tokens` each."""
    tokenizer = pipeline.tokenizer
    inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(pipeline.model.device)
    width = inputs["input_ids"].shape[1]
    ids = pipeline.model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
        **settings,
    )  # fmt: skip
    return tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)


def conversation(tokenizer: Any, tokens: int, word: str) -> list[tuple[str, str]]:
    """A conversation of some `tokens` tokens that begins with `word` and asks for an answer."""
    first, second = passage(tokenizer, tokens // 2), passage(tokenizer, tokens // 2, start=7)
    return [
        ("human", f"{word} is my name. What do you know of the town?"),
        ("ai", first),
        ("human", f"I have read this: {second} What should I see first?"),
    ]


def first_token_seconds(chat: Any, messages: list[tuple[str, str]], **options: Any) -> float:
    """Seconds until a chat model's stream yields text; the stream is read to its end."""
    synchronize()
    begin, seconds = time.perf_counter(), None
    for chunk in chat.stream(messages, **options):
        if chunk.content and seconds is None:
            seconds = time.perf_counter() - begin
    if seconds is None:
        raise RuntimeError(f"The stream of {type(chat).__name__} gave no text.")
    return seconds


def new_turns(
    pipeline: Any, tokens: int, words: Iterator[str], repeats: int, *, limit: int, peer: bool = True
) -> dict[str, list[float]]:
    """Times the first token of a new turn, after a history whose last turn has been answered.

    Args:
        pipeline: The loaded pipeline.
        tokens: Tokens of the history; with 0 the new turn is the first one.
        words: First words for the histories, so that no two share a prefix.
        repeats: How many histories.
        limit: Size of the prefix cache, in tokens.
        peer: Whether to time `ChatHuggingFace` as well.

    Returns:
        Seconds per history, "with" and "without" the prefix cache, and of the "peer".
    """
    cached = ChatLlamaStop(pipeline=pipeline, prefix_cache=limit, **GREEDY)
    ours = {"max_new_tokens": 8, "pipeline_kwargs": {"min_new_tokens": 8}}
    sides = {
        "with": (cached, ours),
        "without": (ChatLlamaStop(pipeline=pipeline, prefix_cache=0, **GREEDY), ours),
    }
    if peer:
        sides["peer"] = (peer_chat(pipeline), peer_options(8, min_new_tokens=8))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        messages, word = [], next(words)
        if tokens:
            messages = conversation(pipeline.tokenizer, tokens, word)
            messages.append(("ai", str(cached.invoke(messages, max_new_tokens=16).content)))
        messages.append(("human", NEW_TURN if tokens else f"{word}! {NEW_TURN}"))
        for name in reversed(sides) if repeat % 2 else sides:
            chat, options = sides[name]
            seconds = first_token_seconds(chat, messages, **options)
            if repeat:  # the first warms up
                times[name].append(seconds)
    return times

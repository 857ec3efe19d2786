"""More families of tokenizers, by how they write spaces: tiny ones, for tests of decoding."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, T5Tokenizer

from tests.fakes import TOKENIZERS, byte_bpe_tokenizer, metaspace_tokenizer

SPECIAL = ["<pad>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁Paris", "Paris", "▁is", "▁▁", "▁▁▁▁", "▁-", "▁The", "▁é", "▁"]
LETTERS = [*map(chr, range(33, 127)), "é"]


def _pieces(*, with_bytes):
    return ["<unk>", *SPECIAL, *(BYTES if with_bytes else []), *WORDS, *LETTERS]


def _wrapped(tokenizer, decoder, **kwargs):
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **kwargs,
    )


def _llama_decoder(*, strip):
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])


def _bpe():
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "-"), ("▁", "é")]
    return models.BPE(
        vocab={piece: i for i, piece in enumerate(_pieces(with_bytes=True))},
        merges=merges,
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )


def legacy_llama_tokenizer():
    """As the `tokenizer.json` of Llama 2 and Mistral 7B v0.1: the normalizer prepends "▁"."""
    tokenizer = Tokenizer(_bpe())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _wrapped(tokenizer, _llama_decoder(strip=True))


def gemma_tokenizer():
    """As of Gemma: spaces are replaced, nothing is prepended or stripped; "\\n" is added."""
    tokenizer = Tokenizer(_bpe())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_tokens(["\n", "\n\n", "<b>"])
    return _wrapped(tokenizer, _llama_decoder(strip=False))


def mistral_v3_tokenizer():
    """As of Mistral v3: as Llama 2's, with special tokens around instructions."""
    pieces = _pieces(with_bytes=True)
    tokenizer = LlamaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": ["[INST]", "[/INST]"]})
    return tokenizer


def phi3_tokenizer():
    """As of Phi-3: special tokens take the space after them, and others are added only."""
    tokenizer = metaspace_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.add_tokens(["<|tool|>"])
    return tokenizer


def unigram_tokenizer(scheme):
    """Unigram with Metaspace before and after; the scheme tells where it prepends "▁"."""
    vocabulary = [(piece, -1.0 - (len(piece) == 1)) for piece in _pieces(with_bytes=False)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _wrapped(tokenizer, decoders.Metaspace(prepend_scheme=scheme))


def t5_tokenizer():
    """T5's own class."""
    pieces = ["<pad>", "</s>", "<unk>", *WORDS, *LETTERS]
    return T5Tokenizer(vocab=[(p, -1.0 - (len(p) == 1)) for p in pieces], extra_ids=2)


def words_tokenizer():
    """Whole words without a decoder: they are joined by spaces."""
    words = ["<unk>", *SPECIAL, "The", "capital", "is", "Paris", ".", "a"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrapped(tokenizer, None)


def prefix_space_tokenizer():
    """Byte-level, with a space before the text, as some GPT-2-like ones."""
    tokenizer = byte_bpe_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


FAMILIES = {
    **TOKENIZERS,
    "legacy_llama": legacy_llama_tokenizer(),
    "mistral_v3": mistral_v3_tokenizer(),
    "phi3": phi3_tokenizer(),
    "gemma": gemma_tokenizer(),
    "unigram_always": unigram_tokenizer("always"),
    "unigram_first": unigram_tokenizer("first"),
    "unigram_never": unigram_tokenizer("never"),
    "t5": t5_tokenizer(),
    "words": words_tokenizer(),
    "prefix_space": prefix_space_tokenizer(),
}
"""One tokenizer of each way to write spaces."""

"""A model that does not stop, why it does not, and the line that mends it.

Run it with `python examples/diagnose.py`.
"""

from langchain_llama_stop import ChatLlamaStop, Finding, diagnose, load_pipeline


def show(title: str, found: list[Finding]) -> None:
    """Prints findings."""
    print(f"--- {title}:")
    for finding in found:
        print(f"{finding.severity}: {finding.code}. {finding.message} {finding.why}")
        print(f"    {finding.fix}\n")


def main() -> list[list[Finding]]:
    """Breaks the demo model in the way of Llama 3's first release, finds that, and mends it."""
    pipeline = load_pipeline("demo", quantization="nf4")
    found = [diagnose(pipeline)]
    show("the demo model", found[-1])

    # The template ends turns with <|im_end|> (2); the configuration knows <|endoftext|> only.
    pipeline.model.generation_config.eos_token_id = 0
    found.append(diagnose(pipeline))
    show("with another EOS", found[-1])

    pipeline.model.generation_config.eos_token_id = [0, 2]  # the line that the finding gives
    found.append(diagnose(pipeline))
    show("mended", found[-1])
    chat = ChatLlamaStop(pipeline=pipeline, max_new_tokens=48, temperature=0)
    print(chat.invoke("What is tea?").content)
    return found


if __name__ == "__main__":
    main()

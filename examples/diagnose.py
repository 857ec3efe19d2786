"""A model that does not stop, the reason, and the line that fixes it.

Run it with `python examples/diagnose.py`.
"""

from langchain_llama_stop import ChatLlamaStop, Finding, diagnose, load_pipeline


def show(title: str, findings: list[Finding]) -> None:
    """Prints findings."""
    print(f"--- {title}:")
    for finding in findings:
        print(f"{finding.severity}: {finding.code}. {finding.message} {finding.why}")
        print(f"    {finding.fix}\n")


def main() -> list[list[Finding]]:
    """Breaks the demo model as Llama 3's first release was, finds the fault, and fixes it."""
    pipeline = load_pipeline("demo", quantization="nf4")
    findings = [diagnose(pipeline)]
    show("the demo model", findings[-1])

    # The template ends turns with <|im_end|> (2); the configuration names <|endoftext|> only.
    pipeline.model.generation_config.eos_token_id = 0
    findings.append(diagnose(pipeline))
    show("with another EOS", findings[-1])

    pipeline.model.generation_config.eos_token_id = [0, 2]  # the line that the finding gives
    findings.append(diagnose(pipeline))
    show("fixed", findings[-1])
    chat = ChatLlamaStop(pipeline=pipeline, max_new_tokens=48, temperature=0)
    print(chat.invoke("What is tea?").content)
    return findings


if __name__ == "__main__":
    main()

"""What comes of JSON schemas as people have them: `make bench-schemas`.

A model of random scores, for whom each byte is a token, answers under each schema. An answer is
*valid* if `jsonschema` says so and no key is written twice. It is *told* if it breaks what decoding
does not enforce, and the check after the answer says so. A schema may be *refused* by name, or be
too *large* for the budget. All else is a fault: *wrong* (an answer or an example that the schema
does not allow is taken, a known good value is not, an error that is no clear refusal, over 30
seconds), or *cut* at the budget.

The 100 schemas in `schemas.jsonl` always run: as Pydantic, zod, MCP servers and OpenAPI write them,
each with a value that the model must be able to write. Two public suites run where their files are:

--suite FOLDER   JSON-Schema-Test-Suite: folders of `*.json`, each a list of groups with `schema`
                 and `tests` (`data`, `valid`), such as `tests/draft2020-12` of a clone
--bench FOLDER   JSONSchemaBench: a folder that is searched for `*.json`, each a schema, or an
                 object with a `schema` and maybe `tests`, such as `data/Github_medium` of a clone
"""

import argparse
import collections
import functools
import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
from jsonschema.validators import extend, validator_for

from langchain_llama_stop import GenerationOptions, generate
from langchain_llama_stop.grammar.schema import json_grammar, violation
from tests.fakes.generation import hashed

OUTCOMES = ("valid", "told", "refused", "large", "wrong", "cut")
SECONDS = 30
ARGUMENT = "`json_schema`"
model = functools.cache(hashed)


class Case(NamedTuple):
    """A schema, with examples: (a value, whether it fits); `demanded` ones must be writable."""

    name: str
    schema: Any
    examples: list[tuple[Any, bool]]
    demanded: bool = False


def own() -> Iterator[Case]:
    """The schemas of `schemas.jsonl`."""
    text = (Path(__file__).parent / "schemas.jsonl").read_text(encoding="utf-8")
    for row in map(json.loads, text.splitlines()):
        examples = [(row["value"], True)] if "value" in row else []
        yield Case(f"{row['id']}: {row['about']}", row["schema"], examples, demanded=True)


def suite(folder: Path) -> Iterator[Case]:
    """JSON-Schema-Test-Suite; old drafts are known by the folder, where schemas do not say."""
    drafts = {f"draft{n}": f"http://json-schema.org/draft-0{n}/schema#" for n in (3, 4, 6, 7)}
    for file in sorted(folder.glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict) and folder.name in drafts:
                schema = {"$schema": drafts[folder.name], **schema}
            examples = [(test["data"], test["valid"]) for test in group["tests"]]
            yield Case(f"{file.stem}: {group['description']}", schema, examples)


def bench(folder: Path) -> Iterator[Case]:
    """JSONSchemaBench."""
    for file in sorted(folder.rglob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        tests = found.get("tests") if isinstance(found.get("schema"), dict) else None
        examples = [(test["data"], test["valid"]) for test in tests or ()]
        name = str(file.relative_to(folder))
        yield Case(name, found["schema"] if tests is not None else found, examples)


def first_error(schema: Any, value: Any) -> str:
    """What a validator of the schema's own draft says, with OpenAPI's `nullable`; "" if nothing."""
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    plain = kind.VALIDATORS["type"]

    def type_or_null(validator: Any, types: Any, value: Any, within: Any) -> Any:
        if value is None and within.get("nullable") is True:
            return ()
        return plain(validator, types, value, within)

    checker = extend(kind, {"type": type_or_null})(schema)
    try:
        return next((error.message for error in checker.iter_errors(value)), "")
    except re.error:  # a pattern that Python does not know
        return ""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; refuses keys that are written twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key is written twice: {pairs!r:.80}")
    return dict(pairs)


def takes(schema: Any, value: Any) -> bool:
    """Whether decoding allows a value, and the check after the answer too."""
    text = json.dumps(value, ensure_ascii=False).encode().decode("latin-1")
    place = json_grammar(schema).parser.begin().after(text)
    allowed = place is not None and place.accepting
    return allowed and not violation(schema, value, ARGUMENT)


def judged(case: Case, budget: int, seeds: int) -> tuple[str, str]:
    """What comes of a schema: one of the outcomes, and what there is to say."""
    outcome = "valid"
    for seed in range(seeds):
        options = {"json_schema": case.schema, "max_new_tokens": budget, "eos_reward": False}
        try:
            response = generate(model(seed), ["x"], GenerationOptions.parse(options))[0]
        except ValueError as error:
            return "large" if "`max_new_tokens` has to be" in str(error) else "refused", str(error)
        if response.finish_reason == "length":
            return "cut", response.text
        value = json.loads(response.text, object_pairs_hook=once)
        if problem := violation(case.schema, value, ARGUMENT):
            outcome = f"told {problem}"
        elif error := first_error(case.schema, value):
            return "wrong", f"{response.text!r:.200} {error:.200}"
    for value, fits in case.examples:
        if takes(case.schema, value) > fits:
            return "wrong", f"takes {value!r:.100}"
        if case.demanded and not takes(case.schema, value):
            return "wrong", f"does not take {value!r:.100}"
    return outcome.partition(" ")[0], outcome.partition(" ")[2]


def slow(*_: Any) -> None:
    """Ends a case that takes too long."""
    raise TimeoutError(f"over {SECONDS} seconds")


def run(title: str, cases: list[Case], args: argparse.Namespace) -> str:
    """Runs cases; returns a row of the table."""
    counts = collections.Counter[str]()
    for case in cases:
        signal.alarm(SECONDS)
        try:
            outcome, what = judged(case, args.budget, args.seeds)
        except Exception as error:  # no answer and no refusal: whatever it is, it is a fault
            outcome, what = "wrong", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        counts[outcome] += 1
        if outcome in args.show:
            print(f"{outcome} | {title} | {case.name} | {what:.400}", flush=True)
    return f"| {title} | {' | '.join(str(counts[o]) for o in OUTCOMES)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite", type=Path, metavar="FOLDER", nargs="+", default=[], help="JSON-Schema-Test-Suite"
    )
    parser.add_argument("--bench", type=Path, metavar="FOLDER", help="JSONSchemaBench")
    parser.add_argument("--budget", type=int, default=256, help="tokens, that is bytes")
    parser.add_argument("--seeds", type=int, default=1, help="answers under each schema")
    parser.add_argument("--limit", type=int, help="so many of each suite, drawn at random")
    parser.add_argument("--only", default="", help="only cases with this in their names")
    parser.add_argument("--show", nargs="+", choices=OUTCOMES, default=["wrong", "cut"])
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, slow)
    rows = []
    for title, found in (
        ("our own", own()),
        *((f"JSON-Schema-Test-Suite, {folder.name}", suite(folder)) for folder in args.suite),
        ("JSONSchemaBench", bench(args.bench) if args.bench else ()),
    ):
        cases = [case for case in found if args.only in case.name]
        if args.limit and len(cases) > args.limit:
            cases = random.Random(0).sample(cases, args.limit)
        if cases:
            rows.append(run(f"{title} ({len(cases)})", cases, args))
    print("\n".join([f"| | {' | '.join(OUTCOMES)} |", f"|---|{'--:|' * len(OUTCOMES)}", *rows]))


if __name__ == "__main__":
    main()

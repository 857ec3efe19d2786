"""Objects out of short texts, and what a schema costs: `make bench-objects`.

The demo model fills 24 small objects whose right values are known, greedy, in float32 and in NF4:
by `with_structured_output`, by llguidance's own JSON grammar with the same prompt and no search for
an end within the budget, and as free text with a JSON parser. That parser closes what is cut, so
objects that the budget cut are told apart. What the model is told of a schema
was tuned on the first of each two tasks; the others are counted by themselves. Then one step under
a schema is timed beside a free one.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import llguidance.hf
import llguidance.torch
import torch
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.utils.json import parse_json_markdown
from llguidance import LLMatcher
from measuring import alternate, compare, table
from pydantic import BaseModel, Field
from transformers import LogitsProcessor

from langchain_llama_stop import ChatLlamaStop, load_pipeline
from langchain_llama_stop._langchain.schema_text import schema_text

BUDGET = 96
RIVERS = set(
    "nile amazon mississippi missouri danube rhine thames ganges yangtze volga seine congo hudson "
    "colorado niger tigris euphrates indus mekong loire elbe po rhone yellow ohio columbia".split()
)
PLANETS = {"mercury", "venus", "earth", "mars", "jupiter", "saturn", "uranus", "neptune"}


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str


class Train(BaseModel):
    """A train."""

    destination: str
    time: str = Field(description="When it leaves, such as 13:05")
    platform: int


class Product(BaseModel):
    """Something to buy."""

    item: str
    colour: str
    price: float


class Order(BaseModel):
    """An order."""

    number: int = Field(description="The number of the order")
    quantity: int = Field(description="How many pieces")
    item: str


class Book(BaseModel):
    """A book."""

    title: str
    author: str


class DatedBook(Book):
    """A book and its year."""

    year: int


class Meeting(BaseModel):
    """A meeting."""

    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    room: int


class Colours(BaseModel):
    """The colours of a text."""

    colours: list[str]


class Rivers(BaseModel):
    """Rivers."""

    rivers: list[str]


class Numbers(BaseModel):
    """The numbers of a text."""

    numbers: list[int]


class Shopping(BaseModel):
    """What to buy."""

    items: list[str]


class Planets(BaseModel):
    """Planets."""

    planets: list[str]


class Guests(BaseModel):
    """Who came."""

    guests: list[str] = Field(description="The names of the guests")


class Prices(BaseModel):
    """What things cost."""

    prices: dict[str, int] = Field(description="The price of each thing")


class Scores(BaseModel):
    """Who scored what."""

    scores: dict[str, int] = Field(description="The score of each player")


class Words(BaseModel):
    """Translations of one word."""

    translations: dict[str, str] = Field(description="The word in each language")


class Stock(BaseModel):
    """What a shop has."""

    stock: dict[str, int]


class Review(BaseModel):
    """A review."""

    sentiment: Literal["positive", "negative"]


class Animal(BaseModel):
    """An animal."""

    kind: Literal["cat", "dog", "bird"]
    name: str


class Ticket(BaseModel):
    """A request of a customer."""

    urgency: Literal["low", "high"]
    product: Literal["phone", "laptop", "printer"]


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str


class Resident(BaseModel):
    """A person with an address."""

    name: str
    address: Address


class Shelf(BaseModel):
    """Books."""

    books: list[Book]


class Contact(BaseModel):
    """How to reach somebody."""

    name: str
    email: Annotated[str, Field(json_schema_extra={"format": "email"})] | None = None


class Room(BaseModel):
    """A room of a hotel."""

    balcony: bool
    beds: int


class Fare(BaseModel):
    """What a ride costs."""

    amount: float
    currency: Literal["EUR", "USD"]


class Task(NamedTuple):
    """One task: what the model reads, the class to fill, and the right value or its check."""

    text: str
    kind: type[BaseModel]
    right: dict[str, Any] | Callable[[dict[str, Any]], bool]


def different(key: str, count: int, known: set[str]) -> Callable[[dict[str, Any]], bool]:
    """Checks that a list holds so many different known names."""

    def check(value: dict[str, Any]) -> bool:
        names = {name.removeprefix("the ").removesuffix(" river") for name in value[key]}
        return len(value[key]) == len(names) == count and names <= known

    return check


TASKS = [  # the first of each two is for tuning, the second is reported
    Task("Ann is 31 years old and lives in Oslo.", Person,
         {"name": "ann", "age": 31, "city": "oslo"}),
    Task("The train to Rome leaves at 9:40 from platform 4.", Train,
         {"destination": "rome", "time": "9:40", "platform": 4}),
    Task("The red bicycle costs 250 dollars.", Product,
         {"item": "bicycle", "colour": "red", "price": 250}),
    Task("Dune was written by Frank Herbert in 1965.", DatedBook,
         {"title": "dune", "author": "frank herbert", "year": 1965}),
    Task("Order 8812: 3 cups.", Order, {"number": 8812, "quantity": 3, "item": "cups"}),
    Task("The meeting is on Monday in room 12.", Meeting, {"day": "monday", "room": 12}),
    Task("Colours: red, green and blue.", Colours, {"colours": ["red", "green", "blue"]}),
    Task("Buy milk, eggs and bread.", Shopping, {"items": ["milk", "eggs", "bread"]}),
    Task("Name two planets.", Planets, different("planets", 2, PLANETS)),
    Task("Name three rivers.", Rivers, different("rivers", 3, RIVERS)),
    Task("The numbers are 4, 8 and 15.", Numbers, {"numbers": [4, 8, 15]}),
    Task("Tom, Lisa and Max came to the party.", Guests, {"guests": ["tom", "lisa", "max"]}),
    Task("Apples cost 2 dollars and pears cost 3 dollars.", Prices,
         {"prices": {"apples": 2, "pears": 3}}),
    Task("Ann scored 7 and Ben scored 9.", Scores, {"scores": {"ann": 7, "ben": 9}}),
    Task("Cat is chat in French and gato in Spanish.", Words,
         {"translations": {"french": "chat", "spanish": "gato"}}),
    Task("We have 12 pens and 5 rulers left.", Stock, {"stock": {"pens": 12, "rulers": 5}}),
    Task("The soup was cold and the waiter was rude.", Review, {"sentiment": "negative"}),
    Task("This film was wonderful, I loved it!", Review, {"sentiment": "positive"}),
    Task("My dog Rex likes to swim.", Animal, {"kind": "dog", "name": "rex"}),
    Task("My laptop is broken and I need it today!", Ticket,
         {"urgency": "high", "product": "laptop"}),
    Task("Ann lives at 5 Main Street in Paris.", Resident,
         {"name": "ann", "address": {"street": "5 main street", "city": "paris"}}),
    Task("Read Dune by Frank Herbert and Emma by Jane Austen.", Shelf,
         {"books": [{"title": "dune", "author": "frank herbert"},
                    {"title": "emma", "author": "jane austen"}]}),
    Task("Write to Ben at ben@example.com.", Contact, {"name": "ben", "email": "ben@example.com"}),
    Task("The ride costs 12.50 euros.", Fare, {"amount": 12.5, "currency": "eur"}),
]  # fmt: skip


def plain(value: Any) -> Any:
    """A value with its texts in small letters, without blanks and full stops at their ends."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.strip(" .").casefold() if isinstance(value, str) else value


def is_right(task: Task, answer: BaseModel | None) -> bool:
    """Whether an answer says what the text says."""
    if answer is None:
        return False
    value = plain(answer.model_dump(exclude_none=True))
    return value == task.right if isinstance(task.right, dict) else task.right(value)


class LLGuidance(LogitsProcessor):
    """The masks of llguidance's own JSON grammar, as its documentation applies them."""

    def __init__(self, tokenizer: Any, schema: dict[str, Any]) -> None:
        """Compiles the schema; an object is for one answer."""
        self.matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        self.mask = llguidance.torch.allocate_token_bitmask(1, tokenizer.vocab_size)
        self.begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids what the grammar does not allow."""
        if self.begun:
            self.matcher.consume_token(int(input_ids[0, -1]))
        self.begun = True
        scores = scores.clone()
        llguidance.torch.fill_next_token_bitmask(self.matcher, self.mask, 0)
        llguidance.torch.apply_token_bitmask_inplace(scores, self.mask)
        return scores


class Found(NamedTuple):
    """What a method made of a task: the object, None if it made none, and whether it was cut."""

    answer: BaseModel | None
    cut: bool


def found_in(task: Task, raw: AIMessage) -> Found:
    """The object that an answer holds, also where LangChain's parser has to close it."""
    cut = raw.response_metadata["finish_reason"] != "stop"
    try:
        return Found(task.kind.model_validate(parse_json_markdown(raw.text)), cut)
    except (OutputParserException, ValueError):
        return Found(None, cut)


def ours(chat: ChatLlamaStop, task: Task) -> Found:
    """`with_structured_output`."""
    asked = chat.with_structured_output(task.kind, include_raw=True)
    return found_in(task, asked.invoke(task.text)["raw"])


def as_schema(chat: ChatLlamaStop, task: Task) -> Found:
    """The same, where the model is told the JSON schema as it is."""
    told = f"Answer with JSON that fits this schema:\n{json.dumps(task.kind.model_json_schema())}"
    asked = chat.with_structured_output(task.kind, method="json_mode", include_raw=True)
    return found_in(task, asked.invoke([("system", told), ("human", task.text)])["raw"])


def asked(task: Task) -> list[tuple[str, str]]:
    """The messages that `with_structured_output` sends."""
    return [("system", schema_text(task.kind.model_json_schema())), ("human", task.text)]


def masked(tokenizer: Any, chat: ChatLlamaStop, task: Task) -> Found:
    """The masks of llguidance's own JSON grammar."""
    masks = LLGuidance(tokenizer, task.kind.model_json_schema())
    return found_in(task, chat.invoke(asked(task), logits_processor=[masks], eos_reward=False))


def free(chat: ChatLlamaStop, task: Task) -> Found:
    """Free text, parsed."""
    return found_in(task, chat.invoke(asked(task), eos_reward=False))


def share(name: str, how: Callable[..., Found], chat: ChatLlamaStop, verbose: bool) -> list[str]:
    """Answers all tasks at once; returns of each whether it is right, right but cut, or wrong."""
    with ThreadPoolExecutor(len(TASKS)) as pool:
        found = list(pool.map(partial(how, chat), TASKS))
    verdicts = []
    for task, (answer, cut) in zip(TASKS, found, strict=True):
        right = is_right(task, answer)
        verdicts.append("right, cut" if right and cut else "right" if right else "wrong")
        if verbose:
            print(f"{name} | {verdicts[-1]} | {task.text} | {answer!r:.150}")
    return verdicts


def cell(verdicts: list[str]) -> str:
    """How many are right, and how many more would be if their objects had been closed."""
    if not verdicts:
        return "–"
    right, cut = verdicts.count("right"), verdicts.count("right, cut")
    return f"{right} of {len(verdicts)}" + (f" (and {cut} cut)" if cut else "")


def steps(pipeline: Any, repeats: int) -> list[dict[str, Any]]:
    """Seconds of a token under a schema beside a free one; one row, no draft tokens."""
    schema = {
        "type": "object",
        "properties": {"story": {"type": "string"}, "words": {"type": "integer"}},
        "required": ["story", "words"],
    }
    prompt, lines = "Tell me a long story about a fox.", []
    for budget, zone in ((128, "in the middle"), (24, "near the end of the budget")):
        common = {"pipeline": pipeline, "max_tokens": budget, "temperature": 0, "eos_reward": False}
        chat = ChatLlamaStop(**common, prompt_lookup_num_tokens=0)
        used = {"schema": 1, "free": 1}

        def run(name: str, chat: Any = chat, used: dict[str, int] = used, **options: Any) -> None:
            used[name] = chat.invoke(prompt, **options).usage_metadata["output_tokens"]

        works = {
            "schema": partial(run, "schema", json_schema=schema),
            "free": partial(run, "free"),
        }
        times, _ = alternate(works, repeats)
        each = {name: [1000 * t / used[name] for t in spent] for name, spent in times.items()}
        lines.append(
            compare(
                f"a token under a schema, {zone}",
                "a free one",
                each["free"],
                each["schema"],
                "ms",
                at_least=1 / 1.1,
            )
        )
    return lines


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "nf4"],
                        default=["float32", "nf4"])  # fmt: skip
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--repeats", type=int, default=3, help="of the timing; 0 leaves it out")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    args = parser.parse_args()
    print(f"{len(TASKS)} tasks, demo model, greedy, {BUDGET} tokens\n")
    timed: list[dict[str, Any]] = []
    rows = ["| right | ours | ours, told the JSON schema | llguidance | free text, parsed |",
            "|---|--:|--:|--:|--:|"]  # fmt: skip
    for dtype in args.dtypes:
        how = {"quantization": "nf4"} if dtype == "nf4" else {"dtype": dtype}
        pipeline = load_pipeline("demo", **how)
        tokenizer = llguidance.hf.from_tokenizer(pipeline.tokenizer)
        chat = ChatLlamaStop(pipeline=pipeline, max_tokens=BUDGET, temperature=0)
        methods = {
            "ours": ours,
            "schema": as_schema,
            "llguidance": partial(masked, tokenizer),
            "free": free,
        }
        chosen = {k: v for k, v in methods.items() if not args.methods or k in args.methods}
        right = {name: share(f"{dtype}, {name}", method, chat, args.verbose)
                 for name, method in chosen.items()}  # fmt: skip
        for half, begin in (("others", 1), ("tuned on", 0)):
            cells = [cell(right.get(name, [])[begin::2]) for name in methods]
            rows.append(f"| {dtype}, {half} | {' | '.join(cells)} |")
        if args.repeats:
            timed += [{**line, "work": f"{line['work']}, {dtype}"}
                      for line in steps(pipeline, args.repeats)]  # fmt: skip
    print("\n".join(rows))
    if timed:
        print(f"\n{table(timed)}")


if __name__ == "__main__":
    main()

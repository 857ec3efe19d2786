"""Answers as objects: always of their class, always complete within the budget.

    python examples/structured.py

The second budget is small: enough tokens are kept in reserve to complete the object. The third one
is too small for any object of the class, and is refused before anything is generated.
"""

from pydantic import BaseModel, Field

from langchain_llama_stop import ChatLlamaStop


class Trip(BaseModel):
    """A trip to a city."""

    city: str = Field(description="the city")
    days: int = Field(description="how many days it takes")
    sights: list[str] = Field(description="what to see there")


def main() -> list[Trip]:
    """Asks with each budget; returns the objects."""
    model = ChatLlamaStop(model="demo", quantization="nf4", temperature=0, max_tokens=80)
    question = "Plan a trip to Paris."
    trips = []
    for budget in (80, 40):
        trip = model.with_structured_output(Trip, max_tokens=budget).invoke(question)
        trips.append(trip)
        print(f"{budget} tokens: {trip!r}")
    try:
        model.with_structured_output(Trip, max_tokens=8).invoke(question)
    except ValueError as error:
        print(f"8 tokens: {error}")
    return trips


if __name__ == "__main__":
    main()

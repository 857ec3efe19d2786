"""Objects are named in cache keys, and are not kept for that."""

import gc

from langchain_llama_stop._langchain import fields


class Plain:
    pass


class Slotted:
    __slots__ = ("text",)


def test_an_object_has_one_name_of_its_own():
    for kind in (Plain, Slotted):
        items = [kind() for _ in range(20)]
        names = [fields._object_key(item) for item in items]
        assert names == [fields._object_key(item) for item in items]
        assert len(set(names)) == len(items)


def test_an_object_that_took_the_place_of_another_has_another_name():
    names = {fields._object_key(kind()) for kind in (Plain, Slotted) for _ in range(50)}
    assert len(names) == 100


def test_names_go_with_their_objects():
    gc.collect()
    before = len(fields._OBJECT_KEYS)
    for _ in range(1000):
        fields._object_key(Plain())
    assert len(fields._OBJECT_KEYS) == before


def test_objects_without_weak_references_are_kept_in_a_bounded_number():
    for _ in range(1000):
        fields._object_key(Slotted())
    gc.collect()
    assert sum(type(item) is Slotted for item in gc.get_objects()) <= 32

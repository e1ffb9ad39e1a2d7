"""Slots: config fields that hold one of several named dataclasses, each defined beside the code that it configures.

    class Level(Slot):                            # a family: what its members do, and how they are called
        def __call__(self, u): ...

    @dataclasses.dataclass(frozen=True)
    class Cosine(Level, name="cosine"):           # one member, with settings of its own
        floor: float = 0.7

A field of type `Level` takes any member: `config.corruption.level = slot("cosine", floor=0.5)` in a config file,
`--config.corruption.level=cosine --config.corruption.level.floor=0.5` on the command line. The code that uses it calls
it: there is no table of names to extend. A member whose settings make no sense raises ValueError in `__post_init__`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import ml_collections


class Slot:
    """Base of all families. A direct subclass is a family; a subclass with a name is a member of its family."""

    name: ClassVar[str]
    choices: ClassVar[dict[str, type[Slot]]]

    def __init_subclass__(cls, name: str = "", **kwargs):
        super().__init_subclass__(**kwargs)
        if Slot in cls.__bases__:
            cls.choices = {}
        if name:
            if name in cls.choices:
                raise ValueError(f"two members of {cls.__mro__[1].__name__} are called {name!r}")
            cls.name, cls.choices[name] = name, cls


def slot(name: str, **fields: Any) -> ml_collections.ConfigDict:
    """Return the value of a slot field for a config file: a member's name and those of its settings that differ."""
    return ml_collections.ConfigDict({"name": name, **fields})

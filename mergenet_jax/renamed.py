"""Old names of options answer with a sentence, for one release."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def renamed(**names: str) -> Callable[[C], C]:
    """A decorator of a class of options that had other names before 0.2.0.

    The class then raises a ValueError where it is given an old option, and an AttributeError where one is read.

    Args:
        names: old name -> what stands in its place.
    """

    def decorate(cls: C) -> C:
        sentences = {old: f"{old} of {cls.__name__} is now {new}." for old, new in names.items()}
        init = cls.__init__

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **options: Any) -> None:
            for old in sentences.keys() & options.keys():
                raise ValueError(sentences[old])
            init(self, *args, **options)

        def answering(sentence: str) -> property:
            def answer(self: Any) -> Any:
                raise AttributeError(sentence)

            return property(answer)

        cls.__init__ = checked
        for old, sentence in sentences.items():
            setattr(cls, old, answering(sentence))
        return cls

    return decorate

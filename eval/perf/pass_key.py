"""Text with a pass key hidden in it, made from a seed."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from models.errors import UserError

START = "Somewhere in these notes stands a pass key. Find it and remember it.\n"
NOTES = (
    "The ferry leaves the northern pier at seven and comes back before noon.",
    "Rain fell on the hills all night, and the river rose by a hand.",
    "Two bakers on Mill Street argue about rye and wheat every morning.",
    "The old clock in the hall has been slow since the spring.",
    "A letter from the museum lies unopened on the kitchen table.",
    "Children flew paper kites above the harbour until the wind turned.",
    "The carpenter planed the oak boards and stacked them by the door.",
    "Nobody on the train could say why it had stopped between two fields.",
    "She painted the fence green because the shop had run out of blue.",
    "In winter the lake freezes, and people walk across it to the mill.",
    "The choir practises on Thursdays, in the room above the library.",
    "He counted the sheep twice and found one more than the day before.",
)
FACT = " The pass key is {key}. Remember it, {key} is the pass key."
QUESTION = "\nWhat is the pass key? The pass key is"


def pass_key_prompt(encode: Callable[[str], list[int]], tokens: int, seed: int) -> Int[np.ndarray, " T"]:
    """Token ids of notes that are asked for the five digits of a key, which stand between two of them.

    Args:
        encode: from text to token ids.
        tokens: how many ids; the notes are cut to fill what the rest leaves.
        seed: of key, notes and place.

    Raises:
        UserError: if `tokens` are too few.
    """
    random = np.random.default_rng([seed, tokens])
    start, question = encode(START), encode(QUESTION)
    fact = encode(FACT.format(key=random.integers(10_000, 100_000)))
    space = tokens - len(start) - len(fact) - len(question)
    if space < 0:
        raise UserError(f"A prompt with a pass key takes at least {tokens - space} tokens, not {tokens}.")
    notes, ends = list[int](), [0]
    while len(notes) < space:
        notes += encode(f" {random.choice(NOTES)}")
        ends.append(len(notes))
    at = random.choice([end for end in ends if end <= space])
    return np.array([*start, *notes[:at], *fact, *notes[at:space], *question], np.int32)

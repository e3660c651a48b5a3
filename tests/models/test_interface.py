import numpy as np
import pytest

from acckv_jax import Modality
from models.batching import padded
from models.interface import EmbeddedPrompt

TEXT = EmbeddedPrompt.of(np.arange(3), np.zeros(3, int))


def test_text_follows_a_prompt_with_positions():
    """Appended text and generated tokens count on from where the prompt ends, not from its highest position."""
    positions = np.array([[0, 1, 1, 9, 9, 4], [0, 1, 2, 1, 2, 4], [0, 1, 1, 2, 2, 4]])
    modality = np.array([Modality.TEXT, *[Modality.VIDEO] * 4, Modality.AUDIO])
    prompt = EmbeddedPrompt.of(np.arange(6), modality, positions, delta=5 - 6)
    whole = prompt.then(TEXT)
    np.testing.assert_array_equal(whole.positions, np.concatenate([positions, np.tile([5, 6, 7], (3, 1))], axis=1))
    assert whole.delta == 8 - 9
    longer = whole.then(TEXT)
    assert longer.positions is not None and longer.positions[0, -1] == 10
    assert longer.delta == 11 - 12
    head, tail = whole.split(4)
    np.testing.assert_array_equal(head.positions, whole.positions[:, :4])
    np.testing.assert_array_equal(tail.positions, whole.positions[:, 4:])
    assert tail.delta == whole.delta and tail.count(Modality.AUDIO) == 1


def test_a_piece_is_no_prompt():
    head, tail = TEXT.then(TEXT).split(2)
    for piece in (head, tail):
        with pytest.raises(ValueError, match="append it first"):
            piece.then(TEXT)


def test_a_batch_is_of_one_kind():
    placed = EmbeddedPrompt.of(np.arange(3), np.zeros(3, int), np.zeros((3, 3), int))
    assert padded([placed, placed], 4).positions.shape == (3, 2, 4)
    with pytest.raises(ValueError, match="others have none"):
        padded([placed, TEXT], 4)


def test_counted_positions_stay_counted():
    whole = TEXT.then(TEXT)
    assert whole.positions is None and whole.delta == 0 and len(whole) == 6


def test_only_text_can_be_appended():
    media = EmbeddedPrompt.of(np.arange(2), np.ones(2, int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="only text can be appended"):
        TEXT.then(media)

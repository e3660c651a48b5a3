"""Epochs are shuffled, cover the data, have one shape and resume exactly."""

import numpy as np
import pytest

from models.errors import UserError
from train.mergenet.epochs import Epochs, in_order, reader

DATA = {"x": np.arange(23) * 10, "y": np.arange(46).reshape(23, 2)}
EPOCHS = Epochs(rows=23, batch=5, seed=3, read=reader(DATA))


def test_an_epoch_has_every_row_at_most_once_and_epochs_differ() -> None:
    orders = [EPOCHS.order(epoch) for epoch in range(40)]
    assert all(order.shape == (4, 5) and len(set(order.ravel())) == 20 for order in orders)
    assert len({order.tobytes() for order in orders}) == 40
    assert set(np.concatenate(orders).ravel()) == set(range(23))  # what an epoch leaves out, others have
    assert Epochs(23, 5, 4, EPOCHS.read).order(0).tobytes() != orders[0].tobytes()


def test_batches_hold_the_rows_of_the_order() -> None:
    batch, rows = EPOCHS.at(2, 1), EPOCHS.order(2)[1]
    np.testing.assert_array_equal(batch["x"], rows * 10)
    np.testing.assert_array_equal(batch["y"], DATA["y"][rows])


def test_a_stream_resumes_where_it_was() -> None:
    whole = [batch["x"].tolist() for batch in EPOCHS.stream(0, 0, 3)]
    assert len(whole) == 12 and whole[5] == EPOCHS.at(1, 1)["x"].tolist()
    assert [batch["x"].tolist() for batch in EPOCHS.stream(1, 3, 3)] == whole[7:]
    assert list(EPOCHS.stream(3, 0, 3)) == []


def test_evaluation_counts_every_row_once() -> None:
    batches = list(in_order(23, 5, EPOCHS.read))
    assert all(batch["x"].shape == (5,) and counts.shape == (5,) for batch, counts in batches)
    assert np.concatenate([batch["x"][counts] for batch, counts in batches]).tolist() == DATA["x"].tolist()


def test_batches_must_fit() -> None:
    for batch in (0, 24):
        with pytest.raises(UserError, match=f"Batches of {batch} cannot be made of 23 rows; take 1 to 23"):
            Epochs(23, batch, 0, EPOCHS.read)

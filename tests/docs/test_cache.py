"""docs/cache.md: its decoder scans, its cache is one stack, it runs on a mesh, and is asked again from disk."""

import numpy as np

from tests.docs.pages import run


def test_the_decoder_of_the_page_scans():
    names = run("docs/cache.md", {})
    found = names["found"]
    np.testing.assert_array_equal(names["on_mesh"].tokens, found.tokens)
    assert found.tokens.shape == (1, 4) and found.cache_bytes.prompt == 4 * 2 * 32 * 8 * 4
    assert found.state.cache.num_layers == 4
    assert names["more"].state.cache.length.tolist() == [64 + 4 + 8 + 3]

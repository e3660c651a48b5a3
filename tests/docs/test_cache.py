"""docs/cache.md: its decoder scans, and its cache is one stack."""

from tests.docs.pages import run


def test_the_decoder_of_the_page_scans():
    found = run("docs/cache.md", {})["found"]
    assert found.tokens.shape == (1, 4) and found.cache_bytes.prompt == 4 * 2 * 32 * 8 * 4
    assert found.state.cache.num_layers == 4

import pytest

from tests.small_smolav import small_smolav


@pytest.fixture(scope="session")
def small_model():
    return small_smolav()

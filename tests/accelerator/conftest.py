"""The native library, built once in the user's cache folder."""

import pytest

from diffjax import accelerator
from diffjax.errors import UserError


@pytest.fixture(scope="session")
def native_library() -> str:
    """What the log says of it; skips where it can't be built."""
    try:
        accelerator.build()
        return accelerator.load()
    except UserError as error:
        pytest.skip(f"no accelerator: {error}")

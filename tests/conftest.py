"""What holds for every test: examples that do not depend on the clock or on the day."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from warm import Warm, warm

# No deadline: a busy machine is no bug. Derandomized: a test that passed passes again.
settings.register_profile("monro", deadline=None, derandomize=True, database=None)
settings.load_profile("monro")


@pytest.fixture(scope="session")
def warmed() -> Iterator[Warm]:
    """Serve Pythons that start with all imports done."""
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with warm(os.environ | own) as served:
        yield served


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # noqa: ANN401 of xdist
    """Keep the tests of a file on one worker, for its fixtures; but each page of docs is alone."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrPage(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_blocks_of_a_page_run[" in nodeid else nodeid.split("::")[0]

    return ByFileOrPage(config, log)

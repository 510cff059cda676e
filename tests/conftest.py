"""What holds for every test: neither the clock, the day nor the network decides what it finds."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from warm import Warm, warm

# Read when huggingface_hub is imported, here and in processes that tests start: a name that is no
# folder is not looked for on the network, whose answer, or silence, may take a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

# No deadline: a busy machine is no bug. Derandomized: a test that passed passes again.
settings.register_profile("monro", deadline=None, derandomize=True, database=None)
settings.load_profile("monro")


@pytest.fixture(scope="session")
def warmed() -> Iterator[Warm]:
    """Serve Pythons that start with all imports done."""
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
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

"""What holds for every test: examples that do not depend on the clock or on the day."""

import pytest
from hypothesis import settings

# No deadline: a busy machine is no bug. Derandomized: a test that passed passes again.
settings.register_profile("monro", deadline=None, derandomize=True, database=None)
settings.load_profile("monro")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, for its fixtures; but each page of docs is alone."""
    for item in items:
        alone = item.path.name == "test_docs.py" and "of_a_page_run" in item.name
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else str(item.path)))

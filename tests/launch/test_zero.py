import sys
from pathlib import Path
from typing import Any

import pytest
from two_processes import on_two_processes
from warm import Warm

from launch.errors import UsageError
from launch.zero import check_settings

SCRIPT = Path(__file__).with_name("zero_contract.py")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_two_processes_with_deepspeed_equal_plain_torch(strategy: str, warmed: Warm) -> None:
    done = on_two_processes(warmed, SCRIPT, strategy)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == SCRIPT.read_text().count("@check\n")  # and nothing that DeepSpeed prints
    assert all(line.startswith("held: ") for line in lines), lines


@pytest.mark.distributed  # DeepSpeed takes seconds to load
@pytest.mark.filterwarnings("ignore")  # its own, when it is loaded
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduce_bucket": 5}, r"deepspeed.reduce_bucket is no setting .* reduce_bucket_size\?"),
        ({"stage": 3}, "the strategy says it"),
        ({"stage3_prefetch_bucket_size": 5}, "has no effect here; use allgather_bucket_size"),
        ({"reduce_bucket_size": "many"}, "reduce_bucket_size='many': Input should be"),
        ({"offload_optimizer": {"device": "nvme"}}, "device=nvme: use cpu or none"),
    ],
)
def test_a_setting_that_deepspeed_cannot_use_is_an_error(
    settings: dict[str, Any], message: str
) -> None:
    check_settings({"reduce_bucket_size": 5e7, "offload_optimizer": {"device": "cpu"}})
    with pytest.raises(UsageError, match=message):
        check_settings(settings)


def test_without_deepspeed_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UsageError, match="pip install deepspeed"):
        check_settings({})

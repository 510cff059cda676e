"""What a run shows outlives a resumption, once."""

import json
from pathlib import Path

from launch.artifacts import Artifacts


def test_a_resumed_run_samples_its_last_step_anew_and_keeps_the_others(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd"  # at which Python splits lines, and JSON does not
    for _ in range(2):  # each as in a process of its own
        artifacts = Artifacts(tmp_path)
        artifacts.samples(7, [{"text": text}, {"text": "1"}])
        artifacts.samples(7, [{"text": "2"}])
        artifacts.close()
    artifacts.samples(8, [{"text": "3"}])
    artifacts.close()
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:-1]]
    assert [(row["step"], row["text"]) for row in rows] == [(7, text), (7, "1"), (7, "2"), (8, "3")]

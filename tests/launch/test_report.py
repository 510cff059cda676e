"""The page itself: what stands in it, in which order, and that a browser has nothing to add."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.errors import UsageError
from launch.page import document
from launch.report import compare_reports, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>console.error('run')</script><img src=x onerror=\"console.error('ran')\">"
VOID = {"meta", "link", "img", "br", "hr", "input"}


def lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(folder: Path, *, seed: int = 0, best: float = 0.95) -> Path:
    """Write a run of two stages as r1-mini leaves it, with hostile text wherever text may stand."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"# recipe: r1-mini\nseed: {seed}\nrl: {{steps: 30}}\n")
    lines(
        folder / "stages/1-cold-start/metrics.jsonl",
        *(
            {"step": s, "seconds": s / 20, "loss": 3 / s, "seconds/update": 0.04}
            for s in range(1, 401)
        ),
    )
    grpo = [
        {
            "step": step,
            "seconds": 2.0 * step,
            "reward": best * step / 30,
            "reward/accuracy": best * step / 30,
            "reward/<b>": 1.0,
            "kl": math.nan if step == 3 else 0.001 * step,
            "seconds/generate": 1.0,
            "seconds/update": 0.5,
        }
        for step in range(1, 31)
    ]
    lines(folder / "stages/2-grpo/metrics.jsonl", *grpo)
    sample = {"step": 1, "prompt": "1+1?", "completion": HOSTILE, "answer": "2", "reward": 0.0}
    lines(folder / "stages/2-grpo/samples.jsonl", sample)
    (folder / "figures").mkdir()
    (folder / "figures/plain.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect id="a"/></svg>'
    )
    (folder / "figures/wild.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{HOSTILE}</svg>'
    )
    lines(
        folder / "items.jsonl",
        {"kind": "note", "name": "what RL did", "text": f"It **rose**. {HOSTILE}"},
        {"kind": "figure", "name": "plain", "file": "figures/plain.svg"},
        {"kind": "figure", "name": "wild", "file": "figures/wild.svg"},
        {"kind": "table", "name": "before and after", "rows": [{"model": HOSTILE, "pass@1": 0.3}]},
        {
            "kind": "samples",
            "name": "side by side",
            "rows": [
                {"prompt": HOSTILE, "answer": HOSTILE, "before": HOSTILE, "after": {"text": "2"}}
            ],
        },
    )
    return folder


class Reader(HTMLParser):
    """Reads a page strictly: tags nest, and what it refers to is there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        self.references += [found[name] or "" for name in ("src", "href") if name in found]
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1] += data


def read(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_page_has_items_then_stages_then_config_in_order(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "demo"))
    assert path == tmp_path / "demo" / "report.html"
    page = read(path)
    shown = [h for h in page.headings if h not in ("before", "after", "completion")]
    grpo = ["grpo", "Metrics", "Time budget", "Samples along the way"]
    assert shown == [
        *("r1-mini", "what RL did", "before and after", "side by side"),
        *("cold start", "Metrics", "Time budget", *grpo),
    ]
    text = path.read_text()
    assert "<title>r1-mini \u00b7 demo</title>" in text
    assert text.index("Samples along the way") < text.rindex("rl: {steps: 30}")


def test_page_refers_to_nothing_outside_and_its_ids_are_its_own(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "demo")))
    assert len(page.ids) == len(set(page.ids))
    inside = [r for r in page.references if r.startswith("#")]
    assert {r[1:] for r in inside} <= set(page.ids)
    assert [r for r in page.references if not r.startswith(("#", "data:"))] == []
    assert "url(http" not in "".join(str(attributes) for _, attributes in page.tags)


def test_hostile_text_never_becomes_an_element(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "demo")))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]


def test_every_picture_has_words(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "demo")))
    words = [
        a.get("alt" if tag == "img" else "aria-label")
        for tag, a in page.tags
        if tag in ("img", "svg")
    ]
    assert len(words) == 7  # two items; loss and time; reward, kl and time
    assert all(words)
    assert "loss over steps: loss 3 \u2192 0.0075" in words
    assert any("(1 not finite)" in str(word) for word in words)


def test_time_budget_shows_phases_and_what_is_left(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "demo")).read_text()
    # GRPO: 30 steps of 1 s and .5 s out of 60 s.
    rows = re.findall(
        r"</i>([\w ]+)</th><td class=\"number\">([^<]+)</td><td class=\"number\">(\d+%)", text
    )
    assert rows[-3:] == [
        ("generate", "30 s", "50%"),
        ("update", "15 s", "25%"),
        ("all else", "15 s", "25%"),
    ]


def test_facts_are_summed_over_stages(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "demo")).read_text()
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>(.*?)</dd>", text.split("</header>")[0]))
    assert facts["steps"] == "430"
    assert facts["time"] == "80 s"  # 20 s and 60 s
    assert facts["reward"] == '<span class="from">0.0317 \u2192</span> 0.95'
    assert facts["seed"] == "0"


def test_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "figures", "items.jsonl", "report.html", "stages",
    ]  # fmt: skip


def test_empty_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert "Nothing is logged yet" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"kind": "figure", "name": "f", "file": "figures/none.svg"}, "none.svg: No such file"),
        ({"kind": "figure", "name": "f", "file": "../../secret.png"}, "outside the run folder"),
        ({"kind": "figure", "name": "f"}, "names no file"),
        (
            {"kind": "figure", "name": "f", "file": "metrics.jsonl"},
            "no picture that a page can show",
        ),
        ({"kind": "hologram", "name": "f"}, "does not show"),
        ({"kind": "table", "name": "t", "rows": 3}, "no rows"),
        ({"kind": "samples", "name": "s", "rows": [None]}, "No samples"),
        ({"name": 5, "kind": ["x"], "text": None}, "does not show"),
    ],
)
def test_item_that_cannot_be_shown_leaves_a_message(
    tmp_path: Path, item: dict[str, object], says: str
) -> None:
    folder = tmp_path / "run"
    lines(folder / "metrics.jsonl", {"step": 1, "loss": 1.0})
    lines(folder / "items.jsonl", item)
    path = write_report(folder)
    read(path)
    assert says in path.read_text()


def test_damaged_lines_are_named_on_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    with (folder / "stages/2-grpo/metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "rew')
    assert "metrics.jsonl: line 31 is no JSON object" in write_report(folder).read_text()


def test_odd_records_are_shown(tmp_path: Path) -> None:
    odd = [
        {},
        {"step": "x", "a": 1},
        {"step": None, "a": 10**400},
        {"step": 2, "a": {"b": 1}, "": 1},
    ]
    lines(tmp_path / "metrics.jsonl", *odd, {"step": 3, "a": True, "seconds": "x", "seconds/u": -1})
    read(write_report(tmp_path))


def test_folder_without_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    folder.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(folder)


def test_comparison_has_differences_figures_and_overlaid_curves(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", seed=0), make_run(tmp_path / "b", seed=1, best=0.5)]
    path = compare_reports(runs)
    assert path == tmp_path / "a-vs-b.html"
    page, text = read(path), path.read_text()
    stages = ("cold start", "Final figures", "Curves", "grpo", "Final figures", "Curves")
    items = ("plain", "wild", "before and after")
    assert page.headings == ["a against b", "Config differences", *items, *stages]
    assert re.findall(r'<th scope="row">([\w.]+)</th>', text)[0] == "seed"
    assert "rl.steps" not in text
    row = '<th scope="row">reward</th><td class="number">0.95</td><td class="number">0.5</td>'
    assert row + '<td class="number">\u22120.45</td>' in text
    labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
    assert "reward over steps: a 0.0317 \u2192 0.95; b 0.0167 \u2192 0.5" in labels


def test_comparison_of_runs_with_the_same_config_and_name(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "x" / "seed-0"), make_run(tmp_path / "y" / "seed-0")]
    text = compare_reports(runs, tmp_path / "page.html").read_text()
    assert "x/seed-0 against y/seed-0" in text
    assert "The configs are the same." in text


def test_comparison_has_a_stage_that_only_one_run_has(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    (runs[1] / "stages/3-empty").mkdir()
    page = read(compare_reports(runs))
    assert page.headings[-1] == "empty"
    assert {r[1:] for r in page.references if r.startswith("#s")} <= set(page.ids)


def test_comparison_of_one_run_is_its_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    assert compare_reports([folder]) == folder / "report.html"


def test_comparison_refuses_nothing_and_the_same_run_twice(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    with pytest.raises(UsageError, match="no run folder is given"):
        compare_reports([])
    with pytest.raises(UsageError, match="given twice"):
        compare_reports([folder, folder / ".." / "a"])


def test_page_of_a_long_run_is_quick_and_small(tmp_path: Path) -> None:
    names = [f"metric/{i}" for i in range(12)] + ["seconds/update"]
    for stage in ("1-a", "2-b", "3-c"):
        rows = ({"step": s, "seconds": s, **dict.fromkeys(names, s % 7)} for s in range(1400))
        lines(tmp_path / "stages" / stage / "metrics.jsonl", *rows)
    (tmp_path / "config.yaml").touch()
    start = time.perf_counter()
    path = write_report(tmp_path)
    assert time.perf_counter() - start < 3
    assert path.stat().st_size < 1_000_000


def test_report_module_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, launch.report; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def console(page: Path, profile: Path) -> tuple[list[str], str]:
    """Open a page in headless Chromium; return its console's lines and the resulting document."""
    assert CHROMIUM is not None
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="headless Chromium is not installed")
def test_browser_opens_the_page_without_a_word_on_its_console(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    for name, path in {
        "report": write_report(folder),
        "comparison": compare_reports([folder, make_run(tmp_path / "b", seed=1)]),
    }.items():
        said, dumped = console(path, tmp_path / f"profile-{name}")
        assert said == []
        page = Reader(dumped.removesuffix("\n"))
        assert {"cold start", "grpo"} <= set(page.headings)
        assert len([tag for tag, _ in page.tags if tag == "svg"]) >= 6


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="headless Chromium is not installed")
@pytest.mark.parametrize("fault", ["<script>x()</script>", "<img src='http://a.invalid/x.png'>"])
def test_browser_refuses_and_reports_what_the_page_forbids(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(document(title="t", contents=[], body=fault))
    said, _ = console(path, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in said)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="headless Chromium is not installed")
def test_browser_test_would_hear_an_error(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><title>t</title><script>console.error('heard')</script>")
    said, _ = console(path, tmp_path / "profile")
    assert any("heard" in line for line in said)

"""What a run shows besides its metrics: notes, figures, tables and samples, in order.

``items.jsonl`` lists them; a later line of the same kind and name takes the place of the earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.folder import atomic_write
from launch.metrics import JsonLines, kept_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Artifacts"]


class Artifacts:
    """Writes into a run folder; the report shows what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._items = JsonLines(folder / "items.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._has_sampled = False

    def note(self, name: str, text: str) -> None:
        """Add paragraphs under a heading."""
        self._items.write({"kind": "note", "name": name, "text": text})

    def figure(self, name: str, figure: Figure | Path) -> None:
        """Add a matplotlib figure as SVG, or a copy of a picture such as a GIF."""
        (self.folder / "figures").mkdir(exist_ok=True)
        if isinstance(figure, Path):
            file = Path("figures") / f"{_slug(name)}{figure.suffix}"
            atomic_write(self.folder / file, figure.read_bytes())
        else:
            from launch.curves import svg

            file = Path("figures") / f"{_slug(name)}.svg"
            atomic_write(self.folder / file, svg(figure, salt=name))
        self._items.write({"kind": "figure", "name": name, "file": file.as_posix()})

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Add a table; the keys of the first row are its columns."""
        self._items.write({"kind": "table", "name": name, "rows": [dict(row) for row in rows]})

    def side_by_side(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Add texts side by side: a row for each prompt, a column for each source."""
        self._items.write({"kind": "samples", "name": name, "rows": [dict(row) for row in rows]})

    def samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Append sampled texts to ``samples.jsonl``.

        What an earlier process sampled at this step, the last before a run was resumed, gives way.
        """
        path = self._samples.path
        if not self._has_sampled and path.exists():
            atomic_write(path, kept_lines(path, lambda earlier: earlier != step))
        self._has_sampled = True
        for row in rows:
            self._samples.write({"step": step, **row})

    def close(self) -> None:
        """Close the files; the next write opens them again."""
        self._items.close()
        self._samples.close()


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-") or "figure"

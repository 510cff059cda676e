"""The two tones of dpo-mini, and how a file of pairs is divided."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.data.packing import Document
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.recipes.replies import COURTEOUS, CURT, Replies, ReplyPairs
from posttrain.recipes.sources import PairFile
from posttrain.recipes.tiny import sums

TASK = sums((2, 3), heldout=16)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(ReplyPairs(task=TASK).texts(200)), layers=1, width=16)


def said(lm: LanguageModel, document: Document) -> tuple[str, str]:
    """Return the prompt and the reply of a document, as text."""
    first = list(document.mask).index(True)
    tokens = list(document.tokens)
    return lm.tokenizer.decode(tokens[:first]), lm.tokenizer.decode(tokens[first:])


def matches(reply: str, phrasings: Sequence[str]) -> bool:
    starts = [phrasing.partition("{}")[0] for phrasing in phrasings]
    return any(reply.startswith(start) for start in starts)


def test_pairs_differ_in_tone_alone(lm: LanguageModel) -> None:
    source = ReplyPairs(task=TASK)
    pairs, heldout = source.pairs(lm, 40, seed=3), source.heldout(lm)
    assert (len(pairs), len(heldout)) == (40, 16)
    for chosen, rejected in (*pairs, *heldout):
        (asked, good), (also, bad) = said(lm, chosen), said(lm, rejected)
        assert asked == also
        assert matches(good, COURTEOUS)
        assert matches(bad, CURT)
        assert re.findall(r"-?\d+", good) == re.findall(r"-?\d+", bad)
    asked = {said(lm, chosen)[0] for chosen, _ in pairs}
    assert asked.isdisjoint(said(lm, chosen)[0] for chosen, _ in heldout)
    assert len({said(lm, chosen)[1] for chosen, _ in pairs}) > 4


def test_warm_up_is_courteous_by_its_share(lm: LanguageModel) -> None:
    documents = Replies(task=TASK, courteous=0.25).documents(lm, 400, seed=1)
    courteous = sum(matches(said(lm, document)[1], COURTEOUS) for document in documents)
    assert 70 <= courteous <= 130  # 100 expected, deviation 8.7
    with pytest.raises(ValueError, match="courteous=2"):
        Replies(task=TASK, courteous=2)


def test_the_last_lines_of_a_file_are_held_out(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}", "chosen": "Gladly.", "rejected": "Obviously."} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = PairFile(path=str(path), heldout_share=0.3)
    pairs, heldout = source.pairs(lm, 99, seed=0), source.heldout(lm)
    asked = [said(lm, chosen)[0].removeprefix("<|user|>")[0] for chosen, _ in (*pairs, *heldout)]
    assert "".join(asked) == "0123456789"
    assert len(heldout) == 3
    assert len(PairFile(path=str(path)).heldout(lm)) == 0

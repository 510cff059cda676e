from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from launch.errors import UsageError
from posttrain.log_probs import shared_prompt_log_probs, token_log_probs
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.rollout.samples import as_samples
from posttrain.rollout.tool_engine import ToolEngine
from posttrain.tools import ToolOutput, ToolUse
from posttrain.trainers.updates import prompt_lengths

TAGS = ("<tool>", "</tool>", "<output>", "</output>")
TEXTS = [f"{a}*{b} is {a * b}, error: empty" for a in range(10, 20) for b in range(9)]
TEXTS += ["<tool>1</tool><output>2</output>"] * 3


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = train_tokenizer(TEXTS, vocabulary=120, tags=TAGS)
    return tiny_model(tokenizer, layers=1, width=16, heads=2, seed=1)


@dataclass
class Scripted:
    """Row r, whose prompt is token r, is continued by ``scripts[r]``, whatever it has read."""

    scripts: list[list[int]]
    asked: list[list[list[int]]] = field(default_factory=list)
    drawn: dict[int, list[int]] = field(default_factory=dict)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        self.asked.append([list(prompt) for prompt in prompts])
        rows, reasons = [], []
        for prompt in prompts:
            seen = self.drawn.setdefault(prompt[0], [])
            new: list[int] = []
            while len(new) < sampling.max_tokens and (
                not new or new[-1] not in sampling.stop_tokens
            ):
                new.append(self.scripts[prompt[0]][len(seen) + len(new)])
            seen += new
            rows.append((list(prompt), new))
            reasons.append("stop" if new[-1] in sampling.stop_tokens else "length")
        width = max(len(prompt) + len(new) for prompt, new in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (prompt, new) in enumerate(rows):
            tokens[i, : len(prompt) + len(new)] = torch.tensor(prompt + new)
            mask[i, len(prompt) : len(prompt) + len(new)] = True
        log_probs = torch.where(mask, -tokens / 8, 0.0)  # a token's own, so that it is known again
        return Rollout(
            tokens=tokens,
            mask=mask,
            old_log_probs=log_probs,
            tempered_log_probs=log_probs,
            finish_reasons=reasons,
        )


def pieces(lm: LanguageModel, *texts: str) -> list[int]:
    """Return texts as tokens, each encoded by itself; ``"."`` is the stop token."""
    encode = lm.tokenizer.encode
    of = [[lm.stop_tokens[0]] if x == "." else encode(x, add_special_tokens=False) for x in texts]
    return [token for tokens in of for token in tokens]


def converse(
    lm: LanguageModel, scripts: Sequence[list[int]], *, max_tokens: int = 40, max_calls: int = 4
) -> tuple[Rollout, Scripted]:
    engine = Scripted([[*script, *[0] * max_tokens] for script in scripts])
    sampling = Sampling(max_tokens=max_tokens, stop_tokens=lm.stop_tokens)
    tools = ToolEngine(engine, lm, ToolUse(max_calls=max_calls))
    return tools.generate([[r] for r in range(len(scripts))], sampling), engine


def test_tokens_are_what_was_drawn_and_the_outputs_encoded_once(lm: LanguageModel) -> None:
    # 1 2 * 3 in four tokens, though the tokenizer would write 12 as one: decoded and encoded again,
    # the row would be shorter.
    call = [*pieces(lm, "<tool>", "1", "2", "*", "3", "</tool>")]
    assert len(pieces(lm, "12")) == 1
    output = pieces(lm, "<output>36</output>")
    end = pieces(lm, "36", ".")
    rollout, engine = converse(lm, [[*call, *end], pieces(lm, "1", ".")])
    whole = [0, *call, *output, *end]
    assert engine.asked == [[[0], [1]], [[0, *call, *output]]]
    assert rollout.tokens[0, : len(whole)].tolist() == whole
    kinds = [False, *[True] * len(call), *[False] * len(output), *[True] * len(end)]
    assert rollout.mask[0].tolist() == kinds
    assert rollout.completions() == [[*call, *end], pieces(lm, "1", ".")]
    assert rollout.continuations() == [whole[1:], pieces(lm, "1", ".")]
    expected = torch.where(rollout.mask, -rollout.tokens / 8, 0.0)
    torch.testing.assert_close(rollout.old_log_probs, expected, rtol=0, atol=0)
    assert rollout.tempered_log_probs is rollout.old_log_probs
    assert rollout.finish_reasons == ["stop", "stop"]
    assert (rollout.tool_calls, rollout.tool_errors) == ([1, 0], [0, 0])


def test_samples_show_the_output_and_count_its_tokens(lm: LanguageModel) -> None:
    call, end = pieces(lm, "<tool>12*3</tool>"), pieces(lm, "36", ".")
    rollout, _ = converse(lm, [[*call, *end]])
    [sample] = as_samples(lm.tokenizer, [[0]], ["36"], rollout, 1)
    assert sample.completion == "<tool>12*3</tool><output>36</output>36"
    assert list(sample.tokens) == [*call, *pieces(lm, "<output>36</output>"), *end]


def test_rows_at_different_turns_go_on_together(lm: LanguageModel) -> None:
    call, dot = pieces(lm, "<tool>1*1</tool>"), pieces(lm, ".")
    scripts = [[*call, *dot], dot, [*call, *call, *dot], [*call, *call, *dot]]
    rollout, engine = converse(lm, scripts)
    assert [[prompt[0] for prompt in prompts] for prompts in engine.asked] == [
        [0, 1, 2, 3],
        [0, 2, 3],
        [2, 3],
    ]
    assert rollout.tool_calls == [1, 0, 2, 2]
    assert rollout.finish_reasons == ["stop"] * 4


@pytest.mark.parametrize(
    ("text", "outputs", "failed"),
    [
        ("<tool></tool>", ["error: empty"], 1),
        ("<tool>1*</tool><tool>2*3</tool>", ["error: incomplete", "6"], 1),
        ("</tool>1</tool><tool>2*2</tool>", ["4"], 0),  # what no call opens, closes none
        ("<tool>1<tool>2*3</tool>", ["6"], 0),  # a later opening begins anew
        ("<tool>1</think>", [], 0),  # another tag that ends with the same character
    ],
)
def test_odd_calls(lm: LanguageModel, text: str, outputs: list[str], failed: int) -> None:
    rollout, _ = converse(lm, [pieces(lm, text, ".")], max_tokens=80)
    assert rollout.tool_errors == [failed]
    assert rollout.tool_calls == [len(outputs)]
    tail = rollout.tokens[0][~rollout.mask[0]].tolist()[1:]
    assert tail == pieces(lm, *[f"<output>{output}</output>" for output in outputs])
    assert rollout.finish_reasons == ["stop"]


def test_an_output_is_not_taken_for_a_call(lm: LanguageModel) -> None:
    # What the tool says stays out of the text in which calls are looked for.
    def quoting(request: str) -> ToolOutput:
        return ToolOutput(f"<tool>{request}")

    call = pieces(lm, "<tool>1</tool>")
    engine = Scripted([[*call, *pieces(lm, "2</tool>", ".")]])
    tools = ToolEngine(engine, lm, ToolUse(tool=quoting))
    rollout = tools.generate([[0]], Sampling(max_tokens=60, stop_tokens=lm.stop_tokens))
    assert rollout.tool_calls == [1]


def test_max_tokens_counts_outputs_and_may_end_within_a_call(lm: LanguageModel) -> None:
    call, dot = pieces(lm, "<tool>1*1</tool>"), pieces(lm, ".")
    output = pieces(lm, "<output>1</output>")
    both = len(call) + len(output)
    for room, calls, written in (
        (len(call) - 1, 0, call[:-1]),  # no call was closed
        (len(call), 0, call),  # nor is there room for what it says
        (both, 0, call),  # nor for a token after that
        (both + 1, 1, [*call, *output, *call[:1]]),
        (2 * both, 1, [*call, *output, *call]),
        (2 * both + 1, 2, [*call, *output, *call, *output, *dot]),
    ):
        rollout, _ = converse(lm, [[*call, *call, *dot]], max_tokens=room)
        assert rollout.tool_calls == [calls], room
        assert rollout.continuations() == [written], room
        stopped = written[-1:] == dot
        assert rollout.finish_reasons == ["stop" if stopped else "length"], room


def test_a_row_drawn_beside_one_with_more_room_is_cut_at_its_own(lm: LanguageModel) -> None:
    # Row 0 has 4 tokens left after its call, row 1, whose output is shorter, has more; the stop
    # token that row 0 drew beyond its room is not its own.
    call, longer = pieces(lm, "<tool>1*1</tool>"), pieces(lm, "<tool>1*</tool>")
    room = len(longer) + len(pieces(lm, "<output>error: incomplete</output>")) + 4
    scripts = [[*longer, 1, 1, 1, 1, lm.stop_tokens[0]], [*call, 1, 1, 1, 1, lm.stop_tokens[0]]]
    rollout, engine = converse(lm, scripts, max_tokens=room)
    assert len(engine.asked) == 2
    assert rollout.finish_reasons == ["length", "stop"]
    assert len(rollout.continuations()[0]) == room


def test_a_call_too_many_ends_the_completion(lm: LanguageModel) -> None:
    call, output = pieces(lm, "<tool>1*1</tool>"), pieces(lm, "<output>1</output>")
    rollout, _ = converse(lm, [[*call * 5]], max_tokens=80, max_calls=2)
    assert rollout.continuations() == [[*call, *output, *call, *output, *call]]
    assert rollout.tool_calls == [2]
    assert rollout.finish_reasons == ["length"]


def test_tags_of_several_tokens_are_found_in_the_text() -> None:
    tokenizer = train_tokenizer(["<tool>1*2</tool> 3 > 2 -> <output>2</output>" * 2], vocabulary=60)
    lm = tiny_model(tokenizer, layers=1, width=16, heads=2)
    call = [t for c in "3>2 <tool>1*2</tool>" for t in pieces(lm, c)]  # a token a character
    output = pieces(lm, "<output>2</output>")
    rollout, engine = converse(lm, [[*call, *pieces(lm, "2", ".")]], max_tokens=80)
    assert rollout.continuations() == [[*call, *output, *pieces(lm, "2", ".")]]
    assert rollout.tool_calls == [1]
    assert len(engine.asked) == 4  # the > of 3>2 and of <tool> were looked at, too


def test_rows_that_go_on_stay_within_the_models_positions(lm: LanguageModel) -> None:
    # 24 positions: prompt 1 and max_tokens 23. Beside row 1, which may draw more, row 0 would reach
    # beyond them.
    few = tiny_model(lm.tokenizer, layers=1, width=16, heads=2, positions=24)
    calls = [pieces(lm, "<tool>1*</tool>"), pieces(lm, "<tool>1</tool>")]
    rollout, engine = converse(
        few, [[*call, *pieces(lm, "2", ".")] for call in calls], max_tokens=23
    )
    assert [[prompt[0] for prompt in prompts] for prompts in engine.asked] == [[0, 1], [1], [0]]
    assert rollout.finish_reasons == ["stop", "stop"]


def test_tags_that_the_tokenizer_cannot_write_are_refused(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="no token of the tokenizer can end the tag '\u2020'"):
        ToolEngine(Engine(lm.model), lm, ToolUse(closing="\u2020"))


# A random model rarely writes <tool>1*2</tool>; with these tags it calls all the time.
def lengths(request: str) -> ToolOutput:
    return ToolOutput("9" * (len(request) % 4), failed=len(request) % 2 == 1)


OFTEN = ToolUse(tool=lengths, opening="i", closing="s", before="*", after="*")
PROMPTS = [[20, 21, 22], [23, 24], [25, 26, 27, 28], [29, 30, 31]]
SAMPLING = Sampling(max_tokens=24, stop_tokens=(10, 11), temperature=0.9)


def often(lm: LanguageModel, prompts: Sequence[int], group: int = 3) -> Rollout:
    tools = ToolEngine(Engine(lm.model), lm, OFTEN)
    seeds = [100 + p for p in prompts]
    return tools.generate([PROMPTS[p] for p in prompts], SAMPLING, group, seeds=seeds)


def test_without_a_call_it_is_the_engine(lm: LanguageModel) -> None:
    never = ToolUse(opening="<tool><tool><tool>")
    own = ToolEngine(Engine(lm.model), lm, never).generate(PROMPTS, SAMPLING, 2)
    stops = (*SAMPLING.stop_tokens, *ToolEngine(Engine(lm.model), lm, never).closing)
    engine = Engine(lm.model).generate(PROMPTS, replace(SAMPLING, stop_tokens=stops), 2)
    plain = [row for row, tokens in enumerate(engine.completions()) if tokens[-1] in (10, 11)]
    assert len(plain) > 2
    for row in plain:
        assert own.completions()[row] == engine.completions()[row]


def test_other_rows_and_their_order_change_nothing(lm: LanguageModel) -> None:
    whole = often(lm, range(4))
    assert sum(whole.tool_calls) > 10
    assert 0 < sum(whole.tool_errors) < sum(whole.tool_calls)
    assert len(set(whole.tool_calls)) > 1
    back, single = often(lm, [3, 2, 1, 0]), [often(lm, [p]) for p in range(4)]
    rows = whole.continuations()
    turned = [row for p in (3, 2, 1, 0) for row in rows[3 * p : 3 * p + 3]]
    assert back.continuations() == turned
    assert [row for one in single for row in one.continuations()] == rows
    assert [n for one in single for n in one.tool_calls] == whole.tool_calls
    first = often(lm, range(4), group=1)  # completion g does not depend on the group's size
    assert first.continuations() == rows[::3]
    for p, one in enumerate(single):
        columns = one.tokens.shape[1]
        torch.testing.assert_close(
            whole.old_log_probs[3 * p : 3 * p + 3, :columns], one.old_log_probs
        )


def test_log_probs_are_those_of_the_rows_whole_and_with_shared_prompts(lm: LanguageModel) -> None:
    rollout = often(lm, range(4))
    lengths = prompt_lengths(rollout.mask, 3)
    assert lengths.tolist() == [len(prompt) for prompt in PROMPTS]
    plain = token_log_probs(lm.model, rollout.tokens, rollout.mask)
    torch.testing.assert_close(rollout.old_log_probs, plain, rtol=1e-4, atol=1e-5)
    tempered = token_log_probs(lm.model, rollout.tokens, rollout.mask, temperature=0.9)
    torch.testing.assert_close(rollout.tempered_log_probs, tempered, rtol=1e-4, atol=1e-5)
    shared = shared_prompt_log_probs(
        lm.model, rollout.tokens, rollout.mask, group_size=3, prompt_lengths=lengths
    )
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)
    assert (rollout.old_log_probs[~rollout.mask] == 0).all()


def test_a_process_without_prompts_gets_an_empty_rollout(lm: LanguageModel) -> None:
    rollout = often(lm, [])
    assert rollout.tokens.shape == (0, 0)
    assert rollout.continuations() == []
    assert rollout.tool_calls == []

import pytest

from posttrain.data.chat import encode_prompt
from posttrain.models import LanguageModel
from posttrain.recipes import tiny
from posttrain.recipes.called import CalledTool
from posttrain.recipes.jobs import GRPOJob
from posttrain.recipes.sources import FromScratch
from posttrain.recipes.worked import Mixture
from posttrain.rollout.tool_engine import ToolEngine


@pytest.fixture(scope="module")
def job() -> GRPOJob:
    return tiny.tool_mini()


@pytest.fixture(scope="module")
def source(job: GRPOJob) -> CalledTool:
    assert job.warm_up is not None
    assert isinstance(job.warm_up.data, CalledTool)
    return job.warm_up.data


@pytest.fixture(scope="module")
def lm(job: GRPOJob, source: CalledTool) -> LanguageModel:
    assert isinstance(job.model, FromScratch)
    return job.model.load(source.texts(200), seed=0)


def test_a_demonstration_is_a_rollout_in_which_the_output_does_not_count(
    source: CalledTool, lm: LanguageModel
) -> None:
    documents = source.documents(lm, 8, seed=0)
    for index, prompt in zip(range(6), source.task.train(), strict=False):  # 3 of 4 call at first
        tokens, mask = list(documents[index].tokens), list(documents[index].mask)
        asked = encode_prompt(lm.tokenizer, prompt)
        expression = str(prompt.metadata["expression"])
        call = lm.tokenizer.encode(f"<tool>{expression}</tool>", add_special_tokens=False)
        said = f"<output>{prompt.answer}</output>"
        output = lm.tokenizer.encode(said, add_special_tokens=False)
        answer = f"<answer>{prompt.answer}</answer>"
        rest = [*lm.tokenizer.encode(answer, add_special_tokens=False), *lm.stop_tokens]
        assert tokens == asked + call + output + rest
        kinds = [(asked, False), (call, True), (output, False), (rest, True)]
        assert mask == [wanted for piece, wanted in kinds for _ in piece]


def test_those_that_guess_answer_at_once_and_rightly(source: CalledTool, lm: LanguageModel) -> None:
    guessing = CalledTool(task=source.task, mixture=Mixture(first=0.0, reasoning=0.25))
    documents = guessing.documents(lm, 400, seed=3)
    texts = [lm.tokenizer.decode(list(document.tokens)) for document in documents]
    assert 66 <= sum("<tool>" in text for text in texts) <= 134  # 100 expected, deviation 8.7
    prompts = guessing.task.train()
    for index, text in enumerate(texts):
        assert text.endswith(f"<answer>{prompts[index].answer}</answer><|end|>")
    document = documents[next(i for i, text in enumerate(texts) if "<tool>" not in text)]
    assert sorted(document.mask) == list(document.mask)  # the prompt, then what counts


def test_calls_are_a_token_and_outputs_have_no_unknown_one(
    source: CalledTool, lm: LanguageModel, job: GRPOJob
) -> None:
    assert job.tools is not None
    tools = ToolEngine(_Never(), lm, job.tools)  # type: ignore[arg-type]  # it is not asked
    assert tools.closing == (lm.tokenizer.convert_tokens_to_ids("</tool>"),)
    unknown = lm.tokenizer.unk_token_id
    assert unknown not in lm.tokenizer.encode("\n".join(source.texts(50)))
    lengths = [len(x.mask) - list(x.mask).index(True) for x in source.documents(lm, 200, seed=0)]
    assert max(lengths) <= job.sampling.max_tokens


class _Never:
    pass

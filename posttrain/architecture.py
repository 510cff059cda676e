"""What a run keeps beside its checkpoints, so that any of them can be made a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from launch.export import SHAPES
from launch.runtime import Runtime
from posttrain.adapters import has_adapters
from posttrain.model_settings import for_saving, plain_weights, write_settings
from posttrain.models import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["keep_architecture"]


def keep_architecture(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Runtime
) -> None:
    """Have a run write the settings of ``model`` and its tokenizer before its first checkpoint.

    ``monro export`` makes a folder as ``save_model`` writes it of these and of a checkpoint. A run
    of stages may do so once, or for each stage that trains another model. For a model with
    adapters nothing is done, because its checkpoints hold the adapters alone; nor for one
    whose weights transformers saves in another form.

    Args:
        model: As it is trained, named ``"model"`` in the checkpoints' state.
        tokenizer: Its own.
        run: The run or stage, before ``run.steps``.
    """
    if run.output is None or has_adapters(model):
        return
    weights = plain_weights(model)
    if weights is None:
        return
    shapes = {name: list(x.shape) for name, x in weights.items()}

    def write(folder: Path) -> None:
        try:
            with quiet(), for_saving(model):
                write_settings(model, folder)
                tokenizer.save_pretrained(folder)
        except Exception as error:  # tokenizers has errors of its own
            raise OSError(" ".join(str(error).split())) from error
        (folder / SHAPES).write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")

    run.keep_architecture(write)

"""The base weights as the kernels take them: their tables point to adapters that came later, and tiles cover every output."""

import deepdoctor.engine.accelerator  # noqa: F401

from pathlib import Path

import pytest
import torch

from deepdoctor.engine.adapters import select_adapter
from deepdoctor.engine.model import LoadedModel
from deepdoctor.engine.weights import ADAPTERS, Joint, rank_and_scale, shape_of
from tests.engine import tiny


def test_tables_point_to_adapters_that_were_attached_after_they_were_made(
    loaded: LoadedModel, adapter: Path, llama: Path, tmp_path: Path
) -> None:
    attention = loaded.base.model.layers[0].self_attn
    joints = [Joint.of(attention, "q_proj", "k_proj", "v_proj"), Joint.of(attention, "o_proj")]
    weights = [part.weight for joint in joints for part in joint.parts]
    few = select_adapter(loaded, tiny.save_adapter(tmp_path / "few", llama, rank=2, projections=("q_proj", "v_proj")))
    joints[0].point_to([few])
    assert [address != 0 for address in joints[0].firsts[:, 0].tolist()] == [True, False, True]
    full = select_adapter(loaded, adapter)
    for joint in joints:
        joint.point_to([full, few])
        for place, module in enumerate(joint.modules):
            wanted = (module.lora_A[full].weight.data_ptr(), module.lora_B[full].weight.data_ptr())
            assert (joint.firsts[place, 0], joint.seconds[place, 0]) == wanted
    assert joints[0].seconds[:, 1].count_nonzero() == 2
    assert joints[1].seconds[:, 1].count_nonzero() == 0
    assert (rank_and_scale(joints, few), rank_and_scale(joints, full)) == ((2, 2.0), (4, 2.0))
    now = [getattr(module, "base_layer", module).weight for joint in joints for module in joint.modules]
    assert [weight.data_ptr() for weight in now] == [weight.data_ptr() for weight in weights]


def test_an_adapter_in_other_numbers_is_not_pointed_to(loaded: LoadedModel, adapter: Path) -> None:
    name = select_adapter(loaded, adapter)
    assert loaded.peft is not None
    loaded.peft.half()
    with pytest.raises(TypeError, match="not contiguous float32"):
        Joint.of(loaded.base.model.layers[0].mlp, "down_proj").point_to([name])


@pytest.mark.parametrize(
    ("vocabulary", "whole"),
    [(128_256, True), (151_936, True), (152_064, True), (32_000, True), (32_001, False), (32_017, False), (605, False), (608, True)],
)
def test_a_vocabulary_that_tiles_do_not_cover_is_known(vocabulary: int, whole: bool) -> None:
    holder = torch.nn.Module()
    with torch.device("meta"):
        holder.lm_head = torch.nn.Linear(2048, vocabulary, bias=False)
    head = Joint.of(holder, "lm_head")
    assert head.firsts.shape == (1, ADAPTERS)
    assert (vocabulary % shape_of(head, 0).outputs == 0) is whole

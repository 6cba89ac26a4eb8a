"""What is told before the work is what comes out: parameters and bytes of each layout, to the last one."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe import apply as outputs
from thrifty.moe import forecast
from thrifty.moe.cost import Sizes


def saved_bytes(folder) -> int:
    """Bytes of weights: the file less its header."""
    file = folder / "model.safetensors"
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_both_layouts_are_as_large_as_told(family, tied, half, tiny, random, tmp_path) -> None:
    model = tiny(family, tie_word_embeddings=tied)
    model = model.bfloat16() if half else model
    for row in forecast.of(Sizes.of(model), 0.5, "mlp", 8):
        plan = random(model, num_experts=8, widths=row["width"], common=0)
        for kept in plan.keep.values():
            kept[1] = 1 - kept[0]  # so that every channel is in some expert
        made = outputs.build(plan, model, row["layout"])
        shared_gates = sum(x.numel() for name, x in made.named_parameters() if "shared_expert" in name)  # Qwen2-MoE
        assert sum(x.numel() for x in made.parameters()) - shared_gates == row["params_total"]
        outputs.save(made, tmp_path / row["layout"])
        assert saved_bytes(tmp_path / row["layout"]) - shared_gates * (2 if half else 4) == row["bytes"]


@pytest.mark.parametrize("attention", ["qk", "vo", "both"])
def test_thinned_attention_is_as_large_as_told(attention, tiny, random, tmp_path) -> None:
    model = tiny(head_dim=24).bfloat16()
    sizes = Sizes.of(model)
    (row,) = forecast.of(sizes, 0.5, "blocks", 8, attention)
    plan = random(model, num_experts=8, widths=row["width"])
    for kept in plan.keep.values():  # so that every channel is in some expert
        kept.copy_(torch.stack([(torch.arange(96) < row["width"]).roll(12 * expert) for expert in range(8)]))
    thinned = [name for name in sizes.parts if name.endswith(("qk", "vo")) and attention in ("both", name[-2:])]
    for name, width in sizes.uniform_width(0.5, "blocks", thinned).items():
        if name in thinned:
            plan.keep[name] = (torch.arange(sizes.parts[name].size) < width).float()
            shapes = {"down": (128, 48), "norm_weight": 128, "norm_bias": 128, "shift": 128, "up": (24, 128)}
            plan.evidence.update({f"{name}.{part}": torch.randn(shape) for part, shape in shapes.items()})
    made = outputs.build(plan, model, "tomoe")
    assert sum(x.numel() for x in made.parameters()) == row["params_total"]
    outputs.save(made, tmp_path / "out")
    assert saved_bytes(tmp_path / "out") == row["bytes"]
    assert 0.45 < row["active_ratio_blocks"] <= 0.5


def test_masked_values_are_no_speed(tiny) -> None:
    sizes = Sizes.of(tiny())
    (row,) = forecast.of(sizes, 0.5, "blocks", 8, "vo")
    saved = sizes.weights("mlp") - sum(3 * 48 * row["width"] for _ in range(3))
    assert row["speed_up"] < row["params_dense"] / (row["params_dense"] - saved)


def test_masks_that_would_not_count_are_refused_before_anything_else(tiny) -> None:
    with pytest.raises(SettingError, match="--of blocks"):
        forecast.of(Sizes.of(tiny()), 0.5, "mlp", 8, "both")


def test_one_expert_is_stored_once_and_not_routed(tiny, random, tmp_path) -> None:
    model = tiny()
    for row in forecast.of(Sizes.of(model), 0.5, "mlp", 1):
        made = outputs.build(random(model, num_experts=1, widths=row["width"]), model, row["layout"])
        assert sum(x.numel() for x in made.parameters()) == row["params_total"] == row["params_active"]


def test_active_parameters_are_those_of_the_widest_path(tiny) -> None:
    row = forecast.of(Sizes.of(tiny()), 0.5, "mlp", 4)[0]
    layers, d, d_ff = 3, 48, 96
    assert row["params_dense"] - row["params_active"] == layers * (3 * d * d_ff // 2 - 4 * d)
    assert row["active_ratio_mlp"] == pytest.approx(0.5)


def test_speed_at_best_follows_from_bytes_and_multiplications(tiny) -> None:
    tied, own = (forecast.of(Sizes.of(tiny(tie_word_embeddings=tie)), 0.5, "mlp", 4)[0] for tie in (True, False))
    assert tied["speed_up"] == pytest.approx(own["speed_up"], rel=1e-6)  # an embedding is not read, a head is
    assert 1 < tied["speed_up"] < tied["speed_up_prefill"] < 2


def test_a_layout_that_cannot_hold_the_model_is_not_offered(tiny) -> None:
    (row,) = forecast.of(Sizes.of(tiny("Phi")), 0.5, "mlp", 4, layouts=["tomoe"])
    assert row["layout"] == "tomoe"

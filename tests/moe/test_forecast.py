"""The forecast agrees with what is built."""

import pytest

from thrifty.moe import forecast
from thrifty.moe.apply import apply
from thrifty.moe.cost import Sizes
from thrifty.moe.job import MoeJob
from thrifty.moe.result import active


def test_the_forecast_of_a_standard_folder_is_its_number_of_parameters(job: MoeJob, random) -> None:
    row = next(one for one in forecast.of(job.sizes, 0.5, "mlp", 4) if one["layout"] == "standard")
    plan = random(job.model, num_experts=4, widths=48)
    made = apply(plan, job.model)
    assert row["params_total"] == sum(parameter.numel() for parameter in made.parameters())
    assert row["params_active"] == active(job, plan)["params_active"]
    assert row["bytes"] == 4 * row["params_total"]


def test_the_speed_up_is_the_share_of_weights_that_are_read(tiny) -> None:
    sizes = Sizes.of(tiny(tie_word_embeddings=True))
    (row, _) = forecast.of(sizes, 0.5, "mlp", 1)
    assert row["speed_up"] == pytest.approx(row["params_dense"] / row["params_active"])
    untied = Sizes.of(tiny(tie_word_embeddings=False))
    assert forecast.of(untied, 0.5, "mlp", 1)[0]["speed_up"] == pytest.approx(row["speed_up"], rel=0.05)


def test_both_ways_of_counting_are_told(job: MoeJob) -> None:
    for row in forecast.of(job.sizes, 0.7, "blocks", 8):
        assert row["active_ratio_blocks"] <= 0.7
        assert row["active_ratio_mlp"] < row["active_ratio_blocks"] < row["active_ratio_model"]

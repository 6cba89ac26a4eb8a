"""Parameters are counted as they are in the model, and the share that acts is exact and differentiable."""

import pytest
import torch

from thrifty.errors import SettingError
from thrifty.moe.cost import SCOPES, Sizes, round_width, widths_of
from thrifty.moe.sites import found


def test_scopes_count_the_weights_of_the_model(any_model) -> None:
    sizes, sites = Sizes.of(any_model), found(any_model)
    mlp = sum(x.weight.numel() for site in sites for x in (site.gate, site.up, site.down) if x is not None)
    sides = [x for site in sites for x in (site.attention.q, site.attention.k, site.attention.v, site.attention.o)]
    assert sizes.weights("mlp") == mlp
    assert sizes.weights("blocks") == mlp + sum(side.weight.numel() for side in sides)
    assert sizes.weights("model") == sum(parameter.numel() for parameter in any_model.parameters())


def test_tied_weights_count_once(tiny) -> None:
    tied, own = Sizes.of(tiny(tie_word_embeddings=True)), Sizes.of(tiny(tie_word_embeddings=False))
    assert own.weights("model") - tied.weights("model") == 97 * 48
    assert tied.is_tied
    assert not own.is_tied


@pytest.mark.parametrize("scope", SCOPES)
def test_a_whole_model_is_wholly_active(any_model, scope) -> None:
    assert Sizes.of(any_model).active_ratio({}, scope) == 1


def test_half_the_channels_are_half_the_mlp_and_less_than_half_saved_of_the_rest(any_model, random) -> None:
    sizes, widths = Sizes.of(any_model), widths_of(random(any_model, widths=48).keep)
    ratios = [float(sizes.active_ratio(widths, scope)) for scope in SCOPES]
    assert ratios[0] == pytest.approx(0.5)
    assert ratios[0] < ratios[1] < ratios[2] < 1


def test_the_ratio_is_differentiable(tiny) -> None:
    sizes = Sizes.of(tiny())
    width = torch.tensor(30.0, requires_grad=True)
    sizes.active_ratio({"layers.1.mlp": width}, "blocks").backward()
    assert float(width.grad) == pytest.approx(3 * 48 / sizes.weights("blocks"))


def test_the_widest_expert_is_charged() -> None:
    masks = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 0]])
    assert widths_of({"layers.0.mlp": masks})["layers.0.mlp"] == 3


@pytest.mark.parametrize("scope", SCOPES)
def test_uniform_widths_meet_the_ratio_from_below(any_model, scope) -> None:
    sizes = Sizes.of(any_model)
    widths = sizes.uniform_width(0.8, scope)
    assert all(width % 16 == 0 for width in widths.values())
    assert float(sizes.active_ratio(widths, scope)) <= 0.8
    more = {name: width + 16 for name, width in widths.items()}
    assert float(sizes.active_ratio(more, scope)) > 0.8


def test_a_budget_fits_what_it_allows(tiny, random) -> None:
    model = tiny()
    budget = Sizes.of(model).budget(0.5)
    assert budget.fits(random(model, widths=48).keep)
    assert not budget.fits(random(model, widths=64).keep)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.2, -1.0])
def test_a_budget_that_is_no_share_is_refused(ratio, tiny) -> None:
    with pytest.raises(SettingError, match="no share"):
        Sizes.of(tiny()).budget(ratio)


def test_a_budget_below_what_stays_whole_is_refused(tiny) -> None:
    with pytest.raises(SettingError, match="stays whole"):
        Sizes.of(tiny()).uniform_width(0.1, "model")


def test_a_part_of_another_model_is_refused(tiny) -> None:
    with pytest.raises(SettingError, match="no part"):
        Sizes.of(tiny()).active({"layers.7.mlp": 3})


def test_widths_are_multiples_of_sixteen() -> None:
    assert [round_width(x, 100) for x in (3, 16, 47.9, 48, 130)] == [16, 16, 32, 48, 100]


@pytest.mark.parametrize(
    ("channels", "said"),
    [(96, "at least 16 of 96 channels = 17%; ask for 0.17"), (33, "16 of 33 channels = 48%; ask for 0.49")],
)
def test_a_budget_below_the_narrowest_experts_is_refused_with_one_that_will_do(channels, said, tiny) -> None:
    sizes = Sizes.of(tiny(intermediate_size=channels))
    with pytest.raises(SettingError, match=said):
        sizes.uniform_width(0.1)
    enough = float(said[-4:])
    widths = sizes.uniform_width(enough)
    assert set(widths.values()) == {16}
    assert float(sizes.active_ratio(widths)) <= enough


def test_the_narrowest_experts_may_use_the_budget_up(tiny) -> None:
    assert set(Sizes.of(tiny()).uniform_width(1 / 6).values()) == {16}


def test_mlps_too_narrow_for_experts_are_refused(tiny) -> None:
    with pytest.raises(SettingError, match="8 of 8 channels = 100%; these MLPs are too narrow"):
        Sizes.of(tiny(intermediate_size=8)).uniform_width(0.9)


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.8])
def test_parts_with_one_multiple_are_paid_for_by_the_others(ratio, tiny) -> None:
    """Half of 6 rotary pairs is less than the 4 that are kept at least."""
    sizes = Sizes.of(tiny())
    thinned = [name for name in sizes.parts if name.endswith(".qk")]
    widths = sizes.uniform_width(ratio, "blocks", thinned)
    assert {widths[name] for name in thinned} == {4}
    assert float(sizes.active_ratio(widths, "blocks")) <= ratio

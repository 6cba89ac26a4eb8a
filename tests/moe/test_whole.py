"""Experts with matrices of their own on a GPU equal PyTorch; copies of experts are held only where asked for."""

import pytest
import torch
from torch.nn.functional import silu

from thrifty.errors import SettingError
from thrifty.moe import apply, whole
from thrifty.moe.experts import PackedMlp, Shape, run_sorted
from thrifty.moe.grouped import run_grouped
from thrifty.moe.packing import Packing


def gated(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    return silu(gate) * up


def packed(has_gate: bool = True) -> PackedMlp:
    members = Packing.of(torch.rand(3, 90) < 0.5).members
    mlp = PackedMlp(Shape(3, members.shape[1], has_gate, False, False, True), 32, torch.nn.SiLU())
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mlp.members.copy_(members)
    return mlp


def test_copies_move_with_the_model_and_are_not_saved() -> None:
    mlp = packed()
    mlp.copy_experts()
    assert mlp.copied_down.shape[:2] == (3, 32)
    assert not [name for name in mlp.state_dict() if "copied" in name]
    assert mlp.to(torch.float64).copied_gate_up.dtype == torch.float64
    assert apply.bytes_of_copies(mlp) == 8 * 3 * 32 * (mlp.copied_gate_up.shape[1] + mlp.copied_down.shape[2])


def test_experts_that_cannot_be_copied_say_so() -> None:
    with pytest.raises(SettingError, match="without copies"):
        packed(has_gate=False).copy_experts()


@pytest.mark.parametrize("has_copies", [False, True])
def test_a_loaded_model_holds_copies_only_where_asked_for(tiny, random, tmp_path, has_copies) -> None:
    model = tiny()
    apply.save(apply.build(random(model), model, "tomoe"), tmp_path / "out")
    loaded = apply.load(tmp_path / "out", has_copies=has_copies)
    assert (apply.bytes_of_copies(loaded) > 0) == has_copies


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 7, 700])
def test_each_token_goes_through_its_expert(tokens, dtype) -> None:
    x = torch.randn(tokens, 64, device="cuda", dtype=dtype)
    choice = torch.randint(0, 6, (tokens,), device="cuda", dtype=torch.int32)
    choice[choice == 4] = 2  # an expert without a token
    gate_up, down = (torch.randn(shape, device="cuda").to(dtype) / 8 for shape in ((6, 96, 64), (6, 64, 48)))
    with torch.inference_mode():
        found = whole.run_whole(x, choice, gate_up, down, "silu")
    for expert in range(6):
        mine = choice == expert
        wanted = gated(x[mine].double() @ gate_up[expert].double().T) @ down[expert].double().T
        assert torch.allclose(found[mine].double(), wanted, atol=2e-2)


@pytest.mark.gpu
def test_a_graph_holds_everything() -> None:
    x = torch.randn(2048, 256, device="cuda", dtype=torch.bfloat16)
    choice = torch.randint(0, 2, (2048,), device="cuda", dtype=torch.int32)
    gate_up, down = (torch.randn(shape, device="cuda").bfloat16() / 16 for shape in ((2, 256, 256), (2, 256, 128)))
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(side):
        wanted = run_grouped(x, choice, gate_up, down, gated)
        whole.run_whole(x, choice, gate_up, down, "silu")
        with torch.cuda.graph(graph, stream=side):
            found = whole.run_whole(x, choice, gate_up, down, "silu")
    graph.replay()
    torch.cuda.synchronize()
    assert float((found - wanted).float().norm() / wanted.float().norm()) < 1e-2


def matrices(width: int = 16, channels: int = 8, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    shapes = (4, width), (2, 2 * channels, width), (2, width, channels)
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_are_for_rows_at_multiples_of_16_bytes(dtype) -> None:
    x, gate_up, down = matrices(dtype=dtype)
    assert whole.suits_tiles(x, gate_up, down)
    assert not whole.suits_tiles(x[:0], gate_up, down)
    assert not whole.suits_tiles(*matrices(width=20, dtype=dtype))
    assert not whole.suits_tiles(*matrices(channels=12, dtype=dtype))
    assert not whole.suits_tiles(x, gate_up, torch.zeros(2, 8, 16, dtype=dtype).mT)  # columns side by side
    shifted = torch.zeros(down.numel() + 1, dtype=dtype)[1:].view(down.shape)
    assert not whole.suits_tiles(x, gate_up, shifted)


def test_tiles_are_for_one_type_of_half_precision() -> None:
    x, gate_up, down = matrices()
    assert not whole.suits_tiles(*matrices(dtype=torch.float32))
    assert not whole.suits_tiles(x, gate_up, down.half())
    assert not whole.suits_tiles(x, gate_up.half(), down)


def test_no_cpu_has_the_copy_engine() -> None:
    assert not whole.has_copy_engine(torch.device("cpu"))


@pytest.mark.gpu
def test_experts_run_on_the_gpu_where_they_are() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    mlp = packed().to("cuda:1", torch.bfloat16).eval()
    assert torch.cuda.current_device() == 0
    for tokens in (1, 7, 100, 700):
        x = torch.randn(tokens, 32, device="cuda:1", dtype=torch.bfloat16)
        with torch.inference_mode():
            found, choice = mlp(x), mlp.choice
            exact = PackedMlp(mlp.shape, 32, mlp.activation).to("cuda:1")
            exact.load_state_dict(mlp.state_dict())
            wanted = run_sorted(exact.double(), x.double(), choice.long())
        assert float((found - wanted).norm() / wanted.norm()) < 2e-2

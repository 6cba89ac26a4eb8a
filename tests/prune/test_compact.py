"""The small network survives the disk, ONNX and torch.compile."""

import json

import pytest
import torch
from torch import nn
from zoo import ZOO, Shared

from thrifty import cli
from thrifty.errors import DataError, ModelError, OutputError
from thrifty.plan import Plan
from thrifty.prune import compact
from thrifty.prune.apply import smaller
from thrifty.prune.compact import export_onnx, load, save
from thrifty.prune.coupling import coupling_of
from thrifty.prune.models import resnet8, resnet20
from thrifty.prune.trial import half, tensors_of, unsettled

KINDS = ["resnet8", "resnext", "mobilenet v3", "densenet", "u-net", "vit", "two heads", "bare parameters", "group norm"]


def planned(model, inputs):
    """Its groups, and a plan that keeps half of each."""
    coupling = coupling_of(model, inputs, is_tried=False)
    generator = torch.Generator().manual_seed(2)
    return coupling, Plan("mine", {g.name: half(g.size, generator) for g in coupling.prunable(residual=True)})


def built(name):
    torch.manual_seed(0)
    model = unsettled(ZOO[name].build(), torch.Generator().manual_seed(1)).eval()
    return model, ZOO[name].inputs, *planned(model, ZOO[name].inputs)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_is_read_back_onto_the_whole_definition(name, tmp_path):
    model, inputs, coupling, plan = built(name)
    small = save(tmp_path, model, plan, coupling)
    again = load(ZOO[name].build, tmp_path).eval()
    with torch.no_grad():
        pairs = zip(tensors_of(small(*inputs)), tensors_of(again(*inputs)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "model.safetensors"]


def test_a_model_may_be_given_and_stays_whole(tmp_path):
    model, _, coupling, plan = built("resnet8")
    save(tmp_path, model, plan, coupling)
    whole = resnet8()
    assert load(whole, tmp_path).stem.out_channels == 8
    assert whole.stem.out_channels == whole.stem.weight.shape[0] == 16


def test_shared_weights_stay_shared(tmp_path):
    model = Shared().eval()
    coupling, plan = planned(model, ZOO["shared"].inputs)
    save(tmp_path, model, plan, coupling)
    again = load(Shared, tmp_path)
    assert again.two[0].weight is again.one[0].weight


@pytest.mark.parametrize("build", [resnet20, lambda: resnet8(num_classes=7), lambda: nn.Linear(3, 2)])
def test_another_definition_is_refused(build, tmp_path):
    model, _, coupling, plan = built("resnet8")
    save(tmp_path, model, plan, coupling)
    with pytest.raises(DataError, match="is of another network"):
        load(build, tmp_path)


def spoil(folder, change):
    record = json.loads((folder / "kept.json").read_text())
    change(record)
    (folder / "kept.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format="other 1"),
        lambda record: record.pop("kept"),
        lambda record: record.update(kept=[1]),
        lambda record: record["kept"].update({"stem.weight": {"0": ["x"]}}),
        lambda record: record["kept"].update({"stem.weight": {"0": [99]}}),
        lambda record: record["kept"].update({"stem.weight": {"0": [-1]}}),
        lambda record: record["kept"].update({"stem.weight": {"0": []}}),
    ],
)
def test_a_spoilt_record_is_refused(change, tmp_path):
    model, _, coupling, plan = built("resnet8")
    save(tmp_path, model, plan, coupling)
    spoil(tmp_path, change)
    with pytest.raises(DataError):
        load(resnet8, tmp_path)


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no small network"):
        load(resnet8, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    model, _, coupling, plan = built("resnet8")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save(tmp_path / "file" / "out", model, plan, coupling)


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_onnx_runtime_computes_the_same_at_any_batch_size(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install 'thrifty[prune]'")
    pytest.importorskip("onnxscript", reason="needs pip install 'thrifty[prune]'")
    model, inputs, coupling, plan = built(name)
    small = save(tmp_path, model, plan, coupling)
    assert export_onnx(small, inputs, tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    more = torch.randn(5, *inputs[0].shape[1:])
    found = session.run(None, {session.get_inputs()[0].name: more.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), small(more), atol=1e-4)


def test_a_network_that_onnx_cannot_hold_is_refused_in_one_line(tmp_path):
    pytest.importorskip("onnxscript", reason="needs pip install 'thrifty[prune]'")
    with pytest.raises(ModelError, match="cannot be exported to ONNX") as error:
        export_onnx(ZOO["custom operator"].build(), ZOO["custom operator"].inputs, tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "backend"), [("resnet8", "aot_eager"), ("vit", "eager")])
def test_the_small_network_compiles(name, backend):
    model, inputs, coupling, plan = built(name)
    small = smaller(model, coupling, plan.keep)
    compiled = torch.compile(small, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(*inputs), small(*inputs), atol=1e-5)


def test_a_missing_package_is_named_before_any_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compact.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["prune", "resnet8", "--onnx", "-o", str(tmp_path / "out")])
    assert "ONNX needs onnx, which is not installed; run: pip install 'thrifty[prune]'" in capsys.readouterr().err


def test_the_command_writes_onnx(tmp_path, capsys):
    pytest.importorskip("onnxscript", reason="needs pip install 'thrifty[prune]'")
    folder = tmp_path / "out"
    cli.main(
        ["prune", "resnet8", "--epochs", "1", "--device", "cpu", "--method", "random", "--onnx", "-o", str(folder)]
    )
    assert "model.onnx, equal up to" in capsys.readouterr().out
    assert (folder / "model.onnx").stat().st_size > 10_000

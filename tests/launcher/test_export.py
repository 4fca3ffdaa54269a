import json
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors
import torch
from run_folders import read_record

from data.manifest import TRAIN
from data.noise import MIS_H
from data.views import Views
from launcher import onnx_file
from launcher.assemble import load_noisy_data
from launcher.export import main
from launcher.trained import load_trained
from methods.deployed import Deployed
from methods.networks import ModelConfig, build_network

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The export of a QMix run."""
    out = tmp_path_factory.mktemp("exported") / "qmix"
    use = "Trials of this program."
    assert main(["--checkpoint", str(trained("qmix").run), "--out", str(out),
                 "--intended-use", use]) == 0  # fmt: skip
    return out


def draw(num_images):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)


def expected(trained, images):
    """The run's own prediction, by its own views and method."""
    model = load_trained(trained("qmix").run)
    with torch.no_grad():
        plain = Views(model.config.views, 0)(images, torch.arange(len(images)), 0, 0, "plain")
        return model.method(plain).mean(0).numpy()


@pytest.mark.parametrize("num_images", [1, 2, 7])
def test_onnx_predicts_as_the_method_does_for_any_number_of_images(exported, trained, num_images):
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    images = draw(num_images)
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    assert found.shape == (num_images, 5) and found.dtype == np.float32
    assert np.abs(found - expected(trained, images)).max() <= 1e-5
    (given,) = session.get_inputs()
    assert given.type == "tensor(uint8)" and given.shape[1:] == [3, 32, 32]
    assert isinstance(given.shape[0], str)


def test_files_say_what_they_take_and_give(exported, trained):
    onnx.checker.check_model(onnx.load(exported / "model.onnx"))
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        also_told = file.metadata()
        names = list(file.keys())
    for facts in (told, also_told):
        assert json.loads(facts["class_names"]) == [f"grade {n}" for n in range(5)]
        assert json.loads(facts["image_size"]) == 32 and json.loads(facts["resize"]) == "crop"
        assert json.loads(facts["epochs"]) == 2
    assert {name.partition(".")[0] for name in names} == {"networks", "mean", "std"}
    assert sorted(path.name for path in exported.iterdir()) == [
        "MODEL_CARD.md", "model.onnx", "model.safetensors"
    ]  # fmt: skip


def test_the_cards_program_loads_the_weights(exported, trained, monkeypatch):
    card = (exported / "MODEL_CARD.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(exported)
    scope: dict = {}
    exec(program, scope)
    images = draw(3)
    assert np.abs(scope["model"](images).numpy() - expected(trained, images)).max() <= 1e-7


def test_the_card_tells_the_runs_own_figures(exported, trained):
    card = (exported / "MODEL_CARD.md").read_text()
    run = trained("qmix")
    last = read_record(run.run)[-1]
    for title, name in [("quadratic weighted kappa", "kappa"), ("accuracy", "accuracy")]:
        row = f"| {title} | {last[f'eval/{name}']:.4f} | {last[f'validation/{name}']:.4f} |"
        assert row in card
    for title, prefix, split in [("test", "eval", 2), ("validation", "validation", 1)]:
        section = card.partition(f"By class, {title} set:")[2].partition("\n\n|")[2]
        labels = run.split(split)[1]
        for c in range(5):
            values = [last[f"{prefix}/{key}/{c}"] for key in ("precision", "recall", "f1", "auroc")]
            shown = ["undefined" if value is None else f"{value:.4f}" for value in values]
            cells = [f"grade {c}", str((labels == c).sum()), *shown]
            assert f"{' | '.join(cells)} |" in section.partition("\n\n")[0]
    data = load_noisy_data(load_trained(run.run).config)
    num_wrong = (data.groups[data.source.manifest.where(TRAIN)] == MIS_H).sum()
    assert num_wrong > 0
    assert f"{num_wrong} have a wrong label, 0 were degraded" in card
    assert "kind symmetric, share of changed labels 0.3" in card
    assert "2 epochs of 2, seed 7, from random weights" in card
    assert "arXiv:2404.05169" in card and "Trials of this program." in card
    assert f"torch {torch.__version__.partition('+')[0]}" in card
    # Nothing of the machine that it was trained on.
    assert str(run.data) not in card and str(run.run) not in card


def test_a_card_knows_only_what_the_checkpoint_knows(trained, tmp_path, capsys):
    folder = shutil.copytree(trained("qmix").run / "checkpoints/epoch-0002", tmp_path / "alone")
    state = json.loads((folder / "state.json").read_text())
    state |= {"facts": {}, "steps_done": 3}
    (folder / "state.json").write_text(json.dumps(state))
    out = tmp_path / "out"
    assert main(["--checkpoint", str(folder), "--out", str(out), "--no-onnx"]) == 0
    assert "onnx" not in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["MODEL_CARD.md", "model.safetensors"]
    card = (out / "MODEL_CARD.md").read_text()
    assert "Unknown: the run's record was not beside the checkpoint" in card
    assert "Not stated by whoever exported the model." in card
    assert "holds no numbers of images" in card and "model.onnx" not in card
    assert "2 epochs and 3 steps of 2" in card


def test_a_file_that_predicts_otherwise_is_refused(trained, tmp_path, capsys, monkeypatch):
    export = torch.onnx.export

    def export_another(model, *arguments, **options):
        other = Deployed(model.networks)
        other.load_state_dict(model.state_dict())
        other.networks[0].classifier.bias[0] += 1e-3
        return export(other, *arguments, **options)

    monkeypatch.setattr("torch.onnx.export", export_another)
    out = tmp_path / "out"
    run = trained("qmix").run
    assert main(["--checkpoint", str(run), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "model.onnx: a probability differs from PyTorch's by" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_not_a_number_is_no_agreement(exported, trained):
    model = Deployed(load_trained(trained("qmix").run).method.predictors())
    model.std.fill_(float("nan"))
    with pytest.raises(onnx_file.ExportError, match="differs from PyTorch's by nan"):
        onnx_file.verify(exported / "model.onnx", model, 32)


def test_what_onnxruntime_refuses_is_one_line(exported, trained):
    model = Deployed(load_trained(trained("qmix").run).method.predictors())
    with pytest.raises(onnx_file.ExportError, match=r"^model.onnx: onnxruntime cannot run it: .*"):
        onnx_file.verify(exported / "model.onnx", model, 16)


def test_networks_that_were_trained_in_pieces_are_written_whole(tmp_path):
    config = ModelConfig(backbone="small_resnet", width=4, micro_batch_size=1)
    networks = [build_network(config, 3, seed=0, index=0)]
    assert onnx_file.write_onnx(Deployed(networks), 32, {}, tmp_path / "model.onnx") <= 1e-5
    assert networks[0].micro_batch_size == 1


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_an_absent_extra_is_one_line(trained, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--checkpoint", str(trained("qmix").run), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "pip install 'mednoise[onnx]'" in error and "--no-onnx" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_not_written_over(exported, trained, capsys):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert main(["--checkpoint", str(trained("qmix").run), "--out", str(exported)]) == 2
    assert "is there already; choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_a_wrong_checkpoint_is_one_line(tmp_path, capsys):
    assert main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "neither a run's folder" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "norm"), [("resnet18", "batch"), ("resnet18", "group"), ("resnet50", "frozen")]
)
def test_published_backbones_are_written_and_verified(tmp_path, backbone, norm):
    config = ModelConfig(backbone=backbone, norm=norm)
    networks = [build_network(config, 5, seed=0, index=k) for k in range(2)]
    for network in networks:  # classifiers that tell images apart
        network.classifier.weight.data.mul_(10)
    model = Deployed(networks, (0.4, 0.3, 0.2), (0.2, 0.2, 0.2))
    assert onnx_file.write_onnx(model, 64, {}, tmp_path / "model.onnx") <= 1e-5

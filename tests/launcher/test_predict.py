import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from method_settings import tiny_config
from PIL import Image
from prediction_tables import probabilities
from processes import ROOT, launch
from run_folders import read_record

from data.images import decode
from data.manifest import TEST, VALIDATION
from data.views import Views
from engine.metrics import classification_metrics
from launcher import run as launcher_run
from launcher.predict import main
from launcher.trained import load_trained

pytestmark = pytest.mark.usefixtures("fresh_processes")


def write_names(folder, names, column="image"):
    path = folder / "names.csv"
    path.write_text("\n".join([f"number,{column}", *(f"{n},{x}" for n, x in enumerate(names))]))
    return path


@pytest.mark.parametrize("method", ["qmix", "cross_entropy"])
@pytest.mark.parametrize(("split", "prefix"), [(VALIDATION, "validation"), (TEST, "eval")])
def test_a_runs_own_images_give_its_own_metrics(trained, predict, method, split, prefix):
    run = trained(method)
    names, labels = run.split(split)
    rows, printed = predict(run.run, write_names(run.data, names))

    assert [row["image"] for row in rows] == names
    found = classification_metrics(probabilities(rows), labels)
    line = read_record(run.run)[-1]
    told = {key: line[f"{prefix}/{key}"] for key in found}
    assert {key for key, value in told.items() if value is None} == {
        key for key, value in found.items() if math.isnan(value)
    }
    for key, value in told.items():
        assert value is None or found[key] == pytest.approx(value, abs=1e-6), key
    assert f"{len(names)} of {len(names)} images predicted" in printed
    assert f"{method}, {run.run}/checkpoints/epoch-0002" in printed


def test_a_checkpoint_may_be_named_and_does_not_need_its_run(trained, predict, tmp_path):
    run = trained("cross_entropy")
    names, labels = run.split(TEST)
    shutil.copytree(run.run / "checkpoints" / "epoch-0001", tmp_path / "alone")
    rows, _ = predict(tmp_path / "alone", write_names(run.data, names))
    found = classification_metrics(probabilities(rows), labels)
    first, last = read_record(run.run)
    assert found["auroc"] == pytest.approx(first["eval/auroc"], abs=1e-6)
    assert first["eval/auroc"] != pytest.approx(last["eval/auroc"], abs=1e-6)


def test_neither_training_data_nor_pretrained_weights_are_needed(
    trained, predict, tmp_path, monkeypatch
):
    run = trained("qmix")
    state_file = shutil.copytree(run.run / "checkpoints/epoch-0002", tmp_path / "c") / "state.json"
    state = json.loads(state_file.read_text())
    state["config"]["data"]["root"] = "/nowhere"
    state["config"]["model"]["weights"] = "/nowhere/resnet.pth"
    state_file.write_text(json.dumps(state))
    monkeypatch.setattr("launcher.assemble.load_source", lambda *_: pytest.fail("reads the data"))
    rows, _ = predict(tmp_path / "c", run.data / "images")
    assert len(rows) == 152
    assert {row["predicted"] for row in rows} <= {f"grade {n}" for n in range(5)}


def test_the_best_epoch_by_validation(trained, predict, tmp_path):
    run = shutil.copytree(trained("qmix").run, tmp_path / "run")
    images = [trained("qmix").data / "images" / "000.png"]
    lines = read_record(run)
    lines[0]["validation/kappa"], lines[1]["validation/kappa"] = 0.9, 0.1
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, printed = predict(run, *images, options=["--which", "best"])
    assert "checkpoints/epoch-0001" in printed
    _, printed = predict(run, *images, options=["--which", "last"])
    assert "checkpoints/epoch-0002" in printed

    shutil.rmtree(run / "checkpoints" / "epoch-0001")
    _, printed = predict(run, *images, options=["--which", "best"], code=2)
    assert "best epoch by validation is 1" in printed and "epoch-0001 is not there" in printed
    (run / "metrics.jsonl").write_text('{"epoch": 0, "eval/kappa": 0.5}\n')
    _, printed = predict(run, *images, options=["--which", "best"], code=2)
    assert "needs metrics of a validation set" in printed


def test_a_torn_checkpoint_is_passed_over(trained, tmp_path, caplog):
    run = shutil.copytree(trained("cross_entropy").run, tmp_path / "run")
    (run / "checkpoints/epoch-0002/method.safetensors").write_bytes(b"torn")
    assert load_trained(run).weights.folder.name == "epoch-0001"
    assert "epoch-0002: method.safetensors is missing or damaged" in caplog.text


def test_a_checkpoint_without_facts_has_numbers_for_names(trained, predict, tmp_path):
    run = trained("cross_entropy")
    folder = shutil.copytree(run.run / "checkpoints/epoch-0002", tmp_path / "old")
    state = json.loads((folder / "state.json").read_text())
    state["facts"] = {}
    (folder / "state.json").write_text(json.dumps(state))
    rows, _ = predict(folder, run.data / "images/000.png")
    assert rows[0]["predicted"] in "01234" and "probability_4" in rows[0]
    assert rows[0]["quality_warning"] == rows[0]["sharpness_rank"] == ""


def test_uncertainty_is_that_of_networks_and_views(trained, predict):
    run = trained("qmix")
    image = run.data / "images" / "007.png"
    rows, _ = predict(run.run, image)
    method = load_trained(run.run).method
    pixels = torch.from_numpy(decode(image, 32, "crop")).permute(2, 0, 1)[None]
    plain = Views(run.config.views, 0)(pixels, torch.zeros(1), 0, 0, "plain")
    with torch.no_grad():
        members = method(plain)[:, 0].double().numpy()
        upside_down = method(plain.flip(3))[:, 0].double().numpy()

    def check(row, members):
        mean = members.mean(0)
        total, own = (-(p * np.log(p)).sum(-1) / np.log(5) for p in (mean, members))
        assert probabilities([row])[0] == pytest.approx(mean, abs=1e-6)
        assert float(row["entropy"]) == pytest.approx(total, abs=2e-6)
        assert float(row["disagreement"]) == pytest.approx(total - own.mean(), abs=2e-6)

    check(rows[0], members)
    rows, _ = predict(run.run, image, options=["--views", "2"])
    check(rows[0], np.concatenate([members, upside_down]))
    assert not np.allclose(members, upside_down, atol=1e-6)


def test_one_network_and_one_view_cannot_disagree(trained, predict):
    run = trained("cross_entropy")
    rows, _ = predict(run.run, run.data / "images/000.png")
    assert rows[0]["disagreement"] == ""
    rows, _ = predict(run.run, run.data / "images/000.png", options=["--views", "4"])
    assert float(rows[0]["disagreement"]) > 0


def test_no_more_views_than_the_run_has_trained_on(trained, predict):
    run = trained("cross_entropy")
    rows, printed = predict(run.run, run.data, options=["--views", "5"], code=2)
    assert rows is None and "--views: found 5, expected at most 4" in printed


def test_unreadable_files_are_rows_of_their_own(trained, predict, tmp_path):
    run = trained("cross_entropy")
    good = (run.data / "images/000.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "good.png").write_bytes(good)
    names = ["torn.png", "good.png", "text.jpg", "absent.png", "empty.png", "", "float.tif"]
    rows, printed = predict(run.run, write_names(tmp_path, names), options=["--batch-size", "2"])
    assert [row["image"] for row in rows] == names
    for row in rows:
        values = [text for name, text in row.items() if name not in ("image", "error")]
        assert all(not text for text in values) == (row["image"] != "good.png")
        assert bool(row["error"]) == (row["image"] != "good.png")
    assert "no such file" in rows[3]["error"] and "floating-point" in rows[6]["error"]
    assert "1 of 7 images predicted, 6 unreadable (column error)" in printed


def test_nothing_readable_is_an_error_that_keeps_the_reasons(trained, predict, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    rows, printed = predict(trained("cross_entropy").run, tmp_path / "a.png", code=2)
    assert "no image format is recognised" in rows[0]["error"]
    assert "error: none of the 1 images could be read, the first because of: " in printed


def test_sizes_and_modes_are_read_as_in_training(trained, predict, tmp_path):
    run = trained("cross_entropy")
    pixels = np.array(Image.open(run.data / "images/000.png"))
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "rgb.png")
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    grey = np.array(picture.convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "grey_rgb.png")
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "grey16.png")
    Image.new("RGB", (1, 300), (200, 90, 40)).save(tmp_path / "tall.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "really_turned.png")
    rows, _ = predict(run.run, tmp_path, options=["--batch-size", "1"])
    found = dict(zip([row["image"] for row in rows], probabilities(rows), strict=True))
    assert list(found) == sorted(found) and len(found) == 8
    for name, same in [("rgba", "rgb"), ("grey", "grey_rgb"), ("grey16", "grey"),
                       ("turned", "rgb")]:  # fmt: skip
        assert found[f"{name}.png"].tolist() == found[f"{same}.png"].tolist()
    for name in ("grey", "tall", "really_turned"):
        assert found[f"{name}.png"].tolist() != found["rgb.png"].tolist()


def test_an_unsharp_and_a_dark_image_are_warned_of(trained, predict, tmp_path):
    run = trained("cross_entropy")
    pixels = np.array(Image.open(run.data / "images/000.png"))
    Image.fromarray(pixels).resize((5, 5)).resize((40, 40)).save(tmp_path / "blurred.png")
    Image.fromarray(pixels // 4).save(tmp_path / "dark.png")
    Image.fromarray(255 - (255 - pixels) // 4).save(tmp_path / "light.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    rows, printed = predict(run.run, tmp_path)
    warnings = {row["image"]: row["quality_warning"].split() for row in rows}
    assert "blurred" in warnings["blurred.png"] and "dark" in warnings["dark.png"]
    assert "bright" in warnings["light.png"] and warnings["plain.png"] == []
    assert "3 with a quality warning" in printed


WRONG_REQUESTS = [
    ("checkpoint", "data", "neither a run's folder (no checkpoints/) nor a checkpoint"),
    ("checkpoint", "nowhere", "neither a run's folder"),
    ("images", "nothing", "no images; expected files with the suffixes .jpg"),
    ("images", "nowhere", "nowhere: no such folder or file"),
    ("images", "nowhere.csv", "nowhere.csv: no such file"),
    ("images", "data/labels.csv", "required: picture"),
    ("images", "header.csv", "has no rows"),
    ("out", "nothing", "is a folder; expected a CSV file"),
]


@pytest.mark.parametrize(("option", "value", "message"), WRONG_REQUESTS)
def test_wrong_requests_are_one_line_and_write_nothing(
    trained, tmp_path, capsys, option, value, message
):
    run = trained("cross_entropy")
    (tmp_path / "data").symlink_to(run.data)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("no image")
    (tmp_path / "header.csv").write_text("picture\n")
    options = {"checkpoint": run.run, "images": tmp_path / "data", "out": tmp_path / "out.csv"}
    options |= {option: tmp_path / value}
    arguments = [text for name, path in options.items() for text in (f"--{name}", str(path))]
    assert main([*arguments, "--column", "picture"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert message in printed.err and printed.out == ""
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("sha256"), "state.json is not that of a checkpoint of a run"),
        (lambda state: state["config"]["model"].update(width=8), "its weights do not fit"),
        (
            lambda state: state["config"]["optim"].update(speed=8),
            "its configuration is not of this version; optim.speed: Extra inputs",
        ),
        (lambda state: state["facts"].pop("class_names"), "its facts are not of this version"),
    ],
)
def test_a_checkpoint_of_another_making_is_refused(trained, predict, tmp_path, change, message):
    source = trained("cross_entropy")
    folder = shutil.copytree(source.run / "checkpoints/epoch-0002", tmp_path / "foreign")
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    rows, printed = predict(folder, source.data, code=2)
    assert rows is None and printed.count("\n") == 1
    assert printed.startswith(f"error: {folder}: ") and message in printed


def test_which_is_refused_for_a_checkpoint(trained, predict):
    run = trained("cross_entropy")
    folder = run.run / "checkpoints" / "epoch-0001"
    rows, printed = predict(folder, run.data, options=["--which", "best"], code=2)
    assert rows is None and "chooses among those of a run's folder" in printed


def test_a_process_that_never_comes_is_one_line(trained, predict, monkeypatch):
    def wait(config):
        raise torch.distributed.DistStoreError("1/2 clients joined.\nmore")

    run = trained("cross_entropy")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("launcher.predict.start_processes", wait)
    _, printed = predict(run.run, run.data / "images/000.png", code=3)
    assert printed.endswith("process has gone or did not answer: 1/2 clients joined.\n")
    assert "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.skipif("MEDNOISE_REALDATA" not in os.environ, reason="MEDNOISE_REALDATA is not set")
def test_real_images_give_the_runs_own_metrics(predict, fresh_processes, tmp_path):
    root = Path(os.environ["MEDNOISE_REALDATA"]) / "busi"  # grey, of many sizes and shapes
    settings = tiny_config("gce", run={"epochs": 1, "dir": str(tmp_path / "run")})
    settings["data"] = {
        "source": "busi", "root": str(root), "image_size": 32, "resize": "pad", "num_workers": 0,
    }  # fmt: skip
    (tmp_path / "busi.yaml").write_text(yaml.safe_dump(settings))
    assert launcher_run.main(["--config", str(tmp_path / "busi.yaml")]) == 0
    fresh_processes()

    with (root / "manifest.csv").open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if row["split"] == "test"]
    names = write_names(tmp_path, [str(root / row["image"]) for row in listed], column="file")
    rows, _ = predict(tmp_path / "run", names, options=["--column", "file", "--num-workers", "2"])
    assert {row["predicted"] for row in rows} <= {"normal", "benign", "malignant"}
    found = classification_metrics(probabilities(rows), np.array([int(r["label"]) for r in listed]))
    last = read_record(tmp_path / "run")[-1]
    for name in ("accuracy", "kappa", "auroc"):
        assert found[name] == pytest.approx(last[f"eval/{name}"], abs=1e-6)


def test_processes_that_found_different_checkpoints_write_nothing(trained, predict, monkeypatch):
    run = trained("qmix")
    seen = []
    monkeypatch.setattr("launcher.predict.collectives.all_equal", seen.append)
    rows, printed = predict(run.run, run.data / "images", code=2)
    assert rows is None and printed.startswith("error: --checkpoint: the processes found different")
    assert len(seen) == 1 and seen[0].startswith("epoch-0002 ")


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_write_what_one_writes(trained, predict, tmp_path, num_processes):
    run = trained("qmix")
    names = [str(run.data / "images" / f"{n:03}.png") for n in range(41)]
    names.insert(17, str(tmp_path / "absent.png"))
    images = write_names(tmp_path, names)
    predict(run.run, images, options=["--batch-size", "8", "--views", "2"])
    arguments = [
        "--checkpoint", str(run.run), "--images", str(images), "--out", "several.csv",
        "--batch-size", "8", "--views", "2", "--num-workers", "1",
    ]  # fmt: skip
    done = launch(ROOT / "launcher/predict.py", arguments, num_processes, tmp_path)
    assert done.returncode == 0, done.stderr
    one = (tmp_path / "out/predictions.csv").read_bytes()
    assert (tmp_path / "several.csv").read_bytes() == one
    assert done.stdout.count("41 of 42 images predicted, 1 unreadable") == 1

"""Where launcher/predict.py writes: nothing else is lost, and no time on what cannot be written."""

import shutil

import pytest
from PIL import Image
from processes import ROOT, launch

pytestmark = pytest.mark.usefixtures("fresh_processes")


@pytest.fixture
def photos(tmp_path):
    """A folder of images and a file of notes; beside it a list that names the images, and a link.

    One of the images has the suffix of a list.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "b.csv")
    (folder / "notes.txt").write_text("seen by two readers")
    (tmp_path / "list.csv").write_text("image\nphotos/a.png\nphotos/b.csv\n")
    (tmp_path / "link.csv").symlink_to("list.csv")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("list.csv", "is one of --images"),
        ("link.csv", "is one of --images"),
        ("photos/a.png", "is one of --images"),
        ("photos/b.csv", "is one of --images"),
        ("photos/notes.txt", "is there and not a .csv"),
        ("photos", "is a folder"),
        ("photos/a.png/more/out.csv", "a.png: Not a directory"),
        ("/proc/nowhere/out.csv", "cannot be written: /proc: "),
    ],
)
def test_what_would_be_overwritten_or_cannot_be_written_is_refused_at_once(
    trained, predict, photos, tmp_path, monkeypatch, out, message
):
    monkeypatch.setattr("launcher.predict.predict", lambda *_: pytest.fail("predicts"))
    before, options = contents(tmp_path), ["--out", str(tmp_path / out)]
    _, printed = predict(
        trained("cross_entropy").run, tmp_path / "list.csv", options=options, code=2
    )
    line = printed.splitlines()[-1]
    assert line.startswith(f"error: --out: {tmp_path / out} ") and message in line
    assert contents(tmp_path) == before


def test_a_read_only_result_is_refused(trained, predict, tmp_path, monkeypatch):
    run, out = trained("cross_entropy"), tmp_path / "out" / "predictions.csv"
    out.parent.mkdir()
    out.write_text("kept")
    # Permissions hold for users, and tests may be run by the administrator.
    monkeypatch.setattr("launcher.predict.os.access", lambda path, mode: False)
    _, printed = predict(run.run, run.data / "images/000.png", code=2)
    assert f"{out} is read-only" in printed and out.read_text() == "kept"


def test_an_earlier_result_is_replaced(trained, predict, photos, tmp_path):
    run = trained("cross_entropy").run
    first, _ = predict(run, photos / "a.png")
    second, _ = predict(run, tmp_path / "list.csv")
    assert len(first) == 1 and len(second) == 2


def test_a_full_disk_leaves_the_earlier_result(trained, predict, tmp_path, monkeypatch):
    run = trained("cross_entropy")
    predict(run.run, run.data / "images/000.png")
    before = (tmp_path / "out/predictions.csv").read_bytes()

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launcher.predict.write_text", full)
    _, printed = predict(run.run, run.data / "images/001.png", code=2)
    assert "No space left" in printed
    assert (tmp_path / "out/predictions.csv").read_bytes() == before


def test_what_stops_the_command_leaves_neither_file_nor_folder(
    trained, predict, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    run = trained("cross_entropy")
    monkeypatch.setattr("launcher.predict.predict", fail)
    _, printed = predict(run.run, run.data / "images/000.png", code=2)
    assert "Input/output error" in printed and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_processes_refuse_in_one_line(trained, photos, tmp_path):
    arguments = ["--checkpoint", str(trained("cross_entropy").run), "--images", "list.csv"]
    done = launch(ROOT / "launcher/predict.py", [*arguments, "--out", "list.csv"], 2, tmp_path)
    assert done.returncode != 0 and done.stderr.count("list.csv is one of --images") == 1
    assert (tmp_path / "list.csv").read_text().startswith("image\n")

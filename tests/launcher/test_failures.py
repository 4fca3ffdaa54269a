"""What goes wrong for a user is one clear message, exit code 2 and nothing half done."""

import errno
import sys
from dataclasses import replace

import numpy as np
import pytest
from method_settings import METHOD_SETTINGS, write_config
from PIL import Image
from processes import ROOT
from processes import launch as launch_processes
from tiny_runs import make_config, make_trainer

from engine.checkpoint import CheckpointError, Checkpoints
from engine.plan import global_batches
from engine.record import Record
from engine.run_lock import RunLock
from launcher.assemble import load_noisy_data
from launcher.ends import USER_ERRORS
from launcher.run import main

pytestmark = pytest.mark.usefixtures("fresh_processes")


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command line, expects a refusal and returns what it says on one line or more."""

    def run(*arguments, method="cross_entropy", **sections):
        sections["run"] = {"dir": str(tmp_path / "run"), **sections.get("run", {})}
        path = write_config(tmp_path, method, **sections)
        assert main(["--config", str(path), *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ") and "Traceback" not in output.err
        return output.err.removeprefix("error: ").rstrip("\n")

    return run


def write_images(folder, num_images=40):
    """Two classes of noise as a folder of images."""
    rng = np.random.default_rng(0)
    for name in ("healthy", "ill"):
        (folder / name).mkdir(parents=True)
        for index in range(num_images):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return {"source": "folder", "root": str(folder)}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# -- before anything is written --------------------------------------------------------------------


WRONG_SETTINGS = [
    (["optim.lrr=0.1"], ["optim.lrr", "lr"]),
    (["optim.lr=1e-3.5"], ["command line: optim.lr"]),
    (["lr"], ["'lr'", "section.key=value"]),
    (["model.backbone=resnet19"], ["model.backbone", "resnet18"]),
    (["method.name=qmx"], ["method.name", "qmix", "cross_entropy"]),
    (["data.source=deepdrid"], ["root: not set", "deepdrid"]),
    (["data.source=folder", "data.root=nowhere"], ["nowhere"]),
    (["runtime.precision=fp16", "runtime.device=cpu"], ["runtime.precision: fp16 needs a GPU"]),
    (["optim.batch_size=1000"], ["optim.batch_size: 1000 is more than the 97", "at most 97"]),
    (["model.weights=nowhere.pth"], ["model.weights: no file nowhere.pth"]),
    (["model.norm=sync", "runtime.device=cpu"], ["model.norm: sync needs a GPU"]),
    (["optim.lr=.inf"], ["optim.lr: found Infinity, expected a finite number"]),
    (["run.seed=9223372036854775808"], ["run.seed: found 9223372036854775808", "expected"]),
    (["run.dir=''"], ["run.dir: found '', expected the name of a folder"]),
    (["runtime.timeout_seconds=1e10"], ["runtime.timeout_seconds: found 1", "<= 31536000"]),
    # A plan is refused for what a run would be refused for.
    (["--check", "optim.batch_size=1000"], ["optim.batch_size: 1000 is more than the 97"]),
    (["--check", "model.weights=nowhere.pth"], ["model.weights: no file nowhere.pth"]),
]


@pytest.mark.parametrize(
    ("arguments", "parts"), WRONG_SETTINGS, ids=[" ".join(case[0]) for case in WRONG_SETTINGS]
)
def test_wrong_settings_are_one_line_and_leave_nothing(
    refused, tmp_path, monkeypatch, arguments, parts
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused(*arguments)
    assert all(part in message for part in parts) and "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_all_wrong_settings_are_said_at_once(refused):
    lines = refused("optim.lr=-1", "run.epochs=0.5", "views.weak.crop=2", "nonsense=1").split("\n")
    for key in ("optim.lr", "run.epochs", "views.weak.crop", "nonsense"):
        assert [f"command line: {key}: " in line for line in lines].count(True) == 1
    assert len(lines) == 4


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_timm_absent_names_the_extra(refused, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'mednoise[timm]'" in refused("model.backbone=timm:x", method=method)


def test_an_absent_config_is_said(tmp_path, capsys):
    assert main(["--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err


def test_a_config_that_is_not_yaml_is_said(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("run: [1, 2\noptim: }")
    assert main(["--config", str(tmp_path / "broken.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'broken.yaml'}:") and "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "c.yaml", "--resume", "now"]])
def test_wrong_command_lines_print_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert "accelerate launch launcher/run.py --config" in output and "section.key=value" in output


def test_a_run_folder_that_cannot_be_made_is_said(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(f"run.dir={tmp_path / 'file' / 'run'}")
    assert str(tmp_path / "file" / "run") in message


# -- while training --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_a_loss_that_is_not_finite_names_samples(refused, method):
    message = refused("optim.lr=1e30", "optim.clip_norm=null", method=method)
    assert message.startswith("the loss is not finite on rank 0: ")
    assert "in a batch of 16 samples, first [" in message


def test_mixup_of_an_odd_batch_names_both_keys(refused):
    message = refused("optim.batch_size=15")
    assert "method.mixup_alpha" in message and "optim.batch_size" in message


@pytest.mark.parametrize(
    "arguments",
    [["--check"], ["data.num_workers=0"], ["data.num_workers=1"], ["data.cache=memory"]],
    ids=lambda value: value[0],
)
def test_a_damaged_image_is_named(refused, tmp_path, arguments):
    data = write_images(tmp_path / "images")
    truncate(tmp_path / "images" / "ill" / "7.png")
    message = refused(*arguments, data=data)
    assert f"{tmp_path / 'images' / 'ill' / '7.png'}: cannot be read as an image" in message
    assert "\n" not in message


@pytest.mark.parametrize("arguments", [[], ["--check"], ["--resume", "auto"]])
def test_a_file_in_the_place_of_the_run_is_named(refused, tmp_path, arguments):
    (tmp_path / "run").write_text("mine")
    message = refused(*arguments)
    assert message == f"run.dir: {tmp_path / 'run'} is a file, expected a folder or nothing"


def test_a_folder_with_a_run_is_refused_and_a_check_says_so(refused, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    message = f"run.dir: {tmp_path / 'run'} holds a run already; go on with --resume auto"
    assert refused().startswith(message)
    path = write_config(tmp_path, "cross_entropy", run={"dir": str(tmp_path / "run")})
    assert main(["--config", str(path), "--check"]) == 0
    assert message in caplog.text
    caplog.clear()
    assert main(["--config", str(path), "--check", "--resume", "auto"]) == 0
    assert "holds a run" not in caplog.text


def test_settings_that_were_damaged_before_the_first_checkpoint_are_written_anew(tmp_path):
    run = {"dir": str(tmp_path / "run"), "epochs": 1}
    path = write_config(tmp_path, "cross_entropy", run=run)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("run: [")
    assert main(["--config", str(path), "--resume", "auto"]) == 0
    assert "epochs: 1" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_full_disk_is_said_and_the_run_goes_on_afterwards(refused, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(Checkpoints, "save", lambda *_: (_ for _ in ()).throw(full))
        assert "No space left on device" in refused()
    arguments = ["--config", str(tmp_path / "config.yaml")]
    assert main(arguments) == 2  # the folder is taken
    assert main([*arguments, "--resume", "auto"]) == 0


@pytest.mark.slow
def test_what_a_later_process_alone_cannot_read_is_said(tmp_path):
    """Rank 0 only learns that another process is gone."""
    data = write_images(tmp_path / "images")
    path = write_config(tmp_path, "cross_entropy", data=data)
    source = load_noisy_data(make_config("cross_entropy", data=data)).source
    train_ids = source.manifest.where(0)
    first_of_rank_1 = global_batches(7, 0, train_ids, 16)[0, 8]
    damaged = tmp_path / "images" / source.manifest.names[int(first_of_rank_1)]
    truncate(damaged)
    result = launch_processes(
        ROOT / "launcher" / "run.py", ["--config", str(path)], num_processes=2, cwd=tmp_path
    )
    assert result.returncode != 0
    assert f"error: {damaged}: cannot be read as an image" in result.stderr


@pytest.mark.slow
def test_a_mistake_is_said_once_where_rank_0_is_the_last_to_start(tmp_path):
    """The launcher ends all processes with the first that fails, which has to have said why."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, sys, time\n"
        "time.sleep(3 * (os.environ['RANK'] == '0'))\n"
        "from launcher.run import main\n"
        "sys.exit(main())\n"
    )
    path = write_config(tmp_path, "cross_entropy")
    result = launch_processes(late, ["--config", str(path), "optim.lrr=1"], 2, tmp_path)
    assert result.returncode != 0
    assert result.stderr.count("error: command line: optim.lrr: unknown key") == 1


@pytest.mark.slow
def test_what_all_processes_see_in_the_data_is_said_once(tmp_path):
    data = write_images(tmp_path / "images")
    (tmp_path / "images" / "ill" / "scan.gif").touch()
    path = write_config(tmp_path, "cross_entropy", data=data)
    run = ROOT / "launcher" / "run.py"
    result = launch_processes(run, ["--config", str(path), "--check"], 2, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("files passed over (1), such as ill/scan.gif") == 1


def test_a_mistake_that_rank_0_has_not_lived_to_say_is_said(monkeypatch, tmp_path, capsys):
    waited = []
    monkeypatch.setattr("launcher.ends.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert waited == [30]
    assert "nowhere.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("label", 5, r"made with 5 samples, the data now have \d+; put back"),
        ("running_prediction", 3, r"made with 3 classes, the data now have 5; put back"),
    ],
)
def test_a_checkpoint_of_other_data_is_refused(column, rows, message):
    trainer = make_trainer(make_config("gce"))
    snapshot = trainer.snapshot({}, {}, "")
    table = snapshot.ledger[column]
    other = table[:rows] if column == "label" else table[:, :rows]
    with pytest.raises(CheckpointError, match=message):
        trainer.require_same_labels(replace(snapshot, ledger={**snapshot.ledger, column: other}))


def write_table(path, rows):
    lines = [f"{name}/{i}.png,{name},{split}" for name, i, split in rows]
    path.write_text("\n".join(["image,label,split", *lines]) + "\n")


ROWS = [
    (name, i, "test" if i % 3 == 2 else "train") for name in ("healthy", "ill") for i in range(24)
]
OTHER_ROWS = {
    "splits": [(name, i, "test" if i % 3 == 1 else "train") for name, i, _ in ROWS],
    "images": [(name, (i + 3) % 24, split) for name, i, split in ROWS],
}


@pytest.mark.parametrize("what", OTHER_ROWS)
def test_a_run_does_not_go_on_with_other_samples_of_the_same_labels(
    tmp_path, capsys, refused, what
):
    """Else it would be tested with what it has learned, or take one image for another."""
    table, run = tmp_path / "table.csv", tmp_path / "run"
    data = write_images(tmp_path / "images", 24) | {"source": "csv", "labels": str(table)}
    sections = {"data": data, "noise": {"kind": "none", "mis_h": 0.0, "mis_l": 0.0}}
    write_table(table, ROWS)
    path = write_config(tmp_path, "cross_entropy", run={"dir": str(run), "epochs": 1}, **sections)
    assert main(["--config", str(path)]) == 0
    capsys.readouterr()
    before = (run / "config.yaml").read_text()
    write_table(table, OTHER_ROWS[what])
    message = refused("--resume", "auto", **sections)
    assert f"made with other {what}, or with the same in another order; put back" in message
    assert (run / "config.yaml").read_text() == before
    write_table(table, ROWS)
    path = write_config(tmp_path, "cross_entropy", run={"dir": str(run), "epochs": 2}, **sections)
    assert main(["--config", str(path), "--resume", "auto"]) == 0


@pytest.mark.parametrize("what", ["load_noisy_data", "train"])
def test_a_process_that_goes_at_any_time_is_named(monkeypatch, tmp_path, capsys, what):
    def lose(*arguments):
        monkeypatch.setattr("launcher.run.is_lost_process", lambda error: True)
        raise RuntimeError("[pair.cc] Connection closed by peer\nmore")

    monkeypatch.setattr(f"launcher.run.{what}", lose)
    config = write_config(tmp_path, "gce", run={"dir": str(tmp_path / "run")})
    assert main(["--config", str(config)]) == 3
    error = capsys.readouterr().err
    assert "another process has gone or did not answer within" in error
    assert "Connection closed by peer; go on" in error and "Traceback" not in error


def test_two_runs_do_not_share_a_folder(tmp_path, capsys):
    config = write_config(tmp_path, "gce", run={"dir": str(tmp_path / "run"), "epochs": 1})
    lock = RunLock(tmp_path / "run")
    lock.take()
    assert main(["--config", str(config), "--resume", "auto"]) == 2
    assert "run is in use by process " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    lock.release()


@pytest.mark.parametrize("line", [b'{"epo\x00', b"[1]", b'{"eval/kappa": 1}'])
def test_a_damaged_record_names_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 0}\n' + line + b'\n{"epoch": 2}')
    with pytest.raises(USER_ERRORS, match=r"metrics.jsonl, line 2: damaged"):
        Record.read(path)

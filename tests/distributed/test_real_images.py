"""QMix on the photographs of the DeepDRiD pack, on two processes, as a user would start it."""

import json
import os

import pytest
import yaml
from method_settings import write_config
from processes import ROOT, launch

REALDATA = os.environ.get("MEDNOISE_REALDATA")
METRICS = (
    "quadratic weighted kappa",
    "accuracy",
    "balanced accuracy",
    "macro F1",
    "macro one-vs-rest AUROC",
)


@pytest.mark.slow
@pytest.mark.skipif(not REALDATA, reason="MEDNOISE_REALDATA names no folder of real images")
def test_two_processes_train_on_fundus_photographs(tmp_path):
    config = write_config(
        tmp_path,
        "qmix",
        run={"epochs": 2},
        data={"source": "deepdrid", "validation_fraction": 0.1, "cache": "memory"},
        noise={"mis_h": 0.4, "mis_l": 0.15},
        optim={"batch_size": 64},
        evaluation={"batch_size": 64},
    )
    arguments = ["--config", str(config), f"data.root={REALDATA}/deepdrid"]
    result = launch(ROOT / "launcher" / "run.py", arguments, 2, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]

    table = result.stdout.splitlines()
    for name in METRICS:
        (row,) = (line for line in table if line.startswith(name))
        values = [float(cell) for cell in row.removeprefix(name).split()]
        assert len(values) == 3  # best, last, mean of last five
        assert all(-1 <= value <= 1 for value in values)
    header = next(n for n, line in enumerate(table) if line.startswith("group "))
    groups = [line.split()[0] for line in table[header + 2 : header + 5]]
    assert groups == ["Correct", "Mis-H", "Mis-L"]
    assert any(line.startswith("labels thought wrong: ") for line in table[header + 5 :])
    assert table[-1] == "run folder: run"

    folder = tmp_path / "run"
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [0, 1]
    # 1,200 photographs less a tenth of the patients, four photographs each, for validation.
    num_trained = 1080
    true_counts = [epochs[1][f"separation/num_true/{group}"] for group in ("mis_h", "mis_l")]
    assert true_counts == pytest.approx([0.4 * num_trained, 0.15 * num_trained], rel=0.02)
    groups = [f"separation/num_assigned/{group}" for group in ("correct", "mis_h", "mis_l")]
    assert sum(epochs[1][group] for group in groups) == pytest.approx(num_trained, rel=0.02)
    assert "separation/auc" not in epochs[0]  # warm-up
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["data"]["root"] == f"{REALDATA}/deepdrid"
    assert (folder / "checkpoints" / "epoch-0002" / "state.json").is_file()

"""The benchmark of a GPU, on a CPU and at a size of seconds."""

import json

import gpu
import pytest
import trainers

TINY = ["data.image_size=32", "optim.batch_size=8", "model.backbone=small_resnet", "model.width=4"]


@pytest.mark.slow
def test_every_method_has_its_figures_in_the_last_line(capsys, fresh_processes):
    settings = [word for setting in TINY for word in ("--set", setting)]
    assert gpu.main(["--steps", "2", "--matrix", "64", "--precisions", "fp32", *settings]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["figures"].keys() == {"qmix fp32 eager", "sscl fp32 eager"}
    for found in line["figures"].values():
        assert found["images_per_second"] == pytest.approx(8e3 / found["ms_step"], rel=1e-3)
        assert found["teraflops"] > 0 and found["ms_views"] > 0 and found["ms_passes"] > 0


def test_the_timed_steps_are_past_warm_up_and_move_nothing(fresh_processes):
    trainer = trainers.build("qmix", 2, [*TINY, "runtime.device=cpu"])
    assert trainer.method.views(0).keys() != trainer.method.views(trainers.EPOCH).keys()
    ids, images = trainers.first_batch(trainer)
    assert images.shape == (8, 3, 32, 32) and len(set(ids.tolist())) == 8
    views = trainers.make_views(trainer, ids, images)
    before = {name: p.clone() for name, p in trainer.method.named_parameters()}
    trainers.take_step(trainer, ids, views)
    assert all(p.equal(before[name]) for name, p in trainer.method.named_parameters())

"""The grid of the benchmark of robustness: which cells there are and how each is configured."""

from pathlib import Path

import pytest
from processes import ROOT
from robustness_grid import BEDS, METHODS, NOISES, ORDER_OF_NOISES, SEEDS, Cell, select

from engine.config import differences, load_config
from launcher import settings
from launcher.settings import Config
from launcher.sweep import Sweep, cells_of

OUT = Path("out")


@pytest.fixture(autouse=True)
def _packs(monkeypatch):
    monkeypatch.setenv("MEDNOISE_REALDATA", "/packs")


def test_words_choose_cells():
    assert len(select([])) == len(BEDS) * len(NOISES) * len(METHODS) * len(SEEDS)
    assert select(["digits", "sym40", "seed1", "qmix"]) == [Cell("digits", "sym40", "qmix", 1)]
    assert {cell.noise for cell in select(["mixed", "clean"])} == {"mixed", "clean"}
    assert {cell.seed for cell in select(["seed0"])} == {0}
    with pytest.raises(ValueError, match="unknown digit; choose from digits, synthetic, busi"):
        select(["digit"])


def test_the_work_goes_by_bed_and_noise_and_compares_all_methods_before_the_next_seed():
    cells = select(["qmix", "gce", "digits", "busi", "sym40", "clean"])
    assert [str(cell) for cell in cells[:7]] == [
        "digits-sym40-gce-seed0", "digits-sym40-qmix-seed0", "digits-sym40-gce-seed1",
        "digits-sym40-qmix-seed1", "digits-sym40-gce-seed2", "digits-sym40-qmix-seed2",
        "digits-clean-gce-seed0",
    ]  # fmt: skip
    assert list(dict.fromkeys(cell.bed for cell in cells)) == ["digits", "busi"]
    assert sorted(ORDER_OF_NOISES) == sorted(NOISES)


def test_the_file_of_methods_names_methods_and_beds():
    assert set(METHODS) <= set(settings.METHODS)
    for method, by_bed in METHODS.items():
        assert set(by_bed) <= {"all", *BEDS}, method


@pytest.mark.parametrize("bed", BEDS)
def test_each_method_has_a_configuration(bed):
    for method in METHODS:
        config = Cell(bed, "sym40", method, 1).compose(OUT)
        assert (config.data.source, config.method.name, config.run.seed) == (bed, method, 1)
        assert config.run.dir == OUT / f"{bed}-sym40-{method}-seed1"
        assert config.data.root == (Path("/packs", bed) if BEDS[bed].has_files else None)


@pytest.mark.parametrize("bed", BEDS)
def test_each_noise_has_a_configuration(bed):
    for noise, (kind, mis_h, mis_l) in NOISES.items():
        found = Cell(bed, noise, "cross_entropy", 1).compose(OUT).noise
        if kind == "pair_flip":
            assert (found.kind, len(found.matrix)) == ("matrix", BEDS[bed].num_classes)
        else:
            assert (found.kind, found.mis_h, found.mis_l) == (kind, mis_h, mis_l)


@pytest.mark.parametrize("bed", BEDS)
def test_all_cells_of_a_bed_share_everything_but_noise_and_method(bed):
    plain = load_config(
        Config, ROOT / "configs" / f"cross_entropy_{bed}.yaml", ["data.root=/packs"]
    )
    for cell in select([bed, "seed0", "qmix", "cross_entropy"]):
        config = cell.compose(OUT)
        assert (
            differences(plain, config, ["run.dir", "data.root", "noise", "method", "tracking"])
            == []
        )


@pytest.mark.parametrize(
    ("bed", "noise"), [("synthetic", "mixed"), ("digits", "sym40"), ("deepdrid", "mixed")]
)
@pytest.mark.parametrize("method", ["qmix", "cross_entropy"])
def test_a_cell_is_the_configuration_of_the_same_name(bed, noise, method):
    path = ROOT / "configs" / f"{method}_{bed}.yaml"
    config = load_config(Config, path, ["data.root=/packs", "run.seed=2"])
    cell = Cell(bed, noise, method, 2).compose(OUT)
    assert differences(config, cell, ["run.dir", "data.root", "tracking"]) == []


def test_settings_win_over_the_file_and_the_grid():
    cell = Cell("digits", "sym40", "qmix", 0)
    config = cell.compose(OUT, ["run.epochs=3", "method.warmup_epochs=2", "noise.seed=5"])
    assert (config.run.epochs, config.method.warmup_epochs, config.noise.seed) == (3, 2, 5)
    assert config.noise.mis_h == 0.4  # the rest of a section stays
    assert config.method.ema_decay == 0.98


def test_asymmetric_noise_turns_a_class_into_the_next():
    config = Cell("busi", "asym40", "gce", 0).compose(OUT)
    assert config.noise.matrix == ((0.6, 0.4, 0), (0, 0.6, 0.4), (0.4, 0, 0.6))


@pytest.mark.parametrize(
    ("noise", "rate"), [("clean", 0.05), ("sym20", 0.2), ("asym40", 0.4), ("mixed", 0.55)]
)
def test_coteaching_is_told_how_much_the_noise_hits(noise, rate):
    section = Cell("digits", noise, "coteaching", 0).method_section()
    assert section == {"name": "coteaching", "ramp_epochs": 10, "forget_rate": rate}


def test_the_default_sweep_has_the_grids_settings_but_for_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = load_config(Sweep, ROOT / "configs" / "sweeps" / "default.yaml")
    assert set(sweep.methods) == set(METHODS) and tuple(sweep.seeds) == SEEDS
    for cell in cells_of(sweep):
        of_grid = Cell("synthetic", cell.noise, cell.method, cell.seed).compose(OUT)
        is_other = (cell.noise, cell.method) == ("mixed", "coteaching")
        expected = ["method.forget_rate: 0.55 -> 0.4"] if is_other else []
        assert differences(of_grid, cell.compose(), ["run.dir", "tracking"]) == expected, cell


def test_the_default_sweep_says_what_it_has_otherwise():
    header = (ROOT / "configs" / "sweeps" / "default.yaml").read_text().partition("\nbase:")[0]
    assert "benchmark's forget_rate is 0.55" in header and "here 0.4" in header


def test_what_is_given_for_a_bed_wins():
    section = Cell("synthetic", "sym40", "dividemix", 0).method_section()
    assert (section["warmup_epochs"], section["lambda_u"]) == (13, 5.0)

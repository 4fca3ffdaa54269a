import json
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.config import ConfigError, differences, dump_config, fingerprint, load_config


class Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class Optim(Section):
    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(32, ge=1, le=4096)
    betas: tuple[float, float] = (0.9, 0.999)
    nesterov: bool = False
    clip: float | None = None
    crop: float | tuple[float, float] = 1
    seed: Literal["auto"] | int = "auto"

    @model_validator(mode="after")
    def check(self):
        if self.nesterov and self.clip:
            raise ValueError("nesterov and clip exclude each other")
        return self


class Data(Section):
    root: Path | None = None
    name: str = "digits"
    kind: Literal["symmetric", "asymmetric"] = "symmetric"
    sizes: tuple[int, ...] = Field((32,), min_length=1)
    weights: dict[str, float] = {}
    costs: dict[Literal["hit", "miss"], float] = {}

    @field_validator("name")
    @classmethod
    def check_name(cls, name):
        if " " in name:
            raise ValueError(f"{name!r} holds a space")
        return name


class Warmup(Section):
    epochs: int = 1


class Plain(Section):
    name: Literal["plain"] = "plain"
    smoothing: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False)


class Mixing(Section):
    name: Literal["mixing"] = "mixing"
    alpha: float = 4.0
    warmup: Warmup = Warmup()


class Config(Section):
    data: Data = Data()
    method: Annotated[Plain | Mixing, Field(discriminator="name")] = Plain()
    optim: Optim = Optim()
    extra: Warmup | None = None
    spare: Annotated[Plain | Mixing, Field(discriminator="name")] | None = None

    @model_validator(mode="after")
    def check(self):
        if self.data.name == "none" and self.method.name == "mixing":
            raise ValueError("mixing needs data")
        return self


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a config from text in the file x.yaml."""
    monkeypatch.chdir(tmp_path)

    def load_text(text, *overrides):
        Path("x.yaml").write_text(text, encoding="utf-8")
        return load_config(Config, Path("x.yaml"), overrides)

    return load_text


@pytest.fixture
def errors(load):
    """Return the lines of the error that a config gives."""

    def lines(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return lines


def test_command_line_wins_over_file_wins_over_defaults(load):
    config = load("optim: {lr: 0.5, batch_size: 8}", "optim.lr=5e-4", "data.sizes=[1, 2]")

    assert config.optim.lr == 5e-4
    assert config.optim.batch_size == 8
    assert config.optim.betas == (0.9, 0.999)
    assert config.data.sizes == (1, 2)


def test_the_last_override_of_a_key_wins_and_null_unsets(load):
    config = load("optim: {clip: 3.0}", "optim.lr=1", "optim.lr=2", "optim.clip=null")

    assert config.optim.lr == 2
    assert config.optim.clip is None


def test_override_replaces_or_opens_a_whole_section(load):
    config = load("method: {name: plain, smoothing: 0.1}", "method={name: mixing, alpha: 2}")
    assert config.method == Mixing(alpha=2)
    assert load("{}", "extra.epochs=7").extra == Warmup(epochs=7)
    assert load("extra: {epochs: 3}", "extra=null").extra is None


def test_override_leaves_the_other_user_of_an_anchor_alone(load):
    text = "method: &m {name: mixing, warmup: &w {epochs: 2}}\nextra: *w\nspare: *m"
    config = load(text, "method.warmup.epochs=9")

    assert config.method.warmup.epochs == 9
    assert config.extra.epochs == 2
    assert config.spare.warmup.epochs == 2


def test_numbers_and_words_mean_what_they_look_like(load):
    text = "data: {name: no, weights: {on: 1}}\noptim: {lr: 1e-3, batch_size: 010}"
    config = load(text, "data.root=off", "optim.clip=5E-1")

    assert config.data == Data(name="no", weights={"on": 1}, root=Path("off"))
    assert config.optim == Optim(lr=0.001, batch_size=10, clip=0.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr=fast", "optim.lr: found 'fast', expected a number > 0"),
        ("optim.lr=0", "optim.lr: found 0, expected a number > 0"),
        ("optim.lr=true", "optim.lr: found true (a boolean), expected a number > 0"),
        ("optim.lr='0.5'", "found text '0.5', expected a number > 0; remove the quotes"),
        ("optim.lr=", "optim.lr: found null, expected a number > 0"),
        ("optim.batch_size=1.0", "found 1.0 (a number), expected a whole number >= 1 and <= 4096"),
        ("optim.batch_size=1e3", "found 1000.0 (a number), expected a whole number >= 1"),
        ("optim.batch_size=5000", "found 5000, expected a whole number >= 1 and <= 4096"),
        ("optim.nesterov=yes", "optim.nesterov: found 'yes', expected true or false"),
        ("optim.clip=x", "optim.clip: found 'x', expected a number or null"),
        ("optim.betas=[1, x]", "optim.betas[1]: found 'x', expected a number"),
        ("optim.betas=[1]", "optim.betas[1]: missing; expected a number"),
        ("optim.betas=[1, 2, 3]", "found [1, 2, 3], expected a list [a number, a number]"),
        ("optim.crop=[1]", "optim.crop: found [1], expected a number or a list [a number, a num"),
        ("optim.crop=[1, {x: 1}]", 'optim.crop: found [1, {"x": 1}], expected a number or a list'),
        ("optim.seed=0.5", "optim.seed: found 0.5 (a number), expected 'auto' or a whole number"),
        ("optim=null", "optim: found null, expected a section"),
        ("optim=3", "optim: found 3 (a whole number), expected a section"),
        ("data.name=true", "data.name: found true (a boolean), expected text; put it in quotes"),
        ("data.name=12", """put it in quotes: "12", in a shell '"12"'"""),
        ("data.root=3", "data.root: found 3 (a whole number), expected a path or null; put it in"),
        ("data.name=[a]", 'data.name: found ["a"], expected text'),
        ("data.name=a b", "data.name: 'a b' holds a space"),
        ("data.kind=symetric", "expected 'symmetric' or 'asymmetric'; did you mean 'symmetric'?"),
        ("data.sizes=[]", "found [], expected a list of at least 1 items (each item a whole numb"),
        ("data.weights.a=x", "data.weights.a: found 'x', expected a number"),
        (
            "method={name: plain, smoothing: .nan}",
            "smoothing: found NaN, expected a finite number",
        ),
        (
            "method.name=mixng",
            "method.name: found 'mixng', expected 'mixing' or 'plain'; did you m",
        ),
        ("method.name=3", "method.name: found 3 (a whole number), expected 'mixing' or 'plain'"),
        ("method={alpha: 1}", "method.name: missing; expected 'mixing' or 'plain'"),
        ("method=plain", "method: found 'plain', expected a section"),
        ("spare.name=x", "spare.name: found 'x', expected 'mixing' or 'plain'"),
        ("extra.epochs=x", "extra.epochs: found 'x', expected a whole number"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(errors, setting, message):
    keys, _, value = setting.partition("=")
    (line,) = errors("{}", setting)
    assert line.startswith(f"command line: {keys.split('.')[0]}")
    assert message in line

    text = value
    for key in reversed(keys.split(".")):
        text = f"{{{key}: {text}}}"
    (line,) = errors(text)
    assert line.startswith("x.yaml: ")
    assert message in line


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimm.lr", "optimm: unknown key; did you mean 'optim'? allowed: data, method, optim"),
        ("optim.lrr", "optim.lrr: unknown key; did you mean 'lr'? allowed: lr, batch_size, betas"),
        ("optim.BatchSize", "optim.BatchSize: unknown key; did you mean 'batch_size'?"),
        ("optim.zzz", "optim.zzz: unknown key; allowed: lr, batch_size"),
        ("extra.epoch", "extra.epoch: unknown key; did you mean 'epochs'? allowed: epochs"),
        ("method.alhpa", "method.alhpa: unknown key; did you mean 'alpha'? allowed: name, alpha"),
        ("method.smoothing", "method.smoothing: unknown key; allowed: name, alpha, warmup"),
        ("method.warmup.epoch", "method.warmup.epoch: unknown key; did you mean 'epochs'?"),
        ("spare.alfa", "spare.alfa: unknown key; did you mean 'alpha'?"),
        ("spare.warmup.x", "spare.warmup.x: unknown key; allowed: epochs"),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_name(errors, key, message):
    text = "method: {name: mixing}\nspare: {name: mixing}"
    (line,) = errors(text, f"{key}=3")
    assert line.startswith(f"command line: {message}")

    tree = yaml.safe_load(text)
    branch = tree
    for part in key.split(".")[:-1]:
        branch = branch.setdefault(part, {})
    branch[key.rpartition(".")[2]] = 3
    (line,) = errors(yaml.safe_dump(tree))
    assert line.startswith(f"x.yaml: {message}")


@pytest.mark.parametrize("override", ["foo", "=1", "optim..lr=1", ".lr=1", "optim.=1", ""])
def test_an_override_needs_a_key_and_a_value(errors, override):
    (line,) = errors("{}", override)
    assert line == f"command line: found '{override}', expected section.key=value"


def test_all_errors_come_at_once_each_with_its_origin(errors):
    lines = errors(
        "data: {sizes: [a, b]}\noptim: {lrr: 1, lr: fast}\noptim: {lr: -1}\n",
        "optim.batch_size=0.5",
        "nonsense",
        "data.root=[1",
        "data.kin=x",
    )

    starts = [
        "x.yaml:3: key 'optim' is given twice, first in line 2",
        "command line: found 'nonsense'",
        "command line: data.root: while parsing a flow sequence",
        "x.yaml: data.sizes[0]: found 'a'",
        "x.yaml: data.sizes[1]: found 'b'",
        "command line: data.kin: unknown key; did you mean 'kind'?",
        "x.yaml: optim.lr: found -1",
        "command line: optim.batch_size: found 0.5",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_validators_of_a_section_are_reported_with_its_path(errors):
    message = "optim: nesterov and clip exclude each other"
    assert errors("optim: {nesterov: true, clip: 1}") == [f"x.yaml: {message}"]
    assert errors("{}", "optim.nesterov=true", "optim.clip=1") == [f"command line: {message}"]
    both = errors("optim: {nesterov: true}", "optim.clip=1")
    assert both == [f"x.yaml with command line: {message}"]
    assert errors("{}", "optim={nesterov: true, clip: 1}") == [f"command line: {message}"]


def test_validators_of_the_root_are_reported_without_a_path(errors):
    lines = errors("data: {name: none}\nmethod: {name: mixing}")
    assert lines == ["x.yaml: mixing needs data"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("optim:\n  lr: [1\n", "x.yaml:3: while parsing a flow sequence from line 2: "),
        ("optim:\n  lr: 1\n  lr: 2\n", "x.yaml:3: key 'lr' is given twice, first in line 2"),
        ("- 1\n", "x.yaml: found [1], expected a mapping of sections"),
        ("just text\n", "x.yaml: found 'just text', expected a mapping of sections"),
        ("# only a comment\n", "x.yaml: found nothing, expected a mapping of sections"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_its_line(errors, text, start):
    (line,) = errors(text)
    assert line.startswith(start)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("data: {}\nname: Häm".encode("latin-1"))

    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load_config(Config, tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: not UTF-8 text"):
        load_config(Config, tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match=r"nope.*\n.*found 'foo', expected section\.key=value"):
        load_config(Config, tmp_path / "nope.yaml", ["foo"])


def test_union_members_need_no_tag_and_may_be_given_in_any_form(load):
    assert load("optim: {crop: 0.5}").optim.crop == 0.5
    assert load("optim: {crop: [0.5, 1]}").optim.crop == (0.5, 1.0)
    assert load("optim: {seed: 3}").optim.seed == 3


def test_dump_is_readable_and_complete():
    config = Config(data=Data(root=Path("data/x"), sizes=(1, 2)), method=Mixing())

    assert dump_config(config).splitlines()[:9] == [
        "data:",
        "  root: data/x",
        "  name: digits",
        "  kind: symmetric",
        "  sizes: [1, 2]",
        "  weights: {}",
        "  costs: {}",
        "method:",
        "  name: mixing",
    ]


def test_a_dump_loads_back_to_an_equal_config(load):
    config = Config(
        data=Data(root=Path("no"), name="1e-3", weights={"on": math.inf}),
        method=Mixing(alpha=1e-5),
        extra=Warmup(epochs=3),
    )
    assert load(dump_config(config)) == config


def test_equal_configs_have_equal_fingerprints(load):
    config = Config(data=Data(root=Path("a")), method=Mixing())
    loaded = load(dump_config(config))  # crop is the integer 1 in one, 1.0 in the other

    assert len(fingerprint(config)) == 64
    assert fingerprint(loaded) == fingerprint(config)
    assert fingerprint(yaml.safe_load(dump_config(config))) == fingerprint(config)
    assert fingerprint(json.loads(config.model_dump_json())) == fingerprint(config)


def test_fingerprint_counts_each_setting_but_the_excluded():
    config = Config()
    other = Config(optim=Optim(lr=2e-3))

    assert fingerprint(config) != fingerprint(other)
    assert fingerprint(config, ["optim.lr"]) == fingerprint(other, ["optim.lr"])
    assert fingerprint(config, ["optim"]) == fingerprint(other, ["optim"])
    assert fingerprint(config, ["optim.l", "opt", "data"]) != fingerprint(other, ["data"])


def test_differences_name_each_changed_setting():
    old = Config(data=Data(sizes=(1, 2)), method=Plain())
    new = Config(data=Data(name="busi"), method=Mixing(alpha=2), optim=Optim(lr=5e-4))

    assert differences(old, old) == []
    assert differences(old, new, exclude=["method.warmup"]) == [
        'data.name: "digits" -> "busi"',
        "data.sizes: [1, 2] -> [32]",
        'method.name: "plain" -> "mixing"',
        "method.smoothing: 0 -> (absent)",
        "optim.lr: 0.001 -> 0.0005",
        "method.alpha: (absent) -> 2",
    ]
    assert differences(old, new, exclude=["data", "method"]) == ["optim.lr: 0.001 -> 0.0005"]


def test_differences_take_the_tree_of_a_saved_config():
    saved = yaml.safe_load(dump_config(Config()))

    assert differences(saved, Config()) == []
    assert differences(saved, Config(extra=Warmup())) == [
        "extra: null -> (absent)",
        "extra.epochs: (absent) -> 1",
    ]
    del saved["optim"]["lr"]
    assert differences(saved, Config()) == ["optim.lr: (absent) -> 0.001"]


def test_differences_see_values_that_are_not_equal_to_themselves():
    config = Config(optim=Optim.model_construct(lr=math.nan))
    assert differences(config, config) == []

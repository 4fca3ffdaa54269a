import pytest

from engine.runtime import wandb_mode

VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_environment_decides(monkeypatch, variables, mode):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


@pytest.mark.parametrize(
    ("server", "mode"),
    [("", "online"), ("https://api.wandb.ai", "online"), ("https://wandb.mine.org", "offline")],
)
def test_the_key_of_wandb_login_counts_for_its_server(monkeypatch, tmp_path, server, mode):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert wandb_mode() == mode


def test_a_key_file_that_makes_no_sense_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine machine machine")
    assert wandb_mode() == "offline"

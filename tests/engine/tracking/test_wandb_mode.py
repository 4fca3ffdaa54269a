import pytest

from engine.runtime import wandb_mode

VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


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


def test_the_server_that_wandb_login_noted_counts(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine wandb.mine.org login user password secret\n")
    assert wandb_mode() == "offline"
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.mine.org\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    assert wandb_mode() == "offline"
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / "settings").write_text("no settings")
    assert wandb_mode() == "offline"


def test_a_key_file_that_makes_no_sense_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine machine machine")
    assert wandb_mode() == "offline"

import logging

import pytest
import safetensors.torch
import torch
from torch import nn

from methods.networks import ModelConfig, build_network
from methods.weights import ModelError, load_weights


def encoder(fill):
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    for parameter in module.parameters():
        nn.init.constant_(parameter, fill)
    return module


def write(path, state, wrapped=False):
    """Write a weights file of the kind that its ending says."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return path


def refusal(module, path):
    """The message of the refusal, which must leave the module as it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(module, path)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    message = str(caught.value)
    assert message.startswith("model.weights: ") and str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_each_kind_of_file_are_loaded(tmp_path, caplog, name, wrapped):
    module, path = encoder(0.0), tmp_path / name
    write(path, encoder(2.0).state_dict() | {"fc.weight": torch.ones(9, 2)}, wrapped)
    with caplog.at_level(logging.INFO):
        load_weights(module, path)
    assert all((parameter == 2).all() for parameter in module.parameters())
    assert "loaded 7 tensors" in caplog.text


@pytest.mark.parametrize("head", ["fc.", "classifier.", "head."])
def test_a_classifier_head_is_left_out(tmp_path, head):
    state = encoder(2.0).state_dict() | {f"{head}weight": torch.ones(4, 2)}
    module = encoder(0.0)
    load_weights(module, write(tmp_path / "w.pth", state))
    assert (module[0].weight == 2).all()


@pytest.mark.parametrize("named", ["last_linear", ("head.linear", "last_linear.linear")])
def test_what_timm_calls_a_models_head_is_one(tmp_path, named):
    state = encoder(2.0).state_dict() | {"last_linear.weight": torch.ones(4, 2)}
    path = write(tmp_path / "w.pth", state)
    assert "1 unexpected: last_linear.weight" in refusal(encoder(0.0), path)
    module = encoder(0.0)
    module.pretrained_cfg = {"classifier": named}
    load_weights(module, path)
    assert (module[0].weight == 2).all()


def test_the_part_of_a_head_that_the_encoder_keeps_is_loaded(tmp_path):
    """As in timm's ConvNeXt, whose features are normalised inside its head."""

    def with_head(fill):
        module = encoder(fill)
        module.head = nn.LayerNorm(2)
        nn.init.constant_(module.head.weight, fill)
        return module

    state = with_head(2.0).state_dict() | {"head.fc.weight": torch.ones(4, 2)}
    module = with_head(0.0)
    load_weights(module, write(tmp_path / "w.safetensors", state))
    assert module.head.weight.tolist() == [2, 2]


def test_counters_of_batches_may_be_missing(tmp_path):
    state = encoder(2.0).state_dict()
    del state["1.num_batches_tracked"]
    module = encoder(0.0)
    load_weights(module, write(tmp_path / "w.pth", state))
    assert (module[0].weight == 2).all()


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    state = encoder(2.0).state_dict()
    del state["1.running_mean"], state["1.running_var"]
    state["0.weight"] = torch.ones(2, 4, 1, 1)
    state |= {f"layer{i:02}.weight": torch.ones(1) for i in range(12)}
    message = refusal(encoder(0.0), write(tmp_path / "w.safetensors", state))
    assert "2 missing: 1.running_mean, 1.running_var;" in message
    assert "12 unexpected: layer00.weight, layer01.weight," in message
    assert "layer09.weight" in message and "layer10.weight" not in message
    assert "1 misshapen: 0.weight ((2, 4, 1, 1), needed (2, 3, 1, 1))" in message


def test_an_absent_file_is_refused(tmp_path):
    assert "no file" in refusal(encoder(0.0), tmp_path / "nowhere.safetensors")
    assert "no file" in refusal(encoder(0.0), tmp_path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = write(tmp_path / name, encoder(2.0).state_dict())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cannot be read" in refusal(encoder(0.0), path)


# The later ones, the first a configuration, fail in the reader itself: IndexError, KeyError,
# UnicodeDecodeError, struct.error.
@pytest.mark.parametrize(
    "content",
    [
        b"not a file of weights", b"\x80\x02garbage", b"run: {dir: runs/mine}\n", b"h\x00",
        b"UQ\x82", b"G",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_of_something_else_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert "cannot be read" in refusal(encoder(0.0), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [False, True])
def test_a_file_with_a_damaged_byte_is_one_line(tmp_path, is_zip):
    """Whether or not the damage is seen, the file does not fit."""
    path = tmp_path / "w.pth"
    torch.save({"0.weight": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)
    content = path.read_bytes()
    for place in range(0, min(len(content), 600), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        message = refusal(encoder(0.0), path)
        assert any(text in message for text in ("cannot be read", "not a state", "does not fit"))


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {0: torch.ones(2)}, torch.ones(2)])
def test_what_is_not_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    assert "not a state dict of tensors" in refusal(encoder(0.0), tmp_path / "w.pth")


def test_code_in_a_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"0.weight": Payload()}, tmp_path / "w.pth")
    assert "more than tensors" in refusal(encoder(0.0), tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("norm", ["batch", "group", "frozen"])
def test_networks_start_from_the_file_with_classifiers_of_their_own(tmp_path, norm):
    config = ModelConfig(backbone="small_resnet", width=4, norm=norm)
    donor = build_network(ModelConfig(backbone="small_resnet", width=4), 3, seed=99, index=0)
    nn.init.constant_(donor.encoder[0][1].weight, 0.7)
    path = write(tmp_path / "w.safetensors", donor.encoder.state_dict())
    config = config.model_copy(update={"weights": path})
    first, second = (build_network(config, 3, seed=1, index=index) for index in range(2))
    for network in (first, second):
        state = network.encoder.state_dict()
        for name, value in donor.encoder.state_dict().items():
            if name in state:
                assert torch.equal(state[name], value)
        assert (network.encoder[0][1].weight == 0.7).all()
    assert not torch.equal(first.classifier.weight, second.classifier.weight)

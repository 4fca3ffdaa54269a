import pytest
import torch
from method_settings import METHOD_SETTINGS
from tiny_runs import make_config, noisy_data

from data.views import Views
from launcher.assemble import build_method, build_trained_method
from methods.deployed import Deployed


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_every_method_predicts_without_its_data_and_deployed(name):
    config = make_config(name, model={"norm": "batch"})
    trained = build_method(config, noisy_data(config))
    with torch.no_grad():
        for tensor in trained.state_dict().values():  # so that no two networks are alike
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape))
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    # Contiguous, as what is deployed makes it: another memory format rounds otherwise.
    plain = Views(config.views, 0)(images, torch.arange(5), 0, 0, "plain").contiguous()

    nowhere = config.model.model_copy(update={"weights": "/nowhere.pth"})
    rebuilt = build_trained_method(config.model_copy(update={"model": nowhere}), 5)
    rebuilt.load_state_dict(trained.state_dict())
    with torch.no_grad():
        expected = trained.eval()(plain)
        assert torch.equal(rebuilt.eval()(plain), expected)
        assert len(expected) == len(rebuilt.predictors())
        deployed = Deployed(rebuilt.predictors(), config.views.mean, config.views.std)
        assert torch.equal(deployed.train()(images), expected.mean(0))
    assert not any("projector" in key or "predictor" in key for key in deployed.state_dict())
    # The method that it was taken from keeps its heads.
    assert rebuilt.state_dict().keys() == trained.state_dict().keys()


def test_aids_to_training_are_left_out_of_prediction():
    """A compiler, say, that the machine which predicts may not have."""
    aids = [{"micro_batch_size": 2, "recompute": True}, {"compile": True, "cuda_graphs": True}]
    for settings in aids:
        config = make_config("cross_entropy", model=settings)
        trained = build_method(config, noisy_data(config))
        rebuilt = build_trained_method(config, 5)
        rebuilt.load_state_dict(trained.state_dict())
        (network,) = rebuilt.predictors()
        assert network.micro_batch_size is None and network.compile_mode is None
        (deployed,) = Deployed(trained.predictors()).networks
        assert deployed.micro_batch_size is None

"""The tiniest setting of each method: cross-cutting tests are parametrised over this one table."""

import yaml

METHOD_SETTINGS = {
    "cross_entropy": {"name": "cross_entropy", "mixup_alpha": 0.4},
    "gce": {"name": "gce"},
    "coteaching": {"name": "coteaching", "forget_rate": 0.5, "ramp_epochs": 2},
    "elr": {"name": "elr"},
    "elr_plus": {"name": "elr_plus", "ema_decay": 0.9},
    "dividemix": {
        "name": "dividemix",
        "warmup_epochs": 1,
        "confidence_penalty": 1.0,
        "ramp_up_epochs": 1,
        "ema_decay": 0.5,
    },
    "sscl": {
        "name": "sscl",
        "projector_hidden": 64,  # in groups of 8: GroupNorm makes +1 and -1 of groups of 2
        "projector_dim": 16,
        "predictor_hidden": 64,
        "key_decay": 0.9,
        "lambda_similarity": 1.0,
        "queue_size": 40,
        "promotion_epoch": 1,
    },
    "qmix": {
        "name": "qmix",
        "warmup_epochs": 1,
        "projector_hidden": 16,
        "projector_dim": 8,
        "lambda_prior": 0.1,
    },
}


def tiny_config(method: str, /, **sections: dict) -> dict:
    """A configuration that trains in seconds: 128 drawn images of 32 px, three epochs."""
    config = {
        "run": {"dir": "run", "epochs": 3, "seed": 7},
        "data": {
            "source": "synthetic",
            "image_size": 32,
            "num_workers": 0,
            "validation_fraction": 0.25,
            "synthetic": {"num_train": 128, "num_test": 24},
        },
        "noise": {"kind": "symmetric", "mis_h": 0.3, "mis_l": 0.1},
        "model": {"backbone": "small_resnet", "width": 4, "norm": "group"},
        "method": METHOD_SETTINGS[method],
        "optim": {"batch_size": 16, "lr": 0.002},
        "evaluation": {"batch_size": 16},
        "tracking": {"wandb": "off", "figures_every_epochs": 0, "every_steps": 2},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    return config


def write_config(folder, method: str, /, **sections: dict):
    """Write the tiny configuration to a folder; returns its path."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config(method, **sections)))
    return path

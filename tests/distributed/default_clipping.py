"""Runs under DeepSpeed that leave the clipping of gradients to accelerate: a negative control."""

import sys
from unittest.mock import patch

from many_runs import run_each

from engine.runtime import end_process
from engine.stepper import Stepper


def prepare_with_default_clipping(stepper, accelerator, module, config):
    del accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"]
    prepare(stepper, accelerator, module, config)


if __name__ == "__main__":
    prepare = Stepper.__init__
    with patch.object(Stepper, "__init__", prepare_with_default_clipping):
        end_process(run_each(sys.argv[1:]))

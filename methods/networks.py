"""Networks that methods are made of: backbone, classifier, projector."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from methods.norms import NormKind, convert_norm
from methods.passes import pass_in_pieces, recompute_blocks
from methods.weights import ModelError, load_weights

__all__ = [
    "TORCHVISION_BACKBONES",
    "ModelConfig",
    "Network",
    "NetworkOutput",
    "Projector",
    "SmallResNet",
    "build_network",
]

TORCHVISION_BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class ModelConfig(BaseModel):
    """Section ``model``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    backbone: str = Field(
        "resnet50",
        description="small_resnet, a torchvision ResNet (resnet18 to resnet152), or timm:NAME, "
        "without its dropout and stochastic depth.",
    )
    norm: NormKind = Field(
        "batch",
        description="Normalisation layers. group, frozen and sync (GPUs only) give the same result "
        "on any number of processes; plain batch sees each process's samples alone.",
    )
    weights: Path | None = Field(
        None, description="File of pre-trained weights (.safetensors, or a .pth state dict)."
    )
    width: int = Field(16, ge=4, description="Channels of small_resnet's first stage.")
    blocks: int = Field(1, ge=1, description="Residual blocks in each stage of small_resnet.")
    groups: int = Field(8, ge=1, description="Most groups of a GroupNorm layer.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Images whose activations a process holds at once. Larger passes are taken in "
        "pieces and repeated for the gradient: more time, less memory, the same step. With norm "
        "batch each piece is normalised alone.",
    )
    recompute: bool = Field(
        False,
        description="Repeat the pass through each residual block for the gradient instead of "
        "holding its activations: more time, less memory, the same step.",
    )
    compile: bool = Field(False, description="Compile the encoders with torch.compile.")
    cuda_graphs: bool = Field(
        False,
        description="Replay each compiled pass as one CUDA graph instead of launching its kernels "
        "one by one: for small networks and images, whose kernels end sooner than the next starts.",
    )

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != "small_resnet" and name not in TORCHVISION_BACKBONES and name[:5] != "timm:":
            allowed = ", ".join(("small_resnet", *TORCHVISION_BACKBONES, "timm:NAME"))
            raise ValueError(f"unknown backbone; allowed: {allowed}")
        return name

    @model_validator(mode="after")
    def _check_passes(self) -> "ModelConfig":
        if self.compile and self.recompute:
            raise ValueError("compile and recompute: both set; recomputed blocks are not compiled")
        if self.norm == "sync" and self.micro_batch_size is not None:
            raise ValueError(
                "micro_batch_size and norm: sync would see pieces, not the batch; take norm group "
                "or frozen, or recompute"
            )
        if self.norm == "sync" and self.compile:
            raise ValueError(
                "compile and norm: sync: both set; a compiled pass would end at each synchronised "
                "layer; take norm batch, group or frozen"
            )
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs: set without compile, whose passes it records")
        if self.cuda_graphs and self.micro_batch_size is not None:
            raise ValueError("cuda_graphs and micro_batch_size: both set; pieces are not recorded")
        return self

    def for_prediction(self) -> "ModelConfig":
        """The same network for weights that are loaded afterwards, without aids to training."""
        aids = ("weights", "micro_batch_size", "recompute", "compile", "cuda_graphs")
        return self.model_copy(update={key: type(self).model_fields[key].default for key in aids})


class NetworkOutput(NamedTuple):
    """What a pass gives: logits (B, C) and the encoder's features (B, F)."""

    logits: Tensor
    features: Tensor


class Projector(NamedTuple):
    """What a contrastive method puts behind the encoder: two-layer MLPs.

    Attributes:
        hidden: Hidden width of the projector, features F -> hidden -> dim.
        dim: Dimension D of the embedding.
        norm: Whether a normalisation layer follows the hidden layer; ``model.norm`` says which.
        predictor_hidden: Hidden width of a predictor D -> hidden -> D behind it, with the same
            layers; 0 = none.
    """

    hidden: int
    dim: int
    norm: bool = False
    predictor_hidden: int = 0


class Network(nn.Module):
    """Encoder, linear classifier and, for contrastive methods, a projector and a predictor.

    Args:
        encoder: (B, 3, S, S) -> (B, F) features.
        num_features: F.
        num_classes: C.
        projector: (F -> D) MLP, or None.
        predictor: (D -> D) MLP, or None.

    Attributes:
        micro_batch_size: Most images of a pass whose activations are held; None = all of them.
        compile_mode: Mode of torch.compile of the encoder's passes; None = they are not compiled.
    """

    micro_batch_size: int | None = None
    compile_mode: str | None = None

    def __init__(
        self,
        encoder: nn.Module,
        num_features: int,
        num_classes: int,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(num_features, num_classes)
        self.projector = projector
        self.predictor = predictor

    def forward(self, images: Tensor) -> NetworkOutput:
        """Logits and features of (B, 3, S, S) float images."""
        features = pass_in_pieces(self.encoder, images, self.micro_batch_size)
        return NetworkOutput(self.classifier(features), features)

    def compile_encoder(self, mode: str) -> None:
        """From now on take the encoder's passes by torch.compile, in one of its modes."""
        self.compile_mode = mode
        self.encoder.compile(mode=mode)

    def project(self, features: Tensor) -> Tensor:
        """L2-normalised embedding (B, D) float32 of the encoder's features (B, F)."""
        if self.projector is None:
            raise RuntimeError("this network was built without a projector")
        return F.normalize(self.projector(features).float(), dim=-1)

    def predict(self, features: Tensor) -> Tensor:
        """L2-normalised prediction (B, D) float32 of another view's embedding."""
        if self.projector is None or self.predictor is None:
            raise RuntimeError("this network was built without a predictor")
        return F.normalize(self.predictor(self.projector(features)).float(), dim=-1)


class _Residual(nn.Module):
    """Basic residual block (He et al., CVPR 2016): two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(images)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(images))


class SmallResNet(nn.Sequential):
    """A residual network for small images and processors without a GPU.

    A 5 x 5 stem of stride 2 and four stages of width w, 2w, 4w, 8w: 0.3 million parameters at
    w = 16 and one block a stage. ImageNet's stem would shrink a 64-pixel image to 16 before the
    first stage and lose lesions that are a few pixels wide.

    Args:
        width: Channels w of the first stage.
        blocks: Residual blocks in each stage.
    """

    def __init__(self, width: int, blocks: int) -> None:
        stem = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(4)]
        layers: list[nn.Module] = [stem]
        num_in = width
        for stage, num_out in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_Residual(num_in, num_out, stride))
                num_in = num_out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = num_in
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_network(
    config: ModelConfig,
    num_classes: int,
    *,
    seed: int,
    index: int,
    projector: Projector | None = None,
) -> Network:
    """A network with its own initial weights.

    Args:
        config: Section ``model``.
        num_classes: C.
        seed: Seed of the run.
        index: Which network of the method; each has other initial weights.
        projector: Heads of a contrastive method; None for none.

    Raises:
        ModelError: Weights that do not fit, or an unknown timm name; the message names the
            configuration's key.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_initial_seed(seed, index))
        encoder, num_features = _build_encoder(config.backbone, config.width, config.blocks)
        if config.weights is not None:
            load_weights(encoder, config.weights)
        heads = () if projector is None else _build_heads(num_features, projector)
        network = Network(encoder, num_features, num_classes, *heads)
    convert_norm(network, config.norm, config.groups)
    network.micro_batch_size = config.micro_batch_size
    if config.recompute:
        recompute_blocks(network.encoder)
    if config.compile:
        network.compile_encoder("reduce-overhead" if config.cuda_graphs else "default")
    return network


def _build_heads(num_features: int, sizes: Projector) -> list[nn.Module]:
    """Projector and, where there is one, predictor."""

    def mlp(num_in: int, hidden: int) -> nn.Sequential:
        norm: list[nn.Module] = [nn.BatchNorm1d(hidden)] if sizes.norm else []
        return nn.Sequential(
            nn.Linear(num_in, hidden), *norm, nn.ReLU(), nn.Linear(hidden, sizes.dim)
        )

    heads: list[nn.Module] = [mlp(num_features, sizes.hidden)]
    if sizes.predictor_hidden:
        heads.append(mlp(sizes.dim, sizes.predictor_hidden))
    return heads


def _initial_seed(seed: int, index: int) -> int:
    """A seed for each network of a run; neighbouring runs do not share networks."""
    return (seed * 1_000_003 + index) % 2**63


def _build_encoder(backbone: str, width: int, blocks: int) -> tuple[nn.Module, int]:
    """A backbone without its classifier, and its number of features."""
    if backbone == "small_resnet":
        small = SmallResNet(width, blocks)
        return small, small.num_features
    if backbone.startswith("timm:"):
        return _build_timm(backbone.removeprefix("timm:"))
    resnet = getattr(torchvision.models, backbone)(weights=None)
    num_features = int(resnet.fc.in_features)
    resnet.fc = nn.Identity()
    return resnet, num_features


def _build_timm(name: str) -> tuple[nn.Module, int]:
    """A timm model as encoder; timm is an extra."""
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            "model.backbone: timm models need the extra: pip install 'mednoise[timm]'"
        ) from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:5]) or "see timm.list_models()"
        raise ModelError(f"model.backbone: timm has no model {name!r}; similar: {near}")
    encoder = timm.create_model(name, pretrained=False, num_classes=0)
    for module in encoder.modules():
        # Masks that each process draws for its own samples would make another run of each number
        # of processes, and of each size of pieces.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    # What comes out is what the head would see; some models widen their features for it.
    return encoder, int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)

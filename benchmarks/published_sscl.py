"""A training step of SSCL in the way of its authors' program, and the ways from there to ours.

Their program (github.com/Binz-Chen/MICCAI2023_SSCL) takes one pairing of the strong views after the
other: the weak view through backbone and classifier, a strong view through the query encoder, a
move of the key encoder, and the other strong view through that. What the second pairing makes of
the weak view is used nowhere. Tensors are float32 in NCHW layout; the key encoder trains along,
without gradient; the optimiser is plain SGD with momentum.

Nothing here is their code, and the loss is the paper's: own pairs at their true places in the
queue, the other view's keys in the second contrast, dot products clamped instead of coordinates,
the bottleneck a mean. What is timed beside ``methods.sscl`` is thus another way to the same loss.
With normalisation that does not look at the batch, and a key encoder that two moves bring where one
does, it is the same number. With batch norm it is not: here each view is normalised by itself, in
one pass all three together.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.mixmatch import mix_neighbours, mixup_coefficient
from methods.networks import Network
from methods.sscl import SSCLConfig

__all__ = ["WAYS", "AttachedQueue", "PublishedStep", "Way"]


@dataclass(frozen=True)
class Way:
    """How a step comes by its loss; as published where nothing is given.

    Attributes:
        weak_passes: Passes of the weak view: 2, or 1.
        key_moves: Moves of the key encoder: 2, each before a pass in training mode, or 1 after the
            step, with passes in evaluation mode.
        one_pass: Whether each encoder takes all its views in one pass.
        layout: Of weights and images.
        keeps_graphs: Whether the queue holds tensors with the graphs that they came from.
    """

    weak_passes: int = 2
    key_moves: int = 2
    one_pass: bool = False
    layout: torch.memory_format = torch.contiguous_format
    keeps_graphs: bool = False


# Each has one thing more than the one before; the last is this project's, without its engine.
WAYS = {
    "published": Way(),
    "weak_view_once": Way(weak_passes=1),
    "key_encoder_once": Way(weak_passes=1, key_moves=1),
    "views_in_one_pass": Way(weak_passes=1, key_moves=1, one_pass=True),
    "channels_last": Way(weak_passes=1, key_moves=1, one_pass=True, layout=torch.channels_last),
}


class AttachedQueue:
    """A ring of past queries, keys and logits, which enter with their graphs.

    Args:
        size: K samples, a multiple of every batch's size.
        dim: D of an embedding.
        num_classes: C.
        device: Where it is.

    Attributes:
        queries: (2, K, D), of each pairing; held as in the program, which never reads them.
        keys: (2, K, D), of each pairing.
        logits: (K, C).
        num_filled: Places in use.
    """

    def __init__(self, size: int, dim: int, num_classes: int, device: torch.device) -> None:
        self.queries = torch.zeros(2, size, dim, device=device)
        self.keys = torch.zeros(2, size, dim, device=device)
        self.logits = torch.zeros(size, num_classes, device=device)
        self.size, self.num_filled, self._position = size, 0, 0

    def enter(self, queries: Tensor, keys: Tensor, logits: Tensor) -> slice:
        """Put (2, B, D), (2, B, D) and (B, C) in over what is oldest; returns their places."""
        places = slice(self._position, self._position + len(logits))
        self.queries[:, places] = queries
        self.keys[:, places] = keys
        self.logits[places] = logits
        self._position = places.stop % self.size
        self.num_filled = max(self.num_filled, places.stop)
        return places


class PublishedStep:
    """Networks, queue and optimiser of the program, and its step in one of the ways.

    Args:
        network: With projector and predictor; copied.
        config: Section ``method``.
        num_classes: C.
        way: How the step comes by its loss.
        rate: Learning rate.
        weight_decay: On all parameters.
        seed: Seed of the mixing coefficients.

    Raises:
        ValueError: The network has no projector.
    """

    def __init__(
        self, network: Network, config: SSCLConfig, num_classes: int, way: Way,
        *, rate: float, weight_decay: float = 5e-4, seed: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.way, self.seed = config, way, seed
        self.network = copy.deepcopy(network).to(memory_format=way.layout).train()
        self.key_network = copy.deepcopy(self.network).requires_grad_(False)
        self.key_network.train(way.key_moves == 2)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay
        )
        device = self.network.classifier.weight.device
        self.queue = AttachedQueue(config.queue_size, config.projector_dim, num_classes, device)

    def __call__(self, views: Mapping[str, Tensor], labels: Tensor, step: int) -> Tensor:
        """Take a step on views strong0, strong1 and weak (B, 3, S, S); its loss before the step."""
        strong = [self._mix(views[name], step) for name in ("strong0", "strong1")]
        weak = views["weak"].contiguous(memory_format=self.way.layout)
        run = self._in_one_pass if self.way.one_pass else self._by_pairing
        queries, keys, logits = run(strong, weak)
        loss = self._loss(queries, keys, logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.way.key_moves == 1:
            self._move_key_encoder()
        return loss.detach()

    @property
    def encoders(self) -> list[nn.Module]:
        """Query and key encoder."""
        return [self.network.encoder, self.key_network.encoder]

    def _mix(self, images: Tensor, step: int) -> Tensor:
        if self.config.mixup_alpha > 0:
            share = mixup_coefficient(self.config.mixup_alpha, self.seed, step, beta=1.0)
            images = mix_neighbours(images, max(share, 1 - share))
        return images.contiguous(memory_format=self.way.layout)

    def _by_pairing(self, strong: list[Tensor], weak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (2, B, D) and keys (2, B, D) of the two pairings, logits (B, C)."""
        queries, keys, logits = [], [], []
        for pairing in range(2):
            if pairing < self.way.weak_passes:
                logits.append(self.network(weak).logits)
            queries.append(self.network.predict(self.network.encoder(strong[pairing])))
            if self.way.key_moves == 2:
                self._move_key_encoder()
            # Without a graph, since none of its parameters asks for one.
            keys.append(self.key_network.project(self.key_network.encoder(strong[1 - pairing])))
        return torch.stack(queries), torch.stack(keys), logits[0]

    def _in_one_pass(self, strong: list[Tensor], weak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from one pass through each encoder."""
        size = len(weak)
        features = self.network.encoder(torch.cat([*strong, weak]))
        queries = self.network.predict(features[: 2 * size]).unflatten(0, (2, size))
        keys = self.key_network.project(self.key_network.encoder(torch.cat(strong[::-1])))
        return queries, keys.unflatten(0, (2, size)), self.network.classifier(features[2 * size :])

    @torch.no_grad()
    def _move_key_encoder(self) -> None:
        for own, other in (
            (self.key_network.encoder, self.network.encoder),
            (self.key_network.projector, self.network.projector),
        ):
            if own is None or other is None:
                raise ValueError("the network has no projector")
            for average, current in zip(own.parameters(), other.parameters(), strict=True):
                average.mul_(self.config.key_decay).add_(current, alpha=1 - self.config.key_decay)

    def _loss(self, queries: Tensor, keys: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Contrast of both pairings with the queue, bottleneck, generalised cross-entropy."""
        config, queue = self.config, self.queue
        entering = (queries, keys, logits)
        if not self.way.keeps_graphs:
            entering = (queries.detach(), keys.detach(), logits.detach())
        places = queue.enter(*entering)
        probabilities = logits.softmax(1)
        past = queue.logits[: queue.num_filled].softmax(1)
        is_own = torch.zeros(len(labels), queue.num_filled, dtype=torch.bool, device=labels.device)
        is_own[:, places].fill_diagonal_(True)
        agreement = (probabilities @ past.T).detach().masked_fill(is_own, 1.0)
        weights = agreement * (agreement >= config.threshold)
        weights = weights / weights.sum(1, keepdim=True)
        contrast, bottleneck = queries.new_zeros(()), queries.new_zeros(())
        for query, key, past_keys in zip(queries, keys, queue.keys, strict=True):
            dots = (query @ past_keys[: queue.num_filled].T).clamp(1e-4, 1 - 1e-4)
            distances = 2 + torch.where(is_own, -dots, (1 - dots).log())
            contrast = contrast + (weights * distances).sum(1).mean() / 2
            divergence = F.kl_div(
                key.log_softmax(1), query.log_softmax(1), reduction="batchmean", log_target=True
            )
            bottleneck = bottleneck + divergence / 2
        of_label = probabilities.gather(1, labels.unsqueeze(1))
        robust = ((1 - of_label**config.q) / config.q).mean()
        return (
            config.lambda_similarity * contrast
            + config.lambda_bottleneck * bottleneck
            + config.lambda_robust * robust
        )

"""Memory, traffic and time of a training step, computed: how large a run would go.

    python -m benchmarks.plan [--chips=256 --fsdp=1 --batch=65536 --microbatches=4 …]

Nothing is measured here. The formulas are those of docs/distributed.md; the towers are
transformers (ViT-L/16 and BERT-base unless told otherwise), the chip's figures its
maker's, the utilisation an assumption that a first run replaces.
"""

import argparse
from dataclasses import dataclass

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Chip:
    """Peak bfloat16 FLOP/s, bytes of memory, bytes/s to the other chips (ICI)."""

    flops: float
    memory: float
    interconnect: float


CHIPS = {
    "v4": Chip(275e12, 32e9, 300e9),
    "v5e": Chip(197e12, 16e9, 200e9),
    "v5p": Chip(459e12, 95e9, 600e9),
}


@dataclass(frozen=True)
class Tower:
    """A transformer: layers of width `hidden`, a set of `tokens`, other parameters."""

    name: str
    layers: int
    hidden: int
    tokens: int
    extra: float

    @property
    def parameters(self) -> float:
        """12 h² a layer: four projections and a perceptron of width 4 h."""
        return 12 * self.layers * self.hidden**2 + self.extra

    @property
    def forward_flops(self) -> float:
        """Of one example: 2 a parameter and token, 4 t² h a layer for attention."""
        t, h = self.tokens, self.hidden
        return self.layers * (24 * t * h**2 + 4 * t**2 * h)

    def activations(self, remat: bool) -> float:
        """Bytes of one example in bfloat16: 34 t h + 5 t² heads a layer (heads of 64).

        With remat the layers keep their inputs, and one layer at a time the rest.
        """
        t, h = self.tokens, self.hidden
        layer = 34 * t * h + 5 * t**2 * (h // 64)
        return self.layers * HALF * t * h + layer if remat else self.layers * layer


VIT_L = Tower("ViT-L/16, 224 px", 24, 1024, 196, 1e6)
BERT = Tower("BERT-base, 64 tokens", 12, 768, 64, 24e6)


def plan(options: argparse.Namespace) -> dict[str, float]:
    """The step's figures per chip: bytes, seconds."""
    n, fsdp, batch, d = options.chips, options.fsdp, options.batch, options.dim
    k, chip = options.microbatches, CHIPS[options.chip]
    towers = (VIT_L, BERT)
    parameters = sum(tower.parameters for tower in towers)

    # Backward is twice the forward pass; microbatches and remat each add a forward.
    passes = 3 + (k > 1) + options.remat
    compute = passes * sum(t.forward_flops for t in towers) * batch / n
    # Both products of the loss: forward, recomputed, two in the backward pass. Float32
    # products are six bfloat16 ones.
    loss = 6 * 2 * 4 * 2 * batch**2 * d / n

    others = (n - 1) / n
    embeddings = 2 * batch * d * FLOAT * others  # both towers' to everyone
    traffic = 2 * embeddings  # and their gradients back
    gradients = parameters * FLOAT
    if fsdp == 1:
        traffic += 2 * gradients * others  # all-reduce in a ring
    else:
        # Parameters gathered for each pass, gradients scattered, their shares summed
        # over the data axis.
        shares = (fsdp - 1) / fsdp
        gathers = passes - 1
        if k > 1:
            gathers *= k
        traffic += (gathers + 1) * gradients * shares + 2 * gradients / fsdp
    state = 3 * parameters * FLOAT / fsdp + gradients / fsdp
    rows = batch / n / k
    activations = rows * sum(t.activations(options.remat) for t in towers)
    similarity = 3 * 2**24 * FLOAT + 2 * embeddings
    compute_s = (compute + loss) / (options.utilisation * chip.flops)
    traffic_s = traffic / chip.interconnect
    return {
        "state, GB": state / 1e9,
        "activations, GB": activations / 1e9,
        "embeddings and similarity, GB": similarity / 1e9,
        "sum, GB": (state + activations + similarity) / 1e9,
        "chip's memory, GB": chip.memory / 1e9,
        "sent and received, GB": traffic / 1e9,
        "… of it embeddings, GB": 2 * embeddings / 1e9,
        "compute, s": compute_s,
        "… of it the loss, s": loss / (options.utilisation * chip.flops),
        "traffic, s, if nothing overlaps": traffic_s,
        "step, s, all overlapped": max(compute_s, traffic_s),
        "step, s, nothing overlapped": compute_s + traffic_s,
        "hours for the pairs, nothing overlapped": (
            options.pairs / batch * (compute_s + traffic_s) / 3600
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=CHIPS, default="v4")
    parser.add_argument("--chips", type=int, default=256)
    parser.add_argument("--fsdp", type=int, default=1, help="config.mesh.fsdp")
    parser.add_argument("--batch", type=int, default=65536, help="config.batch_size")
    parser.add_argument("--dim", type=int, default=1024, help="config.embed_dim")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--pairs", type=float, default=1e9, help="seen in training")
    parser.add_argument("--utilisation", type=float, default=0.4)
    options = parser.parse_args()
    for name, value in plan(options).items():
        print(f"{name:42}{value:12.3f}")


if __name__ == "__main__":
    main()

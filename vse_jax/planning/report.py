"""--mode=compile: whether a run's programs fit their devices, and what they cost.

Compiles the programs of a run for devices that need not be here; computes nothing.
"""

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jax.stages import Lowered

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.checkpoints.siglip import resolve_siglip
from vse_jax.config import Config, check_config, with_fields
from vse_jax.data.collate import (
    Bucket,
    CaptionCollator,
    caption_shapes,
    image_shapes,
    packed_rows,
    packing_devices,
    pair_shapes,
    shapes_of,
    size_of,
)
from vse_jax.data.dataset import read_split
from vse_jax.data.loader import training_sampler
from vse_jax.data.tokenizers import bucket, caption_tokenizer, padded_lengths
from vse_jax.data.vocabulary import resolve_vocab_size
from vse_jax.distributed.mesh import check_training_batch, make_mesh
from vse_jax.distributed.runtime import configure, matmul_precision
from vse_jax.evaluation.encode import batch_sizes, jit_encoders, lower_encoder
from vse_jax.optimizer import Schedule
from vse_jax.planning.program import read_program
from vse_jax.planning.topology import Topology, find
from vse_jax.train_step import Trainer

# Without the data, COCO's at the published batch of 128.
_STEPS_PER_EPOCH, _TOKENS, _MEAN_TOKENS, _WORDS = 4425, 32, 13, 11_755
_SAMPLED_STEPS = 200  # of the first epoch, for the bucket that most batches need
_TOP = 10  # source lines


def compile_run(
    config: Config, workdir: Path, *, topology: str | None, all: bool
) -> None:
    """Compiles a run's programs; prints a table, writes compile_<topology>.json.

    Args:
        config: needs no data; where its data is here, it decides the captions' length.
        workdir: of the run, or any other folder.
        topology: see `planning.topology.find`.
        all: all pairs of token bucket and trainable groups, not only the most
            expensive.

    Raises:
        InputError: no such topology, a mesh that does not fit it, or a program that
            does not fit the devices' memory (names what would help).
    """
    jax.config.update("jax_enable_compilation_cache", False)  # its time is asked for
    config, place = place_run(config, topology)
    usual = usual_bucket(config, len(place.devices))
    results = []
    for name, lower in programs(config, place, usual, all):
        results.append(_compiled(name, lower, place))
        print("\n".join(_lines(results[-1], place)), flush=True)
    too_large = [result for result in results if not result["fits"]]
    contents = {
        "fits": not too_large,
        "topology": place.name,
        "devices": len(place.devices),
        "device_memory_bytes": place.memory,
        "programs": results,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / f"compile_{re.sub('[*:x]', '_', place.name)}.json"
    write_atomically(file, (json.dumps(contents, indent=1) + "\n").encode())
    logging.info("written: %s", file)
    if too_large:
        raise InputError(_what_would_help(config, place, usual, all, results))


def place_run(config: Config, topology: str | None) -> tuple[Config, Topology]:
    """(the config with the sizes that its files decide, devices); sets JAX up for them.

    Without a vocabulary, it has the size of COCO's.
    """
    place = find(topology)
    configure(config)
    jax.config.update(
        "jax_default_matmul_precision", matmul_precision(config, place.platform)
    )
    try:
        config = resolve_vocab_size(config)
    except InputError as error:
        config = with_fields(config, {"text.vocab_size": _WORDS})
        logging.warning("%s; takes the size of COCO's, %d words", error, _WORDS)
    return resolve_siglip(config), place


def usual_bucket(config: Config, devices: int) -> Bucket:
    """What most training batches need, or COCO's without the data."""
    lengths, size = padded_lengths(config), config.batch_size
    pack = packing_devices(config, devices)
    try:
        split = read_split(config, config.data.train_split)
        tokens = caption_tokenizer(config)(split.captions)
        rows = CaptionCollator(config, tokens, None, pack=pack)
        sampler = training_sampler(config, split)
    except InputError as error:
        usual = bucket(min(_TOKENS, lengths[-1]), lengths)
        logging.info("captions of up to %d tokens, as COCO's (%s)", usual, error)
        if not pack:
            return usual, None
        return usual, packed_rows(np.full(size, _MEAN_TOKENS), usual, pack)
    steps = range(min(_SAMPLED_STEPS, sampler.steps_per_epoch))
    batches = (sampler.batch(sampler.position(step)) for step in steps)
    needed = Counter(rows.bucket_of(batch) for batch in batches)
    ((length, packed), _) = needed.most_common(1)[0]
    logging.info("most training batches have captions of up to %d tokens", length)
    return length, packed


def programs(
    config: Config, place: Topology, usual: Bucket, every: bool
) -> Iterator[tuple[str, Callable[[], Lowered]]]:
    """(name, how to lower it) of what a run of the config executes.

    Training steps come first. `usual`: what `usual_bucket` says. `every`: also those
    that cost less.
    """
    mesh = make_mesh(config, place.devices)
    check_training_batch(config, mesh)
    schedule = Schedule(config, _STEPS_PER_EPOCH, _STEPS_PER_EPOCH + 1)
    trainer = Trainer.create(config, mesh, schedule)
    optimizer, model = trainer.optimizer, trainer.abstract_model
    hidden = config.text.hidden if config.text.cache_features else None

    epochs = range(config.num_epochs)
    by_epoch = [optimizer.trainable_groups(epoch) for epoch in epochs]
    groups = list(dict.fromkeys(by_epoch)) if every else by_epoch[-1:]
    if not packing_devices(config, mesh.size):  # microbatches, for one, rule it out
        usual = usual[0], None
    # Of each length the padded batch, which costs the most.
    padded: list[Bucket] = [(length, None) for length in padded_lengths(config)]
    buckets = padded if every else [usual]

    pairs = pair_shapes(config.image, config.batch_size)
    for trainable, (length, packed) in itertools.product(groups, buckets):
        name = f"train_step, {length} tokens"
        if len(groups) > 1:
            name += f", {len(trainable)} of {len(optimizer.groups)} groups"
        shapes = pairs | caption_shapes(config.batch_size, length, hidden, packed)
        yield name, partial(trainer.lower_step, shapes, trainable)

    encoders = jit_encoders(trainer.graphdef, model, mesh)
    images, captions = batch_sizes(config, mesh.size)
    shapes = image_shapes(config.image, images)
    encoder = encoders["encode_images"]
    yield "encode_images", partial(lower_encoder, encoder, mesh, model, shapes)
    encoder = encoders["encode_captions"]
    for length, _ in buckets:
        shapes = caption_shapes(captions, length, hidden)
        lower = partial(lower_encoder, encoder, mesh, model, shapes)
        yield f"encode_captions, {length} tokens", lower


def _compiled(
    name: str, lower: Callable[[], Lowered], place: Topology
) -> dict[str, Any]:
    """What the table and the JSON file say of a program."""
    start = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _exhausted(error)
        if needed is None:
            raise
        return {"name": name, "fits": False, "peak_bytes": needed}
    compile_s = time.perf_counter() - traced
    program = read_program(compiled, place.chip)
    if name.startswith("train_step"):
        # The batches of the next two steps are on the device, too.
        (_, batch), _ = lowered.args_info
        ahead = 2 * size_of(shapes_of(batch)) // len(place.devices)
        program = dataclasses.replace(program, peak_bytes=program.peak_bytes + ahead)
    result = {
        "name": name,
        "digest": program_digest(lowered),
        "trace_s": round(traced - start, 1),
        "compile_s": round(compile_s, 1),
        "fits": program.peak_bytes <= place.memory,
        **dataclasses.asdict(program),
    }
    cycles_by_line, waiting = result.pop("cycles_by_line"), result.pop("waiting_s")
    if place.chip and cycles_by_line:
        cycles = sum(cycles_by_line.values())
        seconds = cycles / place.chip.clock + waiting
        result["estimate"] = {
            "cycles": cycles,
            "cycles_by_line": cycles_by_line,
            "step_s": seconds,
            "of_it_waiting_s": waiting,
            "utilisation": program.flops / (seconds * place.chip.flops),
        }
    return result


def program_digest(lowered: Lowered) -> str:
    """Of what the compiler is given: equal where it makes an equal program of it."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def _exhausted(error: Exception) -> float | None:
    """Bytes that a program needs, from the refusal of a compiler; None: no refusal."""
    # All that it needs, or its temporaries where they alone are too many.
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not used:
        return None
    return float(used[1]) * 2.0 ** (10 * ("KMGT".index(used[2]) + 1))


def _lines(result: dict[str, Any], place: Topology) -> Iterator[str]:
    """A program's part of the table."""
    share = f"{result['peak_bytes'] / place.memory:.0%} of a device's memory"
    yield result["name"] + ("" if result["fits"] else "   DOES NOT FIT")
    if "flops" not in result:
        yield f"  needs       {_size(result['peak_bytes'])}, {share}"
        return
    yield f"  compiled    in {result['compile_s']} s, traced in {result['trace_s']} s"
    parts = ("arguments", "temporaries", "peak")
    sizes = (f"{part} {_size(result[f'{part}_bytes'])}" for part in parts)
    yield f"  memory      {', '.join(sizes)}: {share}"
    yield f"  FLOP        {result['flops']:.3g} a device"
    for kind, sent in result["sent_bytes"].items():
        yield f"  sends       {_size(sent)} by {kind}"
    for c in result["collectives"][:3]:
        yield f"              {c['times']} × {c['kind']} {c['shape']}"
    if estimate := result.get("estimate"):
        yield (
            f"  estimate    {estimate['step_s'] * 1e3:.2f} ms, of it waiting for what "
            f"is sent {estimate['of_it_waiting_s'] * 1e3:.2f} ms; "
            f"utilisation {estimate['utilisation']:.1%}"
        )
        for line, cycles in list(estimate["cycles_by_line"].items())[:_TOP]:
            yield f"              {cycles / estimate['cycles']:6.1%} {line}"


def _size(count: float | int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _what_would_help(
    config: Config, place: Topology, usual: Bucket, every: bool, results: list[dict]
) -> str:
    """The error's line: what does not fit, and the nearest setting that does, tried."""
    worst = max(results, key=lambda result: result["peak_bytes"])
    name, least = worst["name"], worst["peak_bytes"]
    problem = f"{name} needs {_size(least)} of a device's {_size(place.memory)}"
    for change in _changes(config, make_mesh(config, place.devices), name):
        changed = with_fields(config, change)
        flags = " ".join(f"--config.{field}={value}" for field, value in change.items())
        try:
            check_config(changed)
            lower = dict(programs(changed, place, usual, every))[name]
            result = _compiled(name, lower, place)
        except InputError:
            continue
        logging.info("tried %s: %s", flags, _size(result["peak_bytes"]))
        least = min(least, result["peak_bytes"])
        if result["fits"]:
            return f"{problem}; {flags} needs {_size(result['peak_bytes'])}"
    encoder = name.startswith("encode")
    tried = "eval.batch_size" if encoder else "fsdp, remat and microbatches"
    return (
        f"{problem}; no setting of {tried} fits, the least needs {_size(least)}: take "
        "more or larger devices, or a smaller batch"
    )


def _changes(config: Config, mesh: Mesh, program: str) -> Iterator[dict[str, Any]]:
    """Settings with which a program needs less memory, the least costly in time first.

    An encoder's batch is halved down to one image or caption a device.
    """
    devices, of_slice = mesh.size, mesh.size // mesh.shape["slice"]
    if program.startswith("encode"):
        images, captions = batch_sizes(config, devices)
        each = (images if program == "encode_images" else captions) // devices
        while each := each // 2:
            yield {"eval.batch_size": each * devices}
        return
    shard: dict[str, Any] = {}
    if of_slice > 1 and mesh.shape["fsdp"] != of_slice:
        shard = {"mesh.data": 1, "mesh.fsdp": of_slice}
        yield shard
    if not config.remat:
        yield {"remat": True}
        if shard:
            yield shard | {"remat": True}
    microbatches = 2 * config.microbatches
    while config.batch_size % (devices * microbatches) == 0:
        yield shard | {"remat": True, "microbatches": microbatches}
        microbatches *= 2

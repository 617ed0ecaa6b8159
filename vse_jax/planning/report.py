"""--mode=compile: whether a run's programs fit their devices, and what they cost.

Compiles what a run of the config will run, for devices that need not be here, and
computes nothing.
"""

import collections
import dataclasses
import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.stages import Lowered

from vse_jax.base.errors import InputError
from vse_jax.base.files import write_atomically
from vse_jax.checkpoints.siglip import settle_siglip
from vse_jax.config import Config
from vse_jax.data.collate import (
    Bucket,
    CaptionCollator,
    caption_shapes,
    image_shapes,
    packed_size,
    pair_shapes,
    use_packing,
)
from vse_jax.data.dataset import read_split
from vse_jax.data.loader import training_sampler
from vse_jax.data.tokenizers import bucket, caption_tokenizer, padded_lengths
from vse_jax.data.vocabulary import settle_vocab_size
from vse_jax.distributed.mesh import check_training_batch, make_mesh
from vse_jax.distributed.runtime import configure, matmul_precision
from vse_jax.evaluation.encode import batch_sizes, jit_towers, lower_tower
from vse_jax.optimizer import Schedule
from vse_jax.planning.program import Program, read_program
from vse_jax.planning.topology import Topology, find
from vse_jax.possible import check_config
from vse_jax.training.plan import make_plan
from vse_jax.training.step import jit_step, lower_step

# Where the data is not at hand: COCO's, at the published batch of 128.
_STEPS_PER_EPOCH, _TOKENS, _WORDS = 4425, 32, 11_755
_MEAN_TOKENS = 13
_SAMPLED_STEPS = 200  # of the first epoch, for the bucket that most batches need
_MEMORY = ("arguments", "temporaries", "peak")
_TOP = 10  # source lines


def compile_run(
    config: Config, workdir: Path, topology: str | None, every: bool
) -> None:
    """Compiles a run's programs; prints a table, writes compile_<topology>.json.

    Args:
        config: needs no data; where its data is here, it decides the captions' length.
        workdir: of the run, or any other folder.
        topology: see `devices.topology.find`.
        every: all pairs of token bucket and open groups, not the dearest alone.

    Raises:
        InputError: no such topology, a mesh that does not fit it, or a program that
            does not fit the devices' memory (names what would help).
    """
    place = find(topology)
    configure(config)
    jax.config.update("jax_enable_compilation_cache", False)  # its time is asked for
    jax.config.update(
        "jax_default_matmul_precision", matmul_precision(config, place.platform)
    )
    _settle_vocab_size(config)
    settle_siglip(config)
    usual = _usual_bucket(config, len(place.devices))
    results = []
    for name, lower in _programs(config, place, usual, every):
        results.append(_compiled(name, lower, place))
        print("\n".join(_lines(results[-1], place)), flush=True)
    fits = all(result["fits"] for result in results)
    contents = {
        "fits": fits,
        "topology": place.name,
        "devices": len(place.devices),
        "device_memory_bytes": place.memory,
        "programs": results,
    }
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / f"compile_{re.sub('[:x]', '_', place.name)}.json"
    write_atomically(file, (json.dumps(contents, indent=1) + "\n").encode())
    logging.info("written: %s", file)
    if not fits:
        raise InputError(_what_would_help(config, place, usual, every, results))


def _settle_vocab_size(config: Config) -> None:
    try:
        settle_vocab_size(config)
    except InputError as error:
        config.text.vocab_size = _WORDS
        logging.warning("%s; takes the size of COCO's, %d words", error, _WORDS)


def _usual_bucket(config: Config, devices: int) -> Bucket:
    """What most training batches need, or COCO's without the data."""
    lengths, size = padded_lengths(config), config.batch_size
    pack = use_packing(config, devices)
    try:
        split = read_split(config, config.data.train_split)
        tokens = caption_tokenizer(config)(split.captions)
        rows = CaptionCollator(config, tokens, None, pack=pack)
        sampler = training_sampler(config, split)
    except InputError as error:
        usual = bucket(min(_TOKENS, lengths[-1]), lengths)
        logging.info("captions of up to %d tokens, as COCO's (%s)", usual, error)
        packed = packed_size(_MEAN_TOKENS * size, size, usual) if pack else None
        return usual, packed
    steps = range(min(_SAMPLED_STEPS, sampler.steps_per_epoch))
    needed = [rows.bucket_of(sampler.batch(sampler.position(step))) for step in steps]
    length, packed = collections.Counter(needed).most_common(1)[0][0]
    logging.info("most training batches have captions of up to %d tokens", length)
    return length, packed


def _programs(
    config: Config, place: Topology, usual: Bucket, every: bool
) -> Iterator[tuple[str, Callable[[], Lowered]]]:
    """(name, how to lower it) of what a run of the config runs."""
    mesh = make_mesh(config, place.devices)
    check_training_batch(config, mesh)
    schedule = Schedule.from_config(config, _STEPS_PER_EPOCH, _STEPS_PER_EPOCH + 1)
    plan = make_plan(config, mesh, schedule)
    step, optimizer = jit_step(plan), plan.optimizer
    model = plan.abstract.model
    towers = jit_towers(plan.graphdef, model, mesh)
    hidden = config.text.hidden if config.text.cache_features else None

    opened = [optimizer.open_groups(epoch) for epoch in range(config.num_epochs)]
    groups = list(dict.fromkeys(opened)) if every else [opened[-1]]
    # Padded, where packed ones of that length are not the usual ones: the dearest.
    others: list[Bucket] = [(length, None) for length in padded_lengths(config)]
    # What would help may not pack: microbatches do not.
    if not use_packing(config, mesh.size):
        usual = usual[0], None
    buckets = others if every else [usual]

    pairs = pair_shapes(config.image, config.batch_size)
    for open_groups, (length, packed) in itertools.product(groups, buckets):
        name = f"train_step, {length} tokens"
        if len(groups) > 1:
            name += f", {len(open_groups)} of {len(optimizer.groups)} groups"
        shapes = pairs | caption_shapes(config.batch_size, length, hidden, packed)
        yield name, functools.partial(lower_step, step, plan, shapes, open_groups)
    images, captions = batch_sizes(config, mesh.size)
    encoded = {"encode_images": image_shapes(config.image, images)}
    for length, _ in buckets:
        shapes = caption_shapes(captions, length, hidden)
        encoded[f"encode_captions, {length} tokens"] = shapes
    for name, shapes in encoded.items():
        tower = towers[name.partition(",")[0]]
        yield name, functools.partial(lower_tower, tower, mesh, model, shapes)


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
    seconds = {
        "trace_s": round(traced - start, 1),
        "compile_s": round(time.perf_counter() - traced, 1),
    }
    program = read_program(compiled)
    return {"name": name, **seconds, **_figures(program, place)}


def _exhausted(error: Exception) -> float | None:
    """Bytes that a program needs, from the refusal of a compiler; None: no refusal."""
    # All that it needs, or its temporaries where they alone are too many.
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not used:
        return None
    return float(used[1]) * 2.0 ** (10 * ("KMGT".index(used[2]) + 1))


def _figures(program: Program, place: Topology) -> dict[str, Any]:
    largest_first = sorted(program.collectives, key=lambda c: -c.times * c.sent)
    lines = sorted(program.cycles.items(), key=lambda item: -item[1])
    figures: dict[str, Any] = {
        "fits": program.peak <= place.memory,
        "arguments_bytes": program.arguments,
        "temporaries_bytes": program.temporaries,
        "peak_bytes": program.peak,
        "flops": program.flops,
        "sent_bytes": program.sent(),
        "collectives": [dataclasses.asdict(c) for c in largest_first],
    }
    if place.chip and lines:
        cycles = sum(program.cycles.values())
        sent = sum(program.sent().values())
        step = cycles / place.chip.clock + sent / place.chip.links
        figures["estimate"] = {
            "cycles": cycles,
            "cycles_by_line": dict(lines),
            "step_s": step,
            "of_it_sending_s": sent / place.chip.links,
            "utilisation": program.flops / (step * place.chip.flops),
        }
    return figures


def _lines(result: dict[str, Any], place: Topology) -> Iterator[str]:
    """A program's part of the table."""
    share = f"{result['peak_bytes'] / place.memory:.0%} of a device's memory"
    yield result["name"] + ("" if result["fits"] else "   DOES NOT FIT")
    if "flops" not in result:
        yield f"  needs       {_size(result['peak_bytes'])}, {share}"
        return
    yield f"  compiled    in {result['compile_s']} s, traced in {result['trace_s']} s"
    sizes = (f"{part} {_size(result[f'{part}_bytes'])}" for part in _MEMORY)
    yield f"  memory      {', '.join(sizes)}: {share}"
    yield f"  FLOP        {result['flops']:.3g} a device"
    for kind, sent in result["sent_bytes"].items():
        yield f"  sends       {_size(sent)} by {kind}"
    for c in result["collectives"][:3]:
        yield f"              {c['times']} × {c['kind']} {c['shape']}"
    if estimate := result.get("estimate"):
        yield (
            f"  estimate    {estimate['step_s'] * 1e3:.2f} ms, of it sending "
            f"{estimate['of_it_sending_s'] * 1e3:.2f} ms if nothing overlaps; "
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
    problem = (
        f"{worst['name']} needs {_size(worst['peak_bytes'])} of a device's "
        f"{_size(place.memory)}"
    )
    least, encoder = worst["peak_bytes"], worst["name"].startswith("encode")
    devices = len(place.devices)
    if encoder:
        changes = _smaller_batches(worst["name"], config, devices)
    else:
        changes = _easier(config, devices)
    for change in changes:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(change)
        flags = " ".join(f"--config.{field}={value}" for field, value in change.items())
        try:
            check_config(changed)
            lower = dict(_programs(changed, place, usual, every))[worst["name"]]
            result = _compiled(worst["name"], lower, place)
        except InputError:
            continue
        logging.info("tried %s: %s", flags, _size(result["peak_bytes"]))
        least = min(least, result["peak_bytes"])
        if result["fits"]:
            return f"{problem}; {flags} needs {_size(result['peak_bytes'])}"
    tried = "eval.batch_size" if encoder else "fsdp, remat and microbatches"
    return (
        f"{problem}; no setting of {tried} fits, the least needs {_size(least)}: take "
        "more or larger devices, or a smaller batch"
    )


def _smaller_batches(
    name: str, config: Config, devices: int
) -> Iterator[dict[str, Any]]:
    """Of an encoder in evaluation, down to one picture or caption a device."""
    images, captions = batch_sizes(config, devices)
    parts = (images if name == "encode_images" else captions) // devices
    while parts := parts // 2:
        yield {"eval.batch_size": parts * devices}


def _easier(config: Config, devices: int) -> Iterator[dict[str, Any]]:
    """What makes a step need less memory, from the cheapest in time to the dearest."""
    whole = devices > 1 and config.mesh.fsdp != devices
    shard = {"mesh.data": 1, "mesh.fsdp": devices} if whole else {}
    if shard:
        yield shard
    both = shard | {"remat": True}
    if not config.remat:
        yield {"remat": True}
        if shard:
            yield both
    parts = 2 * config.microbatches
    while config.batch_size % (devices * parts) == 0:
        yield both | {"microbatches": parts}
        parts *= 2

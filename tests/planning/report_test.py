"""--mode=compile: what it says of a config, and what it proposes."""

import functools
import json
import re

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.drafts import draft
from tests.helpers.programs import run
from vse_jax.base.errors import InputError
from vse_jax.planning import report as compile_module
from vse_jax.planning.report import compile_run
from vse_jax.planning.topology import Topology


def test_every_program_of_a_run_for_devices_that_are_not_here(environment, tmp_path):
    """Without data, too: then captions are taken to be as long as COCO's."""
    args = ["--config=tests/helpers/tiny.py:/absent", f"--workdir={tmp_path}"]
    args += ["--mode=compile", "--topology=cpu:4", "--all"]
    args += ["--config.optimizer.rules=(('^image/',1.0,1),('.*',1.0,0))"]
    out, err = run(args, environment)
    assert "captions of up to 16 tokens, as COCO's" in err
    found = json.loads((tmp_path / "compile_cpu_4.json").read_text())
    assert (found["fits"], found["devices"]) == (True, 4)
    names = [program["name"] for program in found["programs"]]
    assert names == [
        "train_step, 16 tokens, 1 of 2 groups",
        "train_step, 16 tokens, 2 of 2 groups",
        "encode_images",
        "encode_captions, 16 tokens",
    ]
    for program in found["programs"]:
        assert program["name"] in out
        assert program["peak_bytes"] >= program["arguments_bytes"] > 0
    frozen, whole = found["programs"][:2]
    assert frozen["flops"] < 0.8 * whole["flops"]  # no gradients in the CNN
    # The text encoder's gradients and nothing of the frozen CNN's are summed by all.
    assert 0 < frozen["sent_bytes"]["all-reduce"] < whole["sent_bytes"]["all-reduce"]


@pytest.fixture(scope="module")
def step_on_a_tpu(environment, tmp_path_factory):
    """step(recipe, fsdp): what the TPU's compiler makes of it, one layer deep."""
    # It then looks less hard for the fastest products; what is sent is the same.
    quick = {**environment, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-0.5"}
    del quick["JAX_DISABLE_MOST_OPTIMIZATIONS"]

    @functools.cache
    def step(recipe, fsdp, topology="v5e:2x4"):
        name, colon, variant = recipe.partition(":")
        workdir = tmp_path_factory.mktemp(name)
        args = [f"--config=configs/{name}.py{colon}{variant}", f"--workdir={workdir}"]
        args += ["--mode=compile", f"--topology={topology}"]
        args += [f"--config.mesh.fsdp={fsdp}"]
        args += ["--config.text.layers=1", "--config.data.root=/absent"]
        args += ["--config.image.backbone.layers=(1,1,1,1)"]
        # Sizes that no parameter has: rows of the batch, and of a device.
        size = 272 if "*" in topology else 136
        args += [f"--config.batch_size={size}", f"--config.eval.batch_size={size}"]
        run(args, quick)
        (file,) = workdir.glob("compile_*.json")
        found = json.loads(file.read_text())
        assert found["fits"]
        return found["programs"][0]

    return step


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [4, 8])
@pytest.mark.parametrize("name", ["coco_region", "coco_grid"])
def test_fsdp_on_a_tpu_sends_no_activations(name, fsdp, step_on_a_tpu):
    whole, cut = step_on_a_tpu(name, 1), step_on_a_tpu(name, fsdp)
    assert 0 < cut["estimate"]["utilisation"] < 1
    shapes = {c["shape"] for c in cut["collectives"]}
    of_rows = {shape for shape in shapes if re.search(r"\b(136|17)\b", shape)}
    # The loss's own: the embeddings of all rows, 8 × 17 or 136, or of a device's.
    assert of_rows <= {"f32[136,1024]", "f32[8,17,1024]", "f32[17,1024]"}
    assert cut["sent_bytes"]["all-gather"] > 0
    word_embeddings = 4 * 30_522 * 768  # the largest parameter
    assert cut["temporaries_bytes"] <= whole["temporaries_bytes"] + word_embeddings
    assert cut["flops"] == pytest.approx(whole["flops"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "milliseconds", "gigabytes"),
    [
        ("coco_region:fast", 7.03, 0.29),
        ("coco_region_bigru", 12.0, 0.27),
        ("coco_grid:fast", 79.4, 2.72),
        ("f30k_grid_wsl:fast", 145.60, 3.60),
    ],
)
def test_what_a_step_costs_a_tpu(recipe, milliseconds, gigabytes, step_on_a_tpu):
    """Bounds of 1.05 × what was measured: no work for other platforms costs a TPU."""
    step = step_on_a_tpu(recipe, 1)
    assert step["estimate"]["step_s"] < 1.05e-3 * milliseconds
    assert step["peak_bytes"] < 1.05e9 * gigabytes
    assert not [c for c in step["collectives"] if c["looped"]]


@pytest.mark.slow
def test_a_devices_shard_of_the_gradients_crosses_between_slices(step_on_a_tpu):
    """They are summed inside a slice first; the parameters do not cross."""
    alone = step_on_a_tpu("coco_region", 1)["sent_bytes"]
    sent = step_on_a_tpu("coco_region", 1, "2*v5e:2x4")["sent_bytes"]
    crossing = sum(size for kind, size in sent.items() if "between slices" in kind)
    assert 0 < crossing < 0.25 * sum(alone.values())


def test_microbatches_are_compiled_padded_as_they_run(tiny_config):
    place, room = Topology("cpu:1", jax.devices()[:1], 10**12), (16, 2)
    tiny_config.text.kind = "bert"

    def arrays():
        _, lower = next(compile_module.programs(tiny_config, place, room, False))
        return lower.args[0]

    assert arrays()["packed_indices"] == ((2, 128), np.int32)
    tiny_config.microbatches = 2
    assert "packed_indices" not in arrays()


def test_every_program_of_several_devices_can_be_lowered(tiny_config, monkeypatch):
    """A step keeps parameters in shards; the encoders take them whole."""
    monkeypatch.setattr("vse_jax.distributed.mesh._SHARD_FROM", 256)
    place = Topology("cpu:4", jax.devices()[:4], 10**12)
    tiny_config.mesh.data = -1
    every = compile_module.programs(tiny_config, place, (16, None), False)
    names = [(name, lower())[0].split(",")[0] for name, lower in every]
    assert names == ["train_step", "encode_images", "encode_captions"]


def test_the_peak_of_a_step_has_the_batches_of_the_next_two():
    place = Topology("cpu:2", jax.devices()[:2], 10**12)
    batch = {"images": jax.ShapeDtypeStruct((6, 100), np.float32)}
    step = jax.jit(lambda state, batch: state + batch["images"].sum())
    alone, ahead = (
        compile_module._compiled(name, lambda: step.lower(0.0, batch), place)
        for name in ("encode_images", "train_step, 16 tokens")
    )
    # 2,400 bytes each, shared by two devices.
    assert ahead["peak_bytes"] == alone["peak_bytes"] + 2 * 1200


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.", 16.5),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(23.40G) exceeds available HBM (15.75G).",
            23.4,
        ),
        ("Attempting to reserve 1.00G at the bottom of memory.", None),
    ],
)
def test_a_compilers_refusal_says_what_is_needed(said, needed):
    found = compile_module._exhausted(ValueError(f"RESOURCE_EXHAUSTED: {said}"))
    assert found == (needed and needed * 2**30)


@pytest.fixture
def on_devices_of(monkeypatch):
    """compile_run of programs whose memory follows formulas, on devices of `memory`."""

    def programs(config, place, tokens, every):
        yield "train_step, 16 tokens", config
        yield "encode_images", config

    def compiled(name, config, place):
        state = 800 // config.mesh.fsdp
        activations = 400 // config.microbatches // (2 if config.remat else 1)
        needed = 10**6 * (state + activations)
        if name == "encode_images":
            needed = 10**7 * config.eval.batch_size
        return {"name": name, "fits": needed <= place.memory, "peak_bytes": needed}

    def run_on(config, workdir, memory):
        place = Topology("cpu:2", jax.devices()[:2], memory)
        monkeypatch.setattr(compile_module, "find", lambda name: place)
        compile_run(config, workdir, topology="cpu:2", all=False)

    monkeypatch.setattr(compile_module, "programs", programs)
    monkeypatch.setattr(compile_module, "_compiled", compiled)
    monkeypatch.setattr(compile_module, "configure", lambda config: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return run_on


@pytest.mark.parametrize(
    ("megabytes", "advice"),
    [
        (900, "--config.mesh.data=1 --config.mesh.fsdp=2 needs 0.80 GB"),
        (
            700,
            "--config.mesh.fsdp=2 --config.remat=True needs 0.60 GB",
        ),
        (500, "--config.remat=True --config.microbatches=2 needs 0.50 GB"),
        (
            300,
            "no setting of fsdp, remat and microbatches fits, the least needs",
        ),
    ],
)
def test_what_does_not_fit_comes_with_what_would(
    megabytes, advice, on_devices_of, tmp_path
):
    config = draft(tiny.get_config("/absent"))
    with pytest.raises(InputError) as error:
        on_devices_of(config, tmp_path, megabytes * 10**6)
    line = str(error.value)
    assert line.startswith("train_step, 16 tokens needs 1.20 GB of a device's 0.")
    assert advice in line
    assert not json.loads((tmp_path / "compile_cpu_2.json").read_text())["fits"]


def test_an_encoder_that_does_not_fit_comes_with_a_smaller_batch(
    on_devices_of, tmp_path
):
    config = draft(tiny.get_config("/absent"))
    config.eval.batch_size = 256
    with pytest.raises(InputError) as error:
        on_devices_of(config, tmp_path, 1200 * 10**6)
    expected = "encode_images needs 2.56 GB of a device's 1.20 GB; "
    expected += "--config.eval.batch_size=64 needs 0.64 GB"
    assert str(error.value) == expected


def test_a_run_that_fits_ends_well(on_devices_of, tmp_path):
    on_devices_of(draft(tiny.get_config("/absent")), tmp_path, 1200 * 10**6)
    assert json.loads((tmp_path / "compile_cpu_2.json").read_text())["fits"]

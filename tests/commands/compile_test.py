"""--mode=compile: what it says of a config, and what it proposes."""

import json
import re

import jax
import pytest

from tests.helpers.programs import run
from tests.helpers.steps import region_config
from vse_jax.base.errors import InputError
from vse_jax.commands import compile as compile_module
from vse_jax.commands.compile import compile_run
from vse_jax.devices.topology import Topology


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
    # The text tower's gradients and nothing of the frozen CNN's are summed by all.
    assert 0 < frozen["sent_bytes"]["all-reduce"] < whole["sent_bytes"]["all-reduce"]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [4, 8])
def test_fsdp_on_a_tpu_sends_no_activations(fsdp, environment, tmp_path):
    """coco_region, one layer deep, by the TPU's own compiler."""
    args = ["--config=configs/coco_region.py", f"--workdir={tmp_path}"]
    args += ["--mode=compile", "--topology=v5e:2x4", f"--config.mesh.fsdp={fsdp}"]
    args += ["--config.text.layers=1", "--config.data.root=/absent"]
    # Sizes that no parameter has: rows of the batch, and of a device.
    args += ["--config.batch_size=136", "--config.eval.batch_size=136"]
    run(args, environment)
    found = json.loads((tmp_path / "compile_v5e_2x4.json").read_text())
    step = found["programs"][0]
    assert found["fits"]
    assert 0 < step["estimate"]["utilisation"] < 1
    shapes = {c["shape"] for c in step["collectives"]}
    of_rows = {shape for shape in shapes if re.search(r"\b(136|17)\b", shape)}
    assert of_rows <= {"f32[136,1024]", "f32[17,1024]"}  # the loss's own
    assert step["sent_bytes"]["all-gather"] > 0


@pytest.fixture
def on_devices_of(monkeypatch):
    """compile_run on two simulated devices of so many bytes; JAX stays as it is."""

    def with_memory(config, workdir, memory):
        place = Topology("cpu:2", jax.devices()[:2], memory)
        monkeypatch.setattr(compile_module, "find", lambda name: place)
        monkeypatch.setattr(compile_module, "configure", lambda config: None)
        monkeypatch.setattr(jax.config, "update", lambda name, value: None)
        compile_run(config, workdir, "cpu:2", False)

    return with_memory


def test_what_does_not_fit_comes_with_what_would(on_devices_of, tmp_path):
    config = region_config()
    config.batch_size, config.eval.batch_size = 2, 2
    config.text.vocab_size = 2**18  # parameters dominate, which fsdp shares out
    on_devices_of(config, tmp_path / "whole", 10**9)
    whole = json.loads((tmp_path / "whole" / "compile_cpu_2.json").read_text())
    needed = whole["programs"][0]["peak_bytes"]
    with pytest.raises(InputError) as error:
        on_devices_of(config, tmp_path / "small", int(0.9 * needed))
    line = str(error.value)
    assert f"train_step, 16 tokens needs {needed / 1e9:.2f} GB of a device's" in line
    assert "; --config.mesh.data=1 --config.mesh.fsdp=2 needs " in line
    found = json.loads((tmp_path / "small" / "compile_cpu_2.json").read_text())
    assert not found["fits"]
    with pytest.raises(InputError, match="no setting of fsdp, remat and microbatches"):
        on_devices_of(config, tmp_path / "none", 10**5)

"""What does not change during a training run, known before anything is computed."""

from dataclasses import dataclass

from flax import nnx
from jax.sharding import Mesh

from vse_jax.config import Config
from vse_jax.models.build import abstract_model
from vse_jax.optimizer import Optimizer, Schedule
from vse_jax.training.state import TrainState, abstract_state


@dataclass(frozen=True, eq=False)
class Plan:
    """The fixed parts of a training run.

    graphdef: of the model. abstract: shapes and shardings of the run's state.
    """

    config: Config
    mesh: Mesh
    graphdef: nnx.GraphDef
    optimizer: Optimizer
    schedule: Schedule
    abstract: TrainState

    @property
    def steps(self) -> int:
        """Of the whole run."""
        steps = self.schedule.steps(self.config.num_epochs)
        return min(steps, self.config.max_steps or steps)


def make_plan(config: Config, mesh: Mesh, schedule: Schedule) -> Plan:
    """The plan of a run of the config.

    Raises:
        InputError: a parameter that no rule matches.
    """
    graphdef, model = abstract_model(config)
    optimizer = Optimizer(config.optimizer, model["params"])
    abstract = abstract_state(optimizer, model, mesh)
    return Plan(config, mesh, graphdef, optimizer, schedule, abstract)

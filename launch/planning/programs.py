"""The programs that a plan compiles: the training step of a stage, and the sampler, at abstract arrays on a mesh."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from dalle_jax.codec import CodecConfig, FrozenCodec
from dalle_jax.decoder.model import abstract_params
from dalle_jax.decoder.sampling import (
    SamplingConfig,
    candidate_keys,
    no_prime,
    prefill,
    sample_tokens,
    sampling_params,
    sampling_rules,
)
from dalle_jax.decoder.task import DecoderTask
from dalle_jax.nn.cpu_decoding import DecodingLayout
from dalle_jax.training.config import MeshConfig, TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, check_batch, param_shardings, replicated
from dalle_jax.training.program import build_step
from dalle_jax.training.task import Task
from dalle_jax.training.trees import unbox
from launch.planning.flops import FlopCount, count_flops
from launch.planning.topologies import Topology
from launch.run.config import RunConfig
from launch.run.stages import STAGES


@dataclasses.dataclass(frozen=True)
class Target:
    """What is to be compiled.

    Attributes:
      name: of the stage, or `sampling`.
      topology: the chips.
      mesh: of them.
      rules: of sharding.
      parameters: of the model.
      state_bytes: what one device keeps from step to step.
      useful_flops: of one run of the program, by formula; 0 where there is none.
      formula: in words.
      trace: gives the traced program.
    """

    name: str
    topology: Topology
    mesh: Mesh
    rules: ShardingRules
    parameters: int
    state_bytes: int
    useful_flops: float
    formula: str
    trace: Callable[[], Any]

    def traced(self) -> tuple[Any, FlopCount]:
        """The traced program, and the FLOPs that it executes."""
        with jax.set_mesh(self.mesh), self.rules.context():
            traced = self.trace()
        return traced, count_flops(traced.jaxpr)

    def compile(self, traced: Any) -> Any:
        """Runs the compiler; see `measure` for what it says where memory does not suffice."""
        with jax.set_mesh(self.mesh), self.rules.context():
            return traced.lower(lowering_platforms=(self.mesh.devices.flat[0].platform,)).compile()


def training_target(
    run: RunConfig, stage: str, mesh_config: MeshConfig, topology: Topology, devices: Any
) -> tuple[Target, TrainConfig]:
    """The training step of one stage, as `launch.train` would run it.

    Args:
      run: the config.
      stage: a name of `launch.run.stages.STAGES`.
      mesh_config: arrangement of `devices`.
      topology: what `devices` are.
      devices: of the topology, or others to compile for.

    Raises:
      UserError: batch or parameters do not divide over the mesh.
    """
    task, config, batch = _stage(run, stage)
    mesh, rules = make_mesh(mesh_config, devices), ShardingRules.of(mesh_config)
    check_batch(config.batch_size, config.micro_batches, mesh, rules)
    with jax.set_mesh(mesh), rules.context():
        program = build_step(task, config, mesh, rules)
        prepared = jax.eval_shape(task.prepare, batch)
    arguments = program.abstract, _placed(prepared, program.batch_sharding)
    target = Target(
        name=stage,
        topology=topology,
        mesh=mesh,
        rules=rules,
        parameters=program.num_parameters,
        state_bytes=_bytes(arguments[0]),
        useful_flops=task.step_flops(config.batch_size),
        formula=(inspect.getdoc(type(task).step_flops) or "").splitlines()[0],
        trace=lambda: program.step.trace(*arguments),  # pyrefly: ignore[missing-attribute]
    )
    return target, config


def _stage(run: RunConfig, stage: str) -> tuple[Task, TrainConfig, Mapping[str, jax.ShapeDtypeStruct]]:
    """Task, its settings, and the batch as it comes from the data: shapes alone, so no codec need be trained yet."""
    if stage == "decoder":
        assert run.decoder is not None
        model, config = run.decoder.model, run.decoder.train
        # The tokens come with the batch; the codec's own work in a step is small beside the decoder's.
        codec = FrozenCodec(CodecConfig(codebook_size=model.codebook_size), {}, {}, 8 * model.grid_size)
        shapes = {"text": (model.text_length,), "image_tokens": (model.image_length,)}
        return DecoderTask(model, codec), config, _ints(config.batch_size, shapes)
    plan = STAGES[stage].plan(run, epath.Path(), False)
    images = (plan.train.batch_size, plan.image_size, plan.image_size, 3)
    batch = {"image": jax.ShapeDtypeStruct(images, jnp.uint8)}
    if plan.text is not None:
        batch |= _ints(plan.train.batch_size, {"text": (plan.text.length,)})
    return plan.task, plan.train, batch


def _ints(batch_size: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((batch_size, *shape), jnp.int32) for name, shape in shapes.items()}


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    """Of one device's shards."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * (0 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else
        x.dtype.itemsize) for x in jax.tree.leaves(tree)
    )  # fmt: skip


def sampling_targets(
    run: RunConfig, mesh_config: MeshConfig, topology: Topology, devices: Any, candidates: int
) -> tuple[Target, Callable[[Any], Target]]:
    """The two programs that sample images of one caption, as `Dalle.generate` runs them.

    Returns:
      The prefill, and a function from the compiled prefill, which says where the text's keys and values lie, to the
      loop over all image positions that samples `candidates` at once.
    """
    assert run.decoder is not None
    config = run.decoder.model
    mesh, boxed = make_mesh(mesh_config, devices), abstract_params(config)
    memory = topology.num_chips * topology.chip.memory_bytes
    rules = sampling_rules(ShardingRules.of(mesh_config), boxed, mesh, memory)
    check_batch(candidates, 1, mesh, rules)
    with jax.set_mesh(mesh), rules.context():
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(lambda tree: sampling_params(config, tree, DecodingLayout.fastest(mesh)), unbox(boxed)),
            param_shardings(boxed, mesh, rules),
        )
        text = _placed(jax.ShapeDtypeStruct((1, config.text_length), jnp.int32), replicated(mesh))
        text_kv = jax.eval_shape(lambda *x: prefill(config, *x), params, text)
        keys = jax.eval_shape(lambda: candidate_keys(0, jnp.arange(candidates)))
        prime = jax.eval_shape(lambda: no_prime(config, 1))
    keys, prime = _placed(keys, batch_sharding(mesh, rules)), _placed(prime, replicated(mesh))
    parameters = sum(x.size for x in jax.tree.leaves(params))
    shared = (topology, mesh, rules, parameters, _bytes(params))

    def sampling(prefilled: Any) -> Target:
        places = prefilled.output_shardings
        known = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), text_kv, places)
        arguments = config, params, known, keys, prime, SamplingConfig()
        return Target("sampling", *shared, 0.0, "", lambda: sample_tokens.trace(*arguments))

    return Target("prefill", *shared, 0.0, "", lambda: prefill.trace(config, params, text)), sampling

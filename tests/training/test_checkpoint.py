"""Which checkpoints are kept, and what happens where one is damaged or the disk is full."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints import orbax_io
from dalle_jax.training.checkpoints.manager import Checkpoints
from dalle_jax.training.checkpoints.reader import check_model, load_params
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import replicated
from dalle_jax.training.state import TrainState


def make_state(step):
    return TrainState(
        step=jnp.int32(step), params={"w": jnp.full((8, 4), float(step))}, opt_state=(jnp.float32(step), ()),
        model_state={}, ema=None, key=jax.random.key(0),
    )  # fmt: skip


def abstract(sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0))


def open_checkpoints(stage_dir, mode="min", **keep):
    keep = {"keep_last": 2, "keep_best": 1, "keep_every": 0} | keep
    config = TrainConfig(batch_size=1, num_steps=1, optimizer=OptimizerConfig(learning_rate=1.0), **keep)
    return Checkpoints(stage_dir, config, best_metric="loss", best_mode=mode)


def save_all(stage_dir, steps, metrics=None, **keep):
    checkpoints = open_checkpoints(stage_dir, **keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"window": [step]}, (metrics or {}).get(step))
    checkpoints.close()


def damage(stage_dir, step):
    """Flips one byte in what the arrays of a checkpoint are read from."""
    file = max((stage_dir / "checkpoints" / str(step) / "params" / "d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_keeps_last_best_and_every(tmp_path):
    losses = {step: {"loss": loss} for step, loss in {2: 0.9, 3: 0.1, 5: 0.5, 8: 0.8}.items()}
    save_all(tmp_path / "a", range(1, 9), losses)
    assert saved_steps(tmp_path / "a") == [3, 7, 8]  # The best, and the last two although one is worse.
    save_all(tmp_path / "b", range(1, 9), losses, mode="max", keep_last=1, keep_every=3)
    assert saved_steps(tmp_path / "b") == [2, 3, 6, 8]


def test_a_relative_folder_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all("runs/mine/codec", [1])
    assert saved_steps("runs/mine/codec") == saved_steps(tmp_path / "runs/mine/codec") == [1]
    assert float(load_params("runs/mine/codec").params["w"][0, 0]) == 1.0
    mesh = make_mesh(MeshConfig())
    assert int(open_checkpoints("runs/mine/codec").restore(abstract(replicated(mesh))).state.step) == 1


def test_knows_what_improves_after_a_restart(tmp_path):
    save_all(tmp_path, [1, 2], {1: {"loss": 0.5}})
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.improves({"loss": 0.4})
    assert not checkpoints.improves({"loss": 0.6})
    assert not checkpoints.improves({"loss": float("nan")})
    checkpoints.close()


def test_restores_onto_any_mesh(tmp_path):
    save_all(tmp_path, [4])
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    wanted = abstract(replicated(mesh))
    wanted = wanted.replace(params={"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=spread)})
    checkpoints = open_checkpoints(tmp_path)
    restored = checkpoints.restore(wanted)
    checkpoints.close()
    assert restored.state.params["w"].sharding == spread
    np.testing.assert_array_equal(restored.state.params["w"], np.full((8, 4), 4.0))
    assert int(restored.state.step) == 4
    assert restored.state.ema is None and restored.state.model_state == {}
    assert restored.progress == {"window": [4]}


@pytest.mark.parametrize("kind", ["byte", "item"])
def test_damaged_newest_falls_back_and_says_so(kind, tmp_path, caplog):
    save_all(tmp_path, [1, 2, 3], keep_last=3)
    for step in (2, 3):
        if kind == "byte":
            damage(tmp_path, step)
        else:
            (tmp_path / "checkpoints" / str(step) / "optimizer" / "manifest.ocdbt").unlink()
    checkpoints = open_checkpoints(tmp_path)
    restored = checkpoints.restore(abstract(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    assert int(restored.state.step) == 1
    said = caplog.text
    assert "checkpoint 3" in said and "checkpoint 2" in said and "going back to 1" in said
    # The run comes by the same steps again, and can save them.
    checkpoints.save(3, make_state(3), {})
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 3]
    assert (tmp_path / "checkpoints" / "3.damaged").exists()
    assert load_params(tmp_path).step == 3


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), MemoryError(), ValueError("UNAVAILABLE: Error reading gs://bucket")]
)
def test_what_another_try_would_mend_is_no_damage(error, tmp_path, monkeypatch):
    """Rights, a network, memory: a good checkpoint is not put aside for them."""
    save_all(tmp_path, [1, 2])

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for read in (lambda: open_checkpoints(tmp_path).restore(abstract(one)), lambda: load_params(tmp_path)):
        with pytest.raises(type(error)):
            read()
    assert saved_steps(tmp_path) == [1, 2]


def test_a_step_may_be_damaged_twice(tmp_path):
    save_all(tmp_path, [1])
    for _ in range(2):
        save_all(tmp_path, [2])
        damage(tmp_path, 2)
        checkpoints = open_checkpoints(tmp_path)
        restored = checkpoints.restore(abstract(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
        assert int(restored.state.step) == 1
        checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2.damaged"]


def test_a_flipped_bit_in_noise_is_found(tmp_path, caplog):
    noise = jax.random.bits(jax.random.key(0), (128, 64))  # does not compress, and is stored as it is
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step).replace(params={"w": noise}), {"window": []})
    checkpoints.wait()
    some = np.asarray(noise).tobytes()[9_000:9_032]
    (file,) = [path for path in (tmp_path / "checkpoints" / "2" / "params").rglob("*")
               if path.is_file() and some in path.read_bytes()]  # fmt: skip
    flipped = bytes([some[0] ^ 1]) + some[1:]
    file.write_bytes(file.read_bytes().replace(some, flipped))
    for shardings in (None, jax.sharding.SingleDeviceSharding(jax.devices()[0])):
        assert load_params(tmp_path, shardings=shardings).step == 1
        assert "1 arrays are not what was saved, such as params/w" in caplog.text
        caplog.clear()
    wanted = abstract(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    like = jax.ShapeDtypeStruct(noise.shape, noise.dtype, sharding=wanted.params["w"].sharding)
    restored = checkpoints.restore(wanted.replace(params={"w": like}))
    checkpoints.close()
    assert int(restored.state.step) == 1 and restored.progress == {"window": []}
    assert "checkpoint 2" in (said := caplog.text) and "such as params/w" in said


def test_what_one_process_finds_changed_none_loads(tmp_path, monkeypatch, caplog):
    save_all(tmp_path, [1, 2])
    # Of step 2: both processes can read it, and the other finds that it is not what was saved.
    answers = iter([[True, True], [True, False], [True, True], [True, True]])
    monkeypatch.setattr(orbax_io, "gather", lambda value: next(answers))
    assert load_params(tmp_path).step == 1
    assert "checkpoint 2" in (said := caplog.text) and "process 1 cannot read it" in said


def test_nothing_readable_is_an_error_and_moves_nothing(tmp_path):
    save_all(tmp_path, [1])
    damage(tmp_path, 1)
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore(abstract(jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    checkpoints.close()
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        load_params(tmp_path)
    assert saved_steps(tmp_path) == [1]


def test_half_written_checkpoint_is_swept_away(tmp_path):
    save_all(tmp_path, [1])
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.steps == [1]
    checkpoints.save(2, make_state(2), {})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What TensorStore's C++ makes of it, as seen on a full tmpfs.
        ValueError("RESOURCE_EXHAUSTED: Error writing \"a/0.0\": No space left on device [os_error_code='28']"),
    ],
    ids=["python", "tensorstore"],
)
def test_full_disk_is_one_line_and_leaves_the_checkpoint_before(fault, tmp_path, monkeypatch):
    checkpoints = open_checkpoints(tmp_path, keep_last=1)
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()

    async def fail(*args, **kwargs):
        raise fault

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    with pytest.raises(UserError, match="the disk is full while saving to .*checkpoint 1 is intact") as error:
        checkpoints.save(2, make_state(2), {})
        checkpoints.wait()
    assert "\n" not in str(error.value)
    assert load_params(tmp_path).step == 1


def test_another_model_is_named_not_called_damage(tmp_path):
    save_all(tmp_path, [1])
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = abstract(sharding).replace(params={"w": jax.ShapeDtypeStruct((8, 5), jnp.float32, sharding=sharding)})
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"'w' is \(8, 4\) and should be \(8, 5\)"):
        checkpoints.restore(wanted)
    checkpoints.close()


def test_load_params(tmp_path):
    save_all(tmp_path, [1, 2])
    on_host = load_params(tmp_path)
    assert on_host.step == 2 and isinstance(on_host.params["w"], np.ndarray) and on_host.model_state == {}
    mesh = make_mesh(MeshConfig(2, 2, 2))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for shardings in (spread, {"w": spread}, {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=spread)}):
        assert load_params(tmp_path, 1, shardings=shardings).params["w"].sharding == spread
    with pytest.raises(UserError, match="no checkpoint of step 7 .* it has 1, 2"):
        load_params(tmp_path, 7)
    with pytest.raises(UserError, match="'v' is missing; 'w' is unknown to the model"):
        load_params(tmp_path, shardings={"v": spread})


def test_check_model_looks_at_shapes_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp.Checkpointer, "restore", lambda *_, **__: pytest.fail("an array is read"))
    wanted = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    with pytest.raises(UserError, match="there is no checkpoint in .*; train that stage first"):
        check_model(tmp_path, wanted, {})
    checkpoints = open_checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step).replace(model_state={"codes": jnp.zeros((16, 2))}), {})
    checkpoints.close()
    codes = {"codes": jax.ShapeDtypeStruct((16, 2), jnp.float32)}
    check_model(tmp_path, wanted, codes)
    with pytest.raises(UserError, match=r"/2/params does not fit the model: 'w' is \(8, 4\) and should be \(8, 5\)"):
        check_model(tmp_path, {"w": jax.ShapeDtypeStruct((8, 5), jnp.float32)}, codes)
    with pytest.raises(UserError, match=r"/2/model_state does not fit the model: 'codes' is unknown"):
        check_model(tmp_path, wanted, {})
    damage(tmp_path, 2)  # arrays of this size lie beside their shapes
    check_model(tmp_path, wanted, codes)  # the one before is what would be loaded
    damage(tmp_path, 1)
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        check_model(tmp_path, wanted, codes)

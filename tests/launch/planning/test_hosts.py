"""What the hosts of TPU pods read, by the compiler's own descriptions of them."""

import numpy as np
import pytest

from configs import decoder_12b
from dalle_jax.config import from_config_dict
from dalle_jax.data import prefetch
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import fit_mesh, make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding
from launch.planning.topologies import find_topology

pytest.importorskip("libtpu", reason="descriptions of TPUs need libtpu: bash launch/test.sh --parity")


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("v5e-256", MeshConfig()),
        ("v5e-256", from_config_dict(MeshConfig, decoder_12b.get_config().mesh)),
        ("v5p-128", MeshConfig(data=1, fsdp=8, tensor=8)),
        ("2xv5e-16", MeshConfig(slices=2)),
        ("v5e-16", MeshConfig()),
    ],
)
def test_rows_of_the_hosts_of_a_pod(name, mesh):
    """A host has a square of chips, which the mesh cuts as it will: all rows are read, and none for nothing."""
    devices = list(find_topology(name).devices())
    sharding = batch_sharding(make_mesh(fit_mesh(mesh, len(devices), mesh.slices), devices), ShardingRules.of(mesh))
    hosts = {device.process_index for device in devices}
    assert len(hosts) == len(devices) // 4
    everywhere = sharding.devices_indices_map((1024,))
    rows = [prefetch.rows_of(everywhere, 1024, host) for host in hosts]
    assert set(np.concatenate(rows)) == set(range(1024)) and all((np.diff(part) > 0).all() for part in rows)
    held = {device: range(1024)[part] for device, (part,) in everywhere.items()}
    for host, part in zip(hosts, rows, strict=True):
        assert set(part) == {row for device, has in held.items() if device.process_index == host for row in has}

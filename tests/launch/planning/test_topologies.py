"""Names of slices, refusals, meshes that fit, links, and the arithmetic of the roofline."""

from types import SimpleNamespace

import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig
from launch.planning.collectives import Collective
from launch.planning.families import FAMILIES
from launch.planning.roofline import days, roofline
from launch.planning.topologies import find_topology, fit_topology, mesh_flags


@pytest.mark.parametrize(
    ("name", "chip", "shape", "slices", "num_chips"),
    [
        ("v5e-256", "v5e", (16, 16), 1, 256),
        ("v5litepod-8", "v5e", (2, 4), 1, 8),
        ("v6e-4", "v6e", (2, 2), 1, 4),
        ("v4-256", "v4", (4, 4, 8), 1, 128),
        ("v5p-128", "v5p", (4, 4, 4), 1, 64),
        ("2xv5e-256", "v5e", (16, 16), 2, 512),
    ],
)
def test_names(name, chip, shape, slices, num_chips):
    topology = find_topology(name)
    assert (topology.chip.name, topology.shape, topology.slices, topology.num_chips) == (chip, shape, slices, num_chips)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "write CHIP-N"),
        ("v5e-200", "no slice of 200 chips; near are v5e-64, v5e-128, v5e-256"),
        ("v5e-512", "near are v5e-64, v5e-128, v5e-256, and two slices are written 2xv5e-64"),
        ("v5p-100", "no slice of 100 cores, two a chip; near are v5p-64, v5p-128, v5p-256"),
        ("v6-e-8", "write CHIP-N"),
        ("v6a-8", "unknown chip 'v6a', did you mean 'v6e'"),
        ("h100-8", "unknown chip 'h100'"),
        ("0xv5e-4", "at least one slice"),
        ("v5e-0", "no slice of 0 chips"),
    ],
)
def test_refusals_name_what_is_near(name, message):
    with pytest.raises(UserError, match=message):
        find_topology(name)


@pytest.mark.parametrize(
    ("topology", "asked", "expected"),
    [
        ("v5e-256", (-1, 16, 16), (-1, 16, 16)),
        ("v4-256", (-1, 16, 16), (-1, 8, 16)),
        ("v5p-128", (-1, 16, 16), (-1, 8, 8)),
        ("v5e-32", (1, -1, 1), (1, -1, 1)),
        ("2xv5e-32", (1, -1, 1), (2, -1, 1)),
        ("2xv5e-256", (-1, 16, 16), (-1, 16, 16)),
        ("v5e-8", (2, 2, 1), (-1, 2, 1)),
        ("v5e-4", (1, 3, -1), (1, 1, -1)),
    ],
)
def test_meshes_are_halved_until_they_fit(topology, asked, expected):
    topology = find_topology(topology)
    mesh = fit_topology(MeshConfig(*asked), topology)
    assert (mesh.data, mesh.fsdp, mesh.tensor) == expected
    assert mesh.slices == topology.slices


@pytest.mark.parametrize(
    ("topology", "asked", "given", "expected"),
    [
        ("v5e-16", (-1, 4, 16), {"fsdp"}, (-1, 4, 4)),
        ("v5e-16", (4, 16, 16), {"data"}, (4, -1, 4)),
        ("v5e-8", (2, 2, 2), {"data", "fsdp", "tensor"}, (2, 2, 2)),
        ("3xv5e-4", (9, 1, -1), (), (3, 1, -1)),
        ("2xv5e-4", (-1, 8, 1), (), (-1, 4, 1)),
        ("v5e-4", (-1, 0, 1), {"fsdp"}, (-1, 0, 1)),
    ],
)
def test_what_a_person_chose_stays(topology, asked, given, expected):
    mesh = fit_topology(MeshConfig(*asked), find_topology(topology), given)
    assert (mesh.data, mesh.fsdp, mesh.tensor) == expected


@pytest.mark.parametrize(
    ("topology", "asked", "given", "message"),
    [
        ("v5e-16", (-1, 300, 1), {"fsdp"}, "--config.mesh.fsdp=300 does not fit v5e-16: .* its 16 chips"),
        ("v5e-16", (1, 2, 2), {"data", "fsdp", "tensor"}, "mesh.data=1 --config.mesh.fsdp=2 --config.mesh.tensor=2"),
        ("2xv5e-4", (3, -1, 1), {"data"}, "--config.mesh.data=3 does not fit 2xv5e-4: .* its slices, 2"),
        ("2xv5e-4", (-1, 8, 1), {"fsdp"}, "--config.mesh.fsdp=8 does not fit 2xv5e-4"),
        ("2xv5e-4", (-1, 1, 1, 4), {"slices"}, "--config.mesh.slices=4 does not fit 2xv5e-4"),
    ],
)
def test_what_a_person_chose_is_refused_where_it_does_not_fit(topology, asked, given, message):
    with pytest.raises(UserError, match=message):
        fit_topology(MeshConfig(*asked), find_topology(topology), given)


def test_flags_of_a_mesh_name_all_that_differs():
    assert mesh_flags(MeshConfig(-1, 16, 16), MeshConfig(-1, 8, 16, slices=2)) == (
        "--config.mesh.fsdp=8",
        "--config.mesh.slices=2",
    )


def test_links_of_a_chip_are_shared_by_its_sides():
    assert FAMILIES["v5e"].link_bandwidth == 200e9 / 4
    assert FAMILIES["v5p"].link_bandwidth == 600e9 / 6


def mesh_of(topology, shape):
    """Devices of a topology in the order of their places, as `make_mesh` arranges them where every axis is a side."""
    places = [(slice_index, *place) for slice_index in range(topology.slices) for place in np.ndindex(*topology.shape)]
    devices = np.empty(len(places), object)
    for i, (slice_index, *place) in enumerate(places):
        devices[i] = SimpleNamespace(coords=[*place, 0], slice_index=slice_index)
    return SimpleNamespace(devices=devices.reshape(shape), axis_names=("data", "fsdp", "tensor"))


def test_links_of_rings_and_lines():
    pod = find_topology("v5e-256")
    mesh = mesh_of(pod, (1, 16, 16))
    assert pod.link_bandwidth(mesh, ("tensor",)) == 2 * 50e9, "a ring has two ways"
    assert pod.link_bandwidth(mesh, ("fsdp", "tensor")) == 4 * 50e9
    part = find_topology("v5e-64")
    assert part.link_bandwidth(mesh_of(part, (1, 8, 8)), ("tensor",)) == 50e9, "a line has one"
    cube = find_topology("v5p-128")
    assert cube.link_bandwidth(mesh_of(cube, (1, 16, 4)), ("fsdp",)) == 4 * 100e9
    two = find_topology("2xv5e-256")
    assert two.link_bandwidth(mesh_of(two, (2, 16, 16)), ("data",)) == 0, "slices are not joined by links"


def test_roofline_arithmetic():
    two = find_topology("2xv5e-256")
    mesh = mesh_of(two, (2, 16, 16))
    transfers = [
        Collective("all-gather", ("fsdp", "tensor"), 3, within=200e9, between=0.0),
        Collective("all-reduce", ("data",), 1, within=0.0, between=6.25e9),
        Collective("all-reduce", ("tensor",), 1, within=50e9, between=0.0),
    ]
    seconds = roofline(two, mesh, passes=512 * 197e12 * 1.25, memory_bytes=819e9 / 2, transfers=transfers)
    assert seconds.compute == pytest.approx(1.25)
    assert seconds.memory == pytest.approx(0.5)
    assert seconds.links == pytest.approx(1.0 + 0.5)
    assert seconds.network == pytest.approx(2.0)
    assert (seconds.bound, seconds.seconds, seconds.steps_a_day) == (
        "network",
        pytest.approx(2.0),
        pytest.approx(43200),
    )
    assert days(86_400, 512 * 197e12, two, utilisation=0.5) == pytest.approx(2.0)

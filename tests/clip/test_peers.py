"""Where comparisons with peers are asked for, a peer that cannot be imported is a failure, not many skipped tests."""

import importlib
import os

import pytest

PEERS = ("torch", "clip.model", "open_clip", "transformers", "timm.models.vision_transformer", "dall_e", "libtpu")


@pytest.mark.skipif(
    not os.environ.get("DALLE_JAX_PARITY"), reason="the peers are not asked for: bash launch/test.sh --parity"
)
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_can_be_imported(peer, torchvision):
    importlib.import_module(peer)

"""Images as tokens, made once by `launch.encode` and read by the decoder's training."""

from dalle_jax.data.encoded.source import Encoded, Manifest, Split, read_manifest

__all__ = ["Encoded", "Manifest", "Split", "read_manifest"]

"""The scenes as a TFDS data set in ArrayRecord files, drawn once into a cache folder; TensorFlow is not needed."""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dalle_jax.config import config_hash
from dalle_jax.data.config import ShapesConfig
from dalle_jax.data.shapes.scenes import captions, draw, random_scene

SPLITS = ("train", "eval", "unseen")
"""`eval` has new scenes of the colour-shape pairs of `train`; `unseen` has only pairs that `train` has nowhere."""


@dataclasses.dataclass
class ShapesBuilderConfig(tfds.core.BuilderConfig):
    """One variant of the data set, prepared into a folder of its own."""

    shapes: ShapesConfig = ShapesConfig()


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Features: `image` (PNG bytes as stored), `captions` (several phrasings of the same scene)."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, config: ShapesConfig, data_dir: str):
        # Where the files lie says nothing about what is in them.
        name = config_hash(dataclasses.replace(config, data_dir=""))
        super().__init__(
            config=ShapesBuilderConfig(name=name, description=str(config), shapes=config),  # pyrefly: ignore
            data_dir=data_dir,
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.shapes.image_size
        features = {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description="Drawn scenes of one or two objects with captions that name every attribute.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config.shapes
        for i in range(config.num_train if split == "train" else config.num_eval):
            rng = np.random.default_rng((config.seed, SPLITS.index(split), i))
            num_objects = int(rng.integers(1, config.max_objects, endpoint=True))
            scene = random_scene(rng, unseen=split == "unseen", num_objects=num_objects)
            encoded = io.BytesIO()
            Image.fromarray(draw(scene, config.image_size, rng)).save(encoded, "png", compress_level=1)
            yield i, {"image": encoded.getvalue(), "captions": list(captions(scene))}

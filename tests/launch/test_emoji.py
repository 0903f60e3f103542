"""The emoji data set: what becomes a sample, equality with the real shards, and what is said when parts lack."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError
from launch import emoji

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ANNOTATIONS = {
    "annotations": """
        <annotation cp="☕">drink | hot</annotation> <annotation cp="☕" type="tts">hot beverage</annotation>
        <annotation cp="→" type="tts">rightwards arrow</annotation>
        <annotation cp="🏂" type="tts">snowboarder</annotation>""",
    "annotationsDerived": """
        <annotation cp="🏂🏻" type="tts">snowboarder: light skin tone</annotation>
        <annotation cp="👨‍🍳">chef | cook</annotation> <annotation cp="👨‍🍳" type="tts">man cook</annotation>""",
}


@pytest.fixture
def cldr(tmp_path):
    for part, text in ANNOTATIONS.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "en.xml").write_text(f"<ldml><annotations>{text}</annotations></ldml>", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def font():
    if not FONT.is_file():
        pytest.skip(f"{FONT} is absent: apt-get install fonts-noto-color-emoji")
    return emoji.load_font(str(FONT))


def test_annotations_in_order(cldr):
    assert list(emoji.annotations(cldr))[0] == ("☕", "hot beverage", ["drink", "hot"])
    assert [name for _, name, _ in emoji.annotations(cldr)][-1] == "man cook"


def test_what_the_font_lacks_or_draws_twice_is_left_out(cldr, font):
    found = emoji.samples(cldr, font)
    assert [sample["txt"].decode() for sample in found] == ["hot beverage", "snowboarder", "man cook"]
    assert json.loads(found[2]["json"])["codepoints"] == "U+1F468 U+200D U+1F373"


def test_pictures_are_centered_on_white(font):
    image = np.asarray(emoji.draw("☕", font))
    assert image.shape == (128, 128, 3)
    ink = np.argwhere((image < 250).any(axis=-1))
    assert abs(ink.min(axis=0) + ink.max(axis=0) - 127).max() <= 4


def test_shards_are_read_as_webdataset(cldr, font, tmp_path):
    emoji.write_shard(tmp_path / "train-00000.tar", emoji.samples(cldr, font))
    config = DataConfig(source=SourceKind.WEBDATASET, path=str(tmp_path / "*.tar"), eval_fraction=0.0)
    assert [record.captions[0] for record in open_source(config)] == ["hot beverage", "snowboarder", "man cook"]
    assert not list(tmp_path.glob("*.tmp"))


def test_equal_to_the_shards_at_hand(emoji_glob, font):
    (path, *_) = sorted(Path(emoji_glob).parent.glob("train-*.tar"))
    with tarfile.open(path) as tar:
        files = {name: tar.extractfile(name).read() for name in tar.getnames()[: 3 * 40]}
    for name, about in files.items():
        if name.endswith(".json"):
            characters = "".join(chr(int(code[2:], 16)) for code in json.loads(about)["codepoints"].split())
            expected = Image.open(io.BytesIO(files[name.replace(".json", ".png")]))
            np.testing.assert_array_equal(np.asarray(emoji.draw(characters, font)), np.asarray(expected))


def test_missing_packages_are_named(tmp_path):
    with pytest.raises(UserError, match="apt-get install fonts-noto-color-emoji"):
        emoji.load_font(str(tmp_path / "none.ttf"))
    with pytest.raises(UserError, match="apt-get install unicode-cldr-core"):
        list(emoji.annotations(tmp_path))


def test_another_font_is_refused(tmp_path):
    (tmp_path / "not.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match="not a color emoji font"):
        emoji.load_font(str(tmp_path / "not.ttf"))

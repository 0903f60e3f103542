"""The suites on real layouts with a model that a test chose, and the script as a person runs it."""

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clip_jax import VisionConfig, tower_config
from clip_jax.evaluation.features import encode_source, label_array
from clip_jax.evaluation.zero_shot import class_directions
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import Record
from dalle_jax.errors import UserError
from launch.evaluation import linear_probe, retrieval, zero_shot
from launch.evaluation.class_names import labelled_alike
from launch.evaluation.datasets import Classes, DataFlags, find_prompts, is_benchmark, open_split
from launch.evaluation.results import NotApplicable, Results, check

SIZE = 16
VISION = VisionConfig(SIZE, 8, tower_config(1, 64))
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
FLAGS = DataFlags(model="unused")


class ColourClip:
    """Images are their mean colour; captions are the colour that they name."""

    config = SimpleNamespace(vision=VISION)

    def encode_image(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (SIZE, SIZE, 3)
        return images.mean(axis=(1, 2)).astype(np.float32)

    def probe_features(self, images):
        return ColourClip.encode_image(self, images) / 255

    def encode_text(self, texts):
        named = [[colour in text for colour in COLOURS] for text in texts]
        return np.float32(named) * 100 + 1

    def class_directions(self, class_names, templates):
        return class_directions(self.encode_text, class_names, templates)


def picture(rng, name, size=20):
    noise = rng.integers(-9, 10, (size, size + 4, 3))
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(COLOURS[name] + noise, 0, 255))).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def npy(marks):
    file = io.BytesIO()
    np.save(file, np.asarray(marks))
    return file.getvalue()


def write_benchmark(folder, split, labels, per_shard=10, kind="classification"):
    """CLIP_benchmark's layout; class 1 is green, 0 blue, 2 red."""
    rng, names = np.random.default_rng(len(split)), ("blue", "green", "red")
    members = []
    for i, label in enumerate(labels):
        sample = {f"s{i:07d}.png": picture(rng, names[np.atleast_1d(label)[0]])}
        if kind == "multilabel":
            sample[f"s{i:07d}.npy"] = npy([c in np.atleast_1d(label) for c in range(3)])
        elif kind == "retrieval":
            sample[f"s{i:07d}.txt"] = f"a {names[label]} thing\nsomething {names[label]}".encode()
        else:
            sample[f"s{i:07d}.cls"] = str(label).encode()
        members.append(sample)
    shards = range(0, len(members), per_shard)
    for number, start in enumerate(shards):
        write_tar(
            folder / split / f"{number}.tar", {k: v for m in members[start : start + per_shard] for k, v in m.items()}
        )
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}\n")
    if kind != "classification":
        (folder / "dataset_type.txt").write_text(kind + "\n")
    return str(folder)


@pytest.fixture
def benchmark(tmp_path):
    """23 test images in three tars, two of them with a wrong label, and 60 to train on."""
    labels = [i % 3 for i in range(21)]
    write_benchmark(tmp_path / "wds_colours", "train", [i % 3 for i in range(60)])
    folder = write_benchmark(tmp_path / "wds_colours", "test", labels)
    rng = np.random.default_rng(5)
    wrong = {"x.png": picture(rng, "red"), "x.cls": b"0", "y.png": picture(rng, "red"), "y.cls": b"1"}
    write_tar(tmp_path / "wds_colours" / "test" / "3.tar", wrong)
    (tmp_path / "wds_colours" / "test" / "nshards.txt").write_text("4")
    return folder


def test_zero_shot_in_the_layout_of_clip_benchmark(benchmark):
    row = zero_shot.evaluate(ColourClip(), benchmark, "test", FLAGS)
    assert row["accuracy"] == row["result"] == pytest.approx(21 / 23) and row["metric"] == "accuracy"
    assert row["mean_per_class"] == pytest.approx((7 / 8 + 7 / 8 + 1) / 3)
    assert (row["pictures"], row["classes"], row["templates"], row["skipped"]) == (23, 3, 2, 0)
    json.dumps(row)


def test_shards_that_are_missing_are_named(benchmark, tmp_path):
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "wds_colours" / "test" / "nshards.txt").write_text("6", encoding=encoding)
        with pytest.raises(UserError, match="4.tar"):
            open_split(benchmark, "test", FLAGS, labelled=True)
    (tmp_path / "wds_colours" / "test" / "nshards.txt").write_text("many")
    with pytest.raises(UserError, match="nshards.txt must hold the number"):
        open_split(benchmark, "test", FLAGS, labelled=True)
    (tmp_path / "wds_colours" / "classnames.txt").unlink()
    assert is_benchmark(benchmark)
    with pytest.raises(UserError, match="classnames.txt is missing"):
        find_prompts(benchmark, open_split(benchmark, "train", FLAGS, labelled=True), FLAGS)


def test_class_names_keep_their_lines(benchmark, tmp_path):
    names = tmp_path / "wds_colours" / "classnames.txt"
    names.write_text("blue\n\nred\u2028wine \r\n\n\n")
    source = open_split(benchmark, "test", FLAGS, labelled=True)
    assert find_prompts(benchmark, source, FLAGS).classes == (("blue",), ("",), ("red\u2028wine",))
    names.write_text("\n\n")
    with pytest.raises(UserError, match="the prompts of wds_colours must be"):
        find_prompts(benchmark, source, FLAGS)


def test_templates_are_for_zero_shot_alone(benchmark, tmp_path):
    templates = tmp_path / "wds_colours" / "zeroshot_classification_templates.txt"
    templates.write_text("a {c}\n\nthe {c}\n")
    source = open_split(benchmark, "test", FLAGS, labelled=True)
    assert find_prompts(benchmark, source, FLAGS).templates == ("a {}", "the {}")
    templates.unlink()
    assert linear_probe.evaluate(ColourClip(), benchmark, "test", FLAGS)["accuracy"] == pytest.approx(21 / 23)
    with pytest.raises(UserError, match="templates.txt is missing"):
        zero_shot.evaluate(ColourClip(), benchmark, "test", FLAGS)


def test_several_classes_of_a_picture(tmp_path):
    labels = [(2,), (1,), (0,), (2, 1), (0,), (1,)]
    folder = write_benchmark(tmp_path / "wds_voc2007_multilabel", "test", labels, kind="multilabel")
    row = zero_shot.evaluate(ColourClip(), folder, "test", FLAGS)
    assert row["metric"] == "eleven_point_map"
    # Red and blue rank their images first. Green has three: its two first, and the red one among four others like it
    # or last, at a precision between 3/6 and 3/3, for the recalls over 2/3.
    assert (1 + 1 + (7 + 4 * 3 / 6) / 11) / 3 <= row["result"] <= 1


def test_retrieval_in_the_layout_of_clip_benchmark(tmp_path):
    folder = write_benchmark(tmp_path / "pairs", "test", [0, 1, 2], kind="retrieval")
    row = retrieval.evaluate(ColourClip(), folder, "test", FLAGS)
    assert (row["pictures"], row["captions"], row["without_caption"]) == (3, 6, 0)
    assert row["text_recall_at_1"] == row["image_recall_at_1"] == 1.0
    misled = retrieval.evaluate(ColourClip(), folder, "test", FLAGS, prefix="a red, green and blue ")
    assert misled["image_recall_at_1"] < 1
    with pytest.raises(UserError, match="has no captions"):
        (tmp_path / "none" / "a").mkdir(parents=True)
        (tmp_path / "none" / "a" / "1.png").write_bytes(picture(np.random.default_rng(0), "red"))
        retrieval.evaluate(ColourClip(), str(tmp_path / "none"), "test", FLAGS)


def test_suites_that_do_not_apply(benchmark, tmp_path):
    """Found out before an image is encoded."""
    captioned = write_benchmark(tmp_path / "pairs", "test", [0, 1, 2], kind="retrieval")
    clip = ColourClip()
    clip.encode_image = clip.probe_features = None
    with pytest.raises(NotApplicable, match="has no captions"):
        retrieval.evaluate(clip, benchmark, "test", FLAGS)
    for suite in (zero_shot, linear_probe):
        with pytest.raises(NotApplicable, match="has no labels"):
            suite.evaluate(clip, captioned, "test", FLAGS)


def test_labels_without_names(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": picture(np.random.default_rng(0), "red"), "a.cls": b"0"})
    with pytest.raises(UserError, match="does not name its classes: say whose they are with --prompts=NAME"):
        zero_shot.evaluate(ColourClip(), str(tmp_path / "0.tar"), "test", FLAGS)


def test_what_comes_of_each_data_set(capsys):
    def measure(data):
        if data == "other":
            raise NotApplicable("it has no labels")
        if data == "bad":
            raise UserError("a shard is\nmissing")
        return {"data": data}

    results = Results("zero_shot")
    for data in ("good", "other", "bad", "fine"):
        results.add(data, measure, may_skip=True)
    assert results.report() == {
        "results": [{"data": "good"}, {"data": "fine"}],
        "skipped": {"other": "it has no labels"},
        "failed": {"bad": "a shard is missing"},
    }
    assert capsys.readouterr().err.splitlines() == [
        "note: zero_shot skips other: it has no labels",
        "failed: zero_shot of bad: a shard is missing",
    ]
    with pytest.raises(UserError, match="not measured: zero_shot of bad, all suites of other; the lines above say why"):
        check([results], ["good", "other", "bad", "fine"])
    alone = Results("zero_shot")
    alone.add("other", measure, may_skip=False)
    assert alone.failed == {"other": "it has no labels"}
    check(
        [Results("zero_shot", [], {"other": "it has no labels"}), Results("retrieval", [{"data": "other"}])], ["other"]
    )


def test_a_linear_probe(benchmark, tmp_path):
    clip = ColourClip()
    clip.encode_image = None  # probes read what comes before the projection
    row = linear_probe.evaluate(clip, benchmark, "test", FLAGS)
    assert row["accuracy"] == pytest.approx(21 / 23) and row["train_pictures"] == 60 and row["converged"]
    assert len(row["validation"]) >= 11 and max(row["validation"].values()) == 1.0
    json.dumps(row)
    write_benchmark(tmp_path / "wds_colours", "val", [0, 0, 1, 1, 2, 2])
    again = linear_probe.evaluate(ColourClip(), benchmark, "test", FLAGS, "train", "val")
    assert max(again["validation"].values()) == 1.0


def test_a_probe_is_not_measured_on_what_it_was_fitted_on(benchmark, folder, tmp_path):
    clip = ColourClip()
    clip.encode_image = clip.probe_features = None
    with pytest.raises(UserError, match="--split and --validation_split of .* are the same images"):
        linear_probe.evaluate(clip, benchmark, "test", FLAGS, "train", "test")
    with pytest.raises(UserError, match="--train_split and --validation_split of .* are the same images"):
        linear_probe.evaluate(clip, benchmark, "test", FLAGS, "train", "train")
    for data in (f"{folder}/train", f"{benchmark}/test/*.tar"):
        with pytest.raises(UserError, match="--split and --train_split of .* are the same images.*a folder for each"):
            linear_probe.evaluate(clip, data, "test", DataFlags("unused", classes=Classes.INDEX, prompts="CIFAR10"))


def test_a_split_that_a_folder_lacks(folder, tmp_path):
    with pytest.raises(UserError, match=r"mine has no split 'vla' \(it has test, train\): name one of them"):
        zero_shot.evaluate(ColourClip(), folder, "vla", FLAGS)
    (tmp_path / "toys").mkdir()
    (tmp_path / "mine" / "train" / "red").rename(tmp_path / "toys" / "train")
    (tmp_path / "mine" / "train" / "blue").rename(tmp_path / "toys" / "ball")
    assert open_split(str(tmp_path / "toys"), "test", FLAGS, labelled=True).class_names == ("ball", "train")
    with pytest.raises(UserError, match="toys has no split 'test'"):
        open_split(str(tmp_path / "toys"), "test", FLAGS, labelled=False)


def test_a_split_that_tables_or_lists_name(tmp_path):
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.png").write_bytes(b"")
        named = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": split}]}
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(named))
    source = open_split(str(tmp_path), "val", FLAGS, labelled=False)
    assert [source.captions(i) for i in range(len(source))] == [("val2017",)]
    with pytest.raises(UserError, match=r"no split 'test' \(it has train2017, val2017\)"):
        open_split(str(tmp_path), "test", FLAGS, labelled=False)
    alone = str(tmp_path / "captions_val2017.json")
    assert len(open_split(alone, "test", FLAGS, labelled=False)) == 1


def test_named_prompts_and_names_beside_the_data(benchmark, tmp_path):
    """The names that lie beside the data say what the labels are, whoever makes the captions."""
    source, file = open_split(benchmark, "test", FLAGS, labelled=True), tmp_path / "mine.json"
    file.write_text(json.dumps({"classes": ["Red", ["green", "lime"], "blue"], "templates": ["a {}"]}))

    def classes(how):
        return find_prompts(benchmark, source, DataFlags("unused", str(file), how)).classes

    assert classes(Classes.MATCH) == (("blue",), ("green", "lime"), ("Red",))
    assert classes(Classes.INDEX) == (("Red",), ("green", "lime"), ("blue",))
    assert classes(Classes.DATA) == (("blue",), ("green",), ("red",))
    with pytest.raises(UserError, match="3 classes and CIFAR10 has 10.*--classes=index"):
        find_prompts(benchmark, source, DataFlags("unused", "CIFAR10"))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for name in COLOURS:
            for i in range(count):
                path = tmp_path / "mine" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(rng, name))
    (tmp_path / "mine" / "test" / "red" / "broken.png").write_bytes(b"no image")
    return str(tmp_path / "mine")


def test_a_folder_by_class(folder):
    row = zero_shot.evaluate(ColourClip(), folder, "test", FLAGS)
    assert row["accuracy"] == 1.0 and row["pictures"] == 12 and row["skipped"] == 1 and row["templates"] == 1
    assert linear_probe.evaluate(ColourClip(), folder, "test", FLAGS)["accuracy"] == 1.0


def test_prompts_and_the_order_of_classes(folder, tmp_path):
    source = open_split(folder, "test", FLAGS, labelled=True)
    assert source.class_names == ("blue", "green", "red")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"classes": ["Red", ["green", "lime"], "blue"], "templates": ["a {}"]}))

    def classes(how, prompts=str(file)):
        flags = DataFlags("unused", prompts, how)
        return find_prompts(folder, source, flags).classes

    assert classes(Classes.MATCH) == (("blue",), ("green", "lime"), ("Red",))
    assert classes(Classes.INDEX) == (("Red",), ("green", "lime"), ("blue",))
    assert classes(Classes.DATA) == (("blue",), ("green",), ("red",))
    with pytest.raises(UserError, match="3 classes and CIFAR10 has 10"):
        classes(Classes.MATCH, "cifar10")


def test_labels_of_splits_go_by_name(tmp_path):
    """A split may lack a class; the others do not move up."""
    rng = np.random.default_rng(1)
    for split, names in (("train", ("blue", "green", "red")), ("val", ("green", "red")), ("test", ("blue", "red"))):
        for name in names:
            for i in range(6):
                path = tmp_path / "parts" / split / name / f"{split}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(rng, name))
    row = linear_probe.evaluate(ColourClip(), str(tmp_path / "parts"), "test", FLAGS, "train", "val")
    assert row["accuracy"] == 1.0 and row["classes"] == 3 and max(row["validation"].values()) == 1.0
    (tmp_path / "parts" / "val" / "green").rename(tmp_path / "parts" / "val" / "grün")
    clip = ColourClip()
    clip.probe_features = None  # found out before an image is encoded
    with pytest.raises(UserError, match="--validation_split has 1 class.* that --train_split has not, such as 'grün'"):
        linear_probe.evaluate(clip, str(tmp_path / "parts"), "test", FLAGS, "train", "val")


def test_one_split_that_names_its_classes_and_one_that_does_not():
    named, unnamed = (SimpleNamespace(class_names=names) for names in (("a",), ()))
    assert labelled_alike("data", {"split": unnamed, "train_split": unnamed}) == {
        "split": unnamed, "train_split": unnamed,
    }  # fmt: skip
    with pytest.raises(UserError, match="the split of --train_split does not name its classes, and --split does"):
        labelled_alike("data", {"split": named, "train_split": unnamed})


def test_published_names_in_their_order_are_for_all_of_them(folder, tmp_path):
    source = open_split(folder, "test", FLAGS, labelled=True)
    with pytest.raises(UserError, match="has 3 classes and CIFAR10 has 10: --classes=index counts both from the first"):
        find_prompts(folder, source, DataFlags("unused", "CIFAR10", Classes.INDEX))


@pytest.mark.parametrize("inside", ["pets", "pets/mine"])
def test_a_folder_that_only_sounds_like_a_published_set(folder, tmp_path, inside, capsys):
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / "mine").rename(tmp_path / inside)
    data = str(tmp_path / inside)
    source = open_split(data, "test", FLAGS, labelled=True)
    assert find_prompts(data, source, FLAGS).classes == (("blue",), ("green",), ("red",))
    (line,) = capsys.readouterr().err.splitlines()
    assert "not taken for OxfordPets" in line and "the data have 3 classes and OxfordPets has 37" in line
    with pytest.raises(UserError, match="3 classes and OxfordPets has 37"):
        find_prompts(data, source, DataFlags("unused", "pets"))


def test_labels_that_do_not_fit():
    one, many = Record(b"", (), "k", label=3), Record(b"", (), "m", labels=(0, 1))
    with pytest.raises(UserError, match="sample k of data has the label 3, and there are 3 class names"):
        label_array([one], 3, "data")
    with pytest.raises(UserError, match="sample m of data has no label"):
        label_array([one, many], 4, "data")
    assert label_array([one], 4, "data").tolist() == [3]
    assert label_array([many], 3, "data").tolist() == [[True, True, False]]


def test_pictures_in_order_and_none_that_can_be_read(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_jax.evaluation.features._AT_ONCE", 4)
    source = open_split(benchmark, "test", FLAGS, labelled=True)
    encoded = encode_source(ColourClip().encode_image, source, VISION)
    assert [record.key for record in encoded.records] == [source.key(i) for i in range(23)]
    assert encoded.features.shape == (23, 3) and encoded.records[0].image == b""
    write_tar(tmp_path / "bad.tar", {"a.png": b"no"})
    with pytest.raises(UserError, match="none of the 1 images"):
        encode_source(ColourClip().encode_image, WebDataset([str(tmp_path / "bad.tar")]), VISION)


@pytest.mark.entry
def test_the_script(scripts, tiny_run, benchmark, folder, tmp_path):
    done = scripts(
        "evaluate", f"--model={tiny_run}", "--suite=zero_shot,retrieval,linear_probe", f"--data={benchmark}",
        f"--data={folder}", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.code == 0 and f"note: retrieval skips {benchmark}: " in done.err, done
    skipped = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert set(skipped["skipped"]) == {benchmark, folder} and not skipped["results"] and not skipped["failed"]
    assert all("has no captions" in reason for reason in skipped["skipped"].values())
    for suite in ("zero_shot", "linear_probe"):
        report = json.loads((tmp_path / "out" / f"{suite}.json").read_text())
        assert [row["pictures"] for row in report["results"]] == [23, 12] and report["model"] == str(tiny_run)
        assert all(0 <= row["accuracy"] <= 1 for row in report["results"])
    lines = done.out.splitlines()
    assert lines[0].split()[:5] == ["data", "pictures", "classes", "metric", "result"] and benchmark in lines[1]
    done = scripts(
        "evaluate", f"--model={tiny_run}", "--suite=retrieval", "--data=run", f"--out={tmp_path / 'out'}",
        "--caption_prefix=an image of ",
    )  # fmt: skip
    assert done.code == 0 and "text_recall_at_10" in done.out, done
    (row,) = json.loads((tmp_path / "out" / "retrieval.json").read_text())["results"]
    assert row["pictures"] == 32 and row["captions"] >= 32


@pytest.mark.entry
def test_one_bad_data_set_of_several(scripts, tiny_run, benchmark, folder, tmp_path):
    done = scripts(
        "evaluate", f"--model={tiny_run}", "--suite=zero_shot", f"--data={benchmark}", "--data=no/where",
        f"--data={folder}", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.code == 2 and benchmark in done.out and folder in done.out, done
    failed, error = [line for line in done.err.splitlines() if line.startswith(("failed", "error"))]
    assert failed.startswith("failed: zero_shot of no/where: --data='no/where' does not exist")
    assert error.startswith("error: not measured: zero_shot of no/where;")
    report = json.loads((tmp_path / "out" / "zero_shot.json").read_text())
    assert [row["data"] for row in report["results"]] == [benchmark, folder] and list(report["failed"]) == ["no/where"]


@pytest.mark.entry
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--suite=zeroshot"], ["no 'zeroshot'", "did you mean 'zero_shot'"]),
        (["--suite=zero_shot"], ["measures on data", "--data"]),
        (["--suite=zero_shot", "--data=no/where"], ["'no/where' does not exist"]),
        (["--suite=zero_shot", "--data=run"], ["has no labels"]),
        (["--suite=zero_shot", "--data=run", "--prompts=CIFAR11"], ["did you mean 'CIFAR10'"]),
        (["--suite=zero_shot", "--data=run", "--prompts=CIFAR10"], ["has no label"]),
    ],
)
def test_mistakes(scripts, tiny_run, arguments, parts, tmp_path):
    done = scripts("evaluate", f"--model={tiny_run}", f"--out={tmp_path}", *arguments)
    assert done.code == 2, done
    (line,) = done.err.splitlines()
    assert all(part in line for part in parts), line


@pytest.mark.entry
def test_cifar10_trains_and_is_classified_by_prompts(scripts, photographs, tmp_path):
    train, workdir = "--config.clip.train", tmp_path / "cifar10"
    done = scripts.train(
        "clip_cifar10.py", workdir, "--config.data.source=webdataset", f"--config.data.path={photographs}",
        f"{train}.num_steps=2", f"{train}.batch_size=8", f"{train}.eval_batches=1", f"{train}.optimizer.warmup_steps=1",
    )  # fmt: skip
    assert done.code == 0, done
    done = scripts("evaluate", f"--model={workdir}", "--suite=zero_shot", "--data=run")
    assert done.code == 0, done
    (row,) = json.loads((workdir / "report" / "zero_shot.json").read_text())["results"]
    assert (row["prompts"], row["classes"], row["templates"]) == ("CIFAR10", 10, 18) and row["pictures"] > 10

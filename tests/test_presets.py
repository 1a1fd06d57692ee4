"""Models from names, folders and repositories, and back into folders."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pickle
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import kmaskformer as kmf
from kmaskformer import presets
from kmaskformer.backbones.resnet import ResNet
from kmaskformer.checkpoints.loading import named_weights
from kmaskformer.checkpoints.preset_config import is_preset
from kmaskformer.checkpoints.reference_names import reference_parameter
from kmaskformer.checkpoints.releases import find_release, releases
from kmaskformer.config import config_from_dict
from kmaskformer.downloads import DigestError, DownloadError, file_digests
from kmaskformer.hub import RepositoryFiles
from kmaskformer.model_card import model_card
from kmaskformer.models.pixel_decoder import FPNPixelDecoder
from kmaskformer.models.transformer_decoder import QueryDecoder
from kmaskformer.preset_folder import PresetInfo

INFO = kmf.DatasetInfo("fields", ("soil", "crop", "weed"), thing_ids=(2,), dataset_ids=(5, 6, 7), ignore_value=9)
NAME = "maskformer_resnet50_ade20k150"


def tiny_model(kind=kmf.MaskFormer, info=INFO, dtype="float32", **options):
    backbone = ResNet(18, num_blocks=(1, 1, 1, 1), stem_channels=8, channels=(8, 8, 16, 16), dtype=dtype)
    parts = {"backbone": backbone, "pixel_decoder": FPNPixelDecoder(32, 8, dtype=dtype)}
    if "transformer_decoder" in kind.PARTS:
        num_queries = info.num_classes if kind is kmf.PerPixelBaselinePlus else 5
        parts["transformer_decoder"] = QueryDecoder(num_queries, 8, 1, 8, decoder_layers=1, dtype=dtype)
    model = kind(**parts, num_classes=info.num_classes, dataset_info=info, dtype=dtype, **options)
    model.build()
    return model


@functools.cache
def outputs(model):
    images = np.random.default_rng(0).integers(0, 256, (1, 37, 50, 3), "uint8")
    return {key: np.asarray(value) for key, value in model(images).items() if key != "aux_outputs"}


def assert_equal_outputs(model, expected):
    found = outputs(model)
    for key, value in outputs(expected).items():
        np.testing.assert_array_equal(found[key], value)


def reference_arrays(model):
    """The model's weights under the reference's names, in PyTorch's layout."""
    parts = {}
    for path, weight in named_weights(model).items():
        key, third = reference_parameter(path)
        value = np.asarray(weight)
        if path.endswith("/kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        parts.setdefault(key, {})[third or 0] = value
    return {key: np.concatenate([values[i] for i in sorted(values)]) for key, values in parts.items()}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "fields"
    return kmf.save_to_preset(model, folder, license="mit", shortest_edge=320, longest_edge=640)


@pytest.fixture()
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "fields"))


@pytest.fixture()
def zoo(model, tmp_path, monkeypatch):
    """A release whose model is small; gives the file that its server would send."""
    monkeypatch.setenv("KMASKFORMER_HOME", str(tmp_path / "home"))
    file = tmp_path / "file.pkl"
    file.write_bytes(pickle.dumps({"model": reference_arrays(model), "__author__": "test"}))
    prefix = file_digests(file, "md5")[0][:6]
    release = find_release(NAME)
    url = f"https://localhost:1/model_final_{prefix}.pkl"
    release = dataclasses.replace(release, num_classes=3, md5_prefix=prefix, url=url)
    for module in ("presets.find_release", "presets.release_of_file"):
        monkeypatch.setattr(f"kmaskformer.{module}", lambda name: release)
    monkeypatch.setattr(presets, "build_release", lambda release: tiny_model())
    return file, tmp_path / "home" / NAME / release.file_name


class TestOurFolder:
    def test_round_trip(self, model, folder):
        loaded = kmf.from_preset(folder)
        assert_equal_outputs(loaded, model)
        assert loaded.dataset_info == INFO
        assert loaded.get_config() == model.get_config()
        assert loaded.preset_info == PresetInfo(license="mit", shortest_edge=320, longest_edge=640)
        assert loaded.preset_info.segmenter_options == {"shortest_edge": 320, "longest_edge": 640}

    def test_files(self, model, folder):
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md", "config.json", "dataset_info.json", "metadata.json", "model.weights.h5", "preprocessing.json"
        ]  # fmt: skip
        preprocessing = json.loads((folder / "preprocessing.json").read_text())
        assert preprocessing == {
            "pixel_mean": [123.675, 116.28, 103.53],
            "pixel_std": [58.395, 57.12, 57.375],
            "size_divisibility": 32,
            "shortest_edge": 320,
            "longest_edge": 640,
        }
        assert json.loads((folder / "dataset_info.json").read_text())["class_names"] == ["soil", "crop", "weed"]
        assert list(folder.parent.iterdir()) == [folder]

    @pytest.mark.parametrize("kind", [kmf.PerPixelBaseline, kmf.PerPixelBaselinePlus])
    def test_per_pixel_models(self, kind, tmp_path):
        baseline = tiny_model(kind, size_divisibility=0)
        loaded = kmf.from_preset(kmf.save_to_preset(baseline, tmp_path / "pixels"))
        assert type(loaded) is type(baseline)
        assert_equal_outputs(loaded, baseline)
        with pytest.warns(UserWarning, match="7 classes instead of 3: left fresh, to be trained: (classif|transf)"):
            assert outputs(kmf.from_preset(tmp_path / "pixels", num_classes=7))["logits"].shape[-1] == 7

    def test_precision_normalisation_and_padding_are_kept(self, tmp_path):
        options = {"dtype": "mixed_bfloat16", "pixel_mean": [1.0, 2.0, 3.0], "size_divisibility": 0}
        half = tiny_model(**options, deep_supervision=False)
        loaded = kmf.from_preset(kmf.save_to_preset(half, tmp_path / "half"))
        assert loaded.get_config() == half.get_config()
        assert_equal_outputs(loaded, half)

    def test_compiled_model_is_saved_without_its_optimizer(self, folder, tmp_path):
        compiled = kmf.from_preset(folder)
        compiled.compile(kmf.build_optimizer(config_from_dict({}).optimizer))
        compiled.optimizer.build(compiled.trainable_variables)
        kmf.save_to_preset(compiled, tmp_path / "again")
        sizes = [(path / "model.weights.h5").stat().st_size for path in (folder, tmp_path / "again")]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
        assert compiled.optimizer is not None
        # Licence and sizes of the preset that it came from.
        assert kmf.from_preset(tmp_path / "again").preset_info.license == "mit"

    def test_training_run(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        loaded = kmf.from_preset(tmp_path)
        assert_equal_outputs(loaded, model)
        assert loaded.preset_info == PresetInfo(str(tmp_path / "model.keras"))

    def test_segmenter(self, folder):
        loaded = kmf.from_preset(folder)
        result = kmf.Segmenter(loaded, task="semantic", **loaded.preset_info.segmenter_options)(
            np.zeros((40, 60, 3), np.uint8)
        )
        assert result.segmentation.shape == (40, 60)
        assert {row["label"] for row in result.segments} <= set(INFO.class_names)

    def test_other_number_of_classes(self, model, folder):
        with pytest.warns(
            UserWarning, match="5 classes instead of 3: left fresh, .*: class_head/kernel, class_head/bias$"
        ):
            loaded = kmf.from_preset(folder, num_classes=5)
        found, expected = outputs(loaded), outputs(model)
        assert found["class_logits"].shape == (1, 5, 6)
        np.testing.assert_array_equal(found["mask_logits"], expected["mask_logits"])
        assert np.asarray(loaded.class_head.kernel).std() > 0
        assert loaded.dataset_info.class_names[4] == "class 4"
        assert kmf.from_preset(folder, num_classes=3).dataset_info == INFO

    def test_own_labels(self, folder):
        names = kmf.DatasetInfo("mine", ("a", "b"))
        with pytest.warns(UserWarning, match="2 classes instead of 3"):
            assert kmf.from_preset(folder, dataset_info=names).dataset_info == names
        with pytest.raises(
            ValueError, match=r"must agree; give one of them. Received: num_classes=3, dataset_info with 2"
        ):
            kmf.from_preset(folder, num_classes=3, dataset_info=names)
        with pytest.raises(
            ValueError, match=r"`num_classes` must be a positive integer, or None. Received: num_classes=0"
        ):
            kmf.from_preset(folder, num_classes=0)

    def test_model_without_labels(self, model, folder):
        nameless = tiny_model()
        nameless.dataset_info = None
        kmf.save_to_preset(nameless, folder)
        assert not (folder / "dataset_info.json").exists()
        assert kmf.from_preset(folder).dataset_info == kmf.DatasetInfo.numbered(3)

    def test_moved_folder_and_home_folder(self, model, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        shutil.move(folder, tmp_path / "moved")
        assert_equal_outputs(kmf.from_preset("~/moved"), model)


class TestSaving:
    def test_refuses_a_folder_of_other_things(self, model, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"not empty and not a preset. Found: notes.txt.*overwrite=True"):
            kmf.save_to_preset(model, tmp_path)
        kmf.save_to_preset(model, tmp_path, overwrite=True)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert is_preset(tmp_path)

    def test_replaces_a_preset_but_not_its_card(self, folder):
        (folder / "README.md").write_text("edited")
        other = tiny_model(info=kmf.DatasetInfo("other", ("a", "b")))
        kmf.save_to_preset(other, folder)
        assert_equal_outputs(kmf.from_preset(folder), other)
        assert (folder / "README.md").read_text() == "edited"
        kmf.save_to_preset(other, folder, overwrite=True)
        assert (folder / "README.md").read_text() != "edited"

    def test_failure_leaves_the_older_preset(self, model, folder, monkeypatch):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr("kmaskformer.preset_folder.model_card", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kmf.save_to_preset(model, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert list(folder.parent.iterdir()) == [folder]

    def test_current_folder(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        kmf.save_to_preset(model, ".")
        assert is_preset(tmp_path)
        assert f"# {tmp_path.name}\n" in (tmp_path / "README.md").read_text()

    def test_refuses_a_file_and_other_models(self, model, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError, match="must be a folder, and is a file"):
            kmf.save_to_preset(model, tmp_path / "file")
        with pytest.raises(
            TypeError, match=r"`model` must be a built segmentation model of kmaskformer. Received: <Seq"
        ):
            kmf.save_to_preset(keras.Sequential(), tmp_path / "new")

    def test_card(self, model, folder):
        text = (folder / "README.md").read_text()
        _, front_matter, body = text.split("---\n", 2)
        assert yaml.safe_load(front_matter) == {
            "library_name": "keras",
            "pipeline_tag": "image-segmentation",
            "license": "mit",
            "tags": ["kmaskformer", "maskformer", "panoptic-segmentation"],
        }
        assert 'kmf.from_preset("fields")' in body
        assert "| evaluated on | images whose shorter side is 320 pixels, the longer at most 640 |" in body
        assert "| classes | soil, crop, weed |" in body
        assert f"| parameters | {model.count_params():,} |" in body
        compile(body.split("```python\n")[1].split("```")[0], "card", "exec")

    def test_card_of_little_known_model(self, model):
        nameless = tiny_model(kmf.PerPixelBaseline)
        nameless.dataset_info = None
        text = model_card(nameless, "x", {})
        assert "license: unknown" in text
        assert "| classes | 3, without names |" in text
        assert "semantic-segmentation" in text
        many = tiny_model(kmf.PerPixelBaseline, kmf.DatasetInfo.numbered(40))
        text = model_card(many, "x", {"longest_edge": 500, "license": "cc-by-nc-4.0"})
        assert "and 10 more (dataset_info.json) |" in text
        assert "| images whose longer side is at most 500 pixels |" in text
        assert "CC BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use" in text


class TestDamagedFolder:
    def test_missing_weights(self, folder):
        (folder / "model.weights.h5").unlink()
        with pytest.raises(FileNotFoundError, match=r"model.weights.h5: the preset lacks this file"):
            kmf.from_preset(folder)

    def test_cut_off_weights(self, folder):
        weights = folder / "model.weights.h5"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(DigestError, match=r"not the weights that were saved .* Found: \w+ \(1000 bytes\)"):
            kmf.from_preset(folder)

    def test_weights_of_another_model(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config["config"]["num_classes"] = 4
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "dataset_info.json").unlink()
        with pytest.raises(ValueError, match=r"model.weights.h5: these weights do not fit the configured model"):
            kmf.from_preset(folder)

    @pytest.mark.parametrize(
        ("file", "text", "message"),
        [
            ("config.json", "{", r"config.json: cannot be read as JSON .* Copy or save it anew"),
            ("config.json", "[]", r"config.json: must hold a JSON object. Found: list"),
            (
                "config.json",
                '{"registered_name": "kmaskformer>X"}',
                r"config.json: no model can be made of it .*config",
            ),
            ("config.json", '{"registered_name": "kmaskformer>X", "config": 3}', r"config.json: no model can be made"),
            ("metadata.json", '{"license": 3}', r"metadata.json: `license` must be of type .*str.*Found: 3"),
            ("metadata.json", '{"object_mask_threshold": "x"}', r"metadata.json: `object_mask_threshold` must be of"),
            ("preprocessing.json", '{"shortest_edge": "x"}', r"preprocessing.json: `shortest_edge` must be of type"),
            ("preprocessing.json", '{"pixel_mean": "x"}', r"config.json: no model can be made of it"),
            ("dataset_info.json", '{"name": "", "class_names": 3}', r"dataset_info.json: .*Correct the file"),
            ("metadata.json", "3", r"metadata.json: must hold a JSON object. Found: int"),
            ("preprocessing.json", '{"size_divisibility": -3}', r"config.json: no model can be made of it .*-3.*meta"),
            ("dataset_info.json", '{"name": "", "class_names": ["a"]}', r"info.json: `dataset_info` must describe"),
        ],
    )
    def test_wrong_file(self, folder, file, text, message):
        (folder / file).write_text(text)
        with pytest.raises(ValueError, match=message):
            kmf.from_preset(folder)

    def test_other_class(self, folder):
        layer = keras.saving.serialize_keras_object(FPNPixelDecoder(32, 8))
        (folder / "config.json").write_text(json.dumps(layer))
        (folder / "preprocessing.json").unlink()
        with pytest.raises(ValueError, match="it describes a FPNPixelDecoder, not a segmentation model"):
            kmf.from_preset(folder)

    def test_no_preset(self, tmp_path):
        with pytest.raises(ValueError, match=r"not a preset. Expected a config.json .* Found: nothing"):
            kmf.from_preset(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "mask2former"}')
        with pytest.raises(ValueError, match=r"`model_type` must be maskformer. Found: mask2former"):
            kmf.from_preset(tmp_path)


class TestRelease:
    def test_named(self, model, zoo, caplog):
        """From the name to the model, with a file that lies in the cache as after a download."""
        file, cached = zoo
        cached.parent.mkdir(parents=True)
        shutil.copy(file, cached)
        for _ in range(2):
            caplog.clear()
            loaded = kmf.from_preset(NAME)
            assert "maskformer_resnet50_ade20k150: licence of the weights: CC BY-NC 4.0" in caplog.text
            assert [record.levelno for record in caplog.records if record.name == "kmaskformer"] == [logging.WARNING]
        assert_equal_outputs(loaded, model)
        info = loaded.preset_info
        assert (info.source, info.license, info.score) == (NAME, "cc-by-nc-4.0", find_release(NAME).score)
        assert info.segmenter_options == {"shortest_edge": 512, "longest_edge": 2048}
        assert info.before_inference is None
        assert cached.with_name(f"{cached.name}.sha256").is_file()

    def test_the_order_of_panoptic_models(self):
        """The reference restores mask logits before the semantic inference of the models that it calls panoptic."""
        options = {release.task: presets._release_info(release, "").segmenter_options for release in releases()}
        assert options["panoptic"]["before_inference"] is True
        assert "before_inference" not in options["semantic"]

    def test_offline(self, zoo, monkeypatch):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(DownloadError, match=rf"cannot be downloaded .*put it at {zoo[1]}$"):
            kmf.from_preset(NAME)

    def test_file(self, model, zoo, tmp_path, caplog):
        path = tmp_path / zoo[1].name
        shutil.copy(zoo[0], path)
        assert_equal_outputs(kmf.from_preset(path), model)
        assert "CC BY-NC 4.0" in caplog.text

    def test_damaged_file(self, zoo, tmp_path):
        path = tmp_path / zoo[1].name
        path.write_bytes(zoo[0].read_bytes()[:-1])
        with pytest.raises(DigestError, match="its MD5 must begin with"):
            kmf.from_preset(path)

    def test_fine_tuning_and_its_preset(self, zoo, tmp_path):
        path = tmp_path / zoo[1].name
        shutil.copy(zoo[0], path)
        with pytest.warns(UserWarning, match="2 classes instead of 3"):
            loaded = kmf.from_preset(path, num_classes=2)
        kmf.save_to_preset(loaded, tmp_path / "tuned", score="mIoU 50")
        info = kmf.from_preset(tmp_path / "tuned").preset_info
        assert (info.source, info.license, info.score, info.shortest_edge) == (NAME, "cc-by-nc-4.0", "mIoU 50", 512)
        assert "license: cc-by-nc-4.0" in (tmp_path / "tuned" / "README.md").read_text()

    def test_file_of_another_name_tells_its_architecture(self, model, zoo, monkeypatch):
        monkeypatch.undo()  # the real table
        path = zoo[0].rename(zoo[0].with_name("mine.pkl"))
        loaded = kmf.from_preset(path)
        assert_equal_outputs(loaded, model)
        assert loaded.preset_info == PresetInfo(str(path))
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"mine.pkl: expected a checkpoint"):
            kmf.from_preset(path)

    def test_unknown_sources(self, tmp_path):
        with pytest.raises(ValueError, match=r"Did you mean maskformer_swin_tiny_ade20k150"):
            kmf.from_preset("maskformer_swin_tiny_ade20k15")
        with pytest.raises(FileNotFoundError, match=r"no such folder or file. A preset is a folder that"):
            kmf.from_preset(tmp_path / "absent")
        with pytest.raises(ValueError, match=r"`revision` belongs to hf:// sources only. Received: 'x', revision='v1'"):
            kmf.from_preset("x", revision="v1")
        with pytest.raises(ValueError, match=r"must look like hf://owner/name. Received: hf://a/b/c"):
            kmf.from_preset("hf://a/b/c")

    def test_list(self):
        assert [release.name for release in kmf.list_presets()][2] == NAME
        assert len(kmf.list_presets()) == 30


class TestHub:
    @pytest.fixture()
    def huggingface_folder(self, tmp_path):
        """What `transformers` writes, as far as it is read: here from the export's own names."""
        export = pytest.importorskip("kmaskformer.checkpoints.huggingface_export")
        made = tiny_model(deep_supervision=False)
        export.export_to_huggingface(made, tmp_path / "hf")
        return made, tmp_path / "hf"

    def served(self, monkeypatch, folder, license="other"):
        calls = []

        def fetch(repository, revision=None):
            calls.append((repository, revision))
            return RepositoryFiles(Path(folder), "0" * 40, license)

        monkeypatch.setattr(presets, "fetch_repository", fetch)
        return calls

    def test_local_huggingface_folder(self, huggingface_folder):
        made, folder = huggingface_folder
        (folder / "preprocessor_config.json").unlink(missing_ok=True)
        loaded = kmf.from_preset(folder)
        np.testing.assert_allclose(outputs(loaded)["mask_logits"], outputs(made)["mask_logits"], atol=1e-5)
        assert loaded.preset_info == PresetInfo(str(folder), shortest_edge=800, longest_edge=1333)
        assert loaded.dataset_info.class_names == INFO.class_names

    def test_repository(self, huggingface_folder, monkeypatch, caplog):
        made, folder = huggingface_folder
        calls = self.served(monkeypatch, folder)
        loaded = kmf.from_preset("hf://someone/else", revision="v1")
        assert calls == [("someone/else", "v1")]
        np.testing.assert_allclose(outputs(loaded)["class_logits"], outputs(made)["class_logits"], atol=1e-5)
        assert "hf://someone/else: licence of the weights: other" in caplog.text

    def test_published_copy(self, huggingface_folder, monkeypatch, caplog):
        """What the copy does not know comes from the table."""
        _, folder = huggingface_folder
        self.served(monkeypatch, folder)
        release = dataclasses.replace(
            find_release("maskformer_swin_tiny_coco_panoptic133"), num_classes=3, things="0-1"
        )
        monkeypatch.setattr(presets, "release_of_repository", lambda repository: release)
        loaded = kmf.from_preset("hf://facebook/maskformer-swin-tiny-coco")
        assert "hf://facebook/maskformer-swin-tiny-coco: licence of the weights: CC BY-NC 4.0" in caplog.text
        assert loaded.preset_info.score == "PQ 47.7"
        assert loaded.dataset_info.thing_ids == (0, 1)
        assert loaded.padded_size(37, 50) == (37, 50)
        with pytest.warns(UserWarning, match="left fresh, to be trained: class_head"):
            loaded = kmf.from_preset("hf://facebook/maskformer-swin-tiny-coco", num_classes=6)
        assert (loaded.num_classes, loaded.preset_info.score) == (6, "")
        assert loaded.dataset_info == kmf.DatasetInfo.numbered(6)

    def test_preset_of_ours(self, model, folder, monkeypatch):
        self.served(monkeypatch, folder)
        loaded = kmf.from_preset("hf://me/fields")
        assert_equal_outputs(loaded, model)
        assert loaded.preset_info.source == "hf://me/fields"
        assert loaded.preset_info.license == "mit"

"""Schemes that the page does not describe are refused with the reason."""

from __future__ import annotations

import shutil

import pytest
from verify.faults import Folder

from compress.errors import ArtifactError
from compress.verify.layout import open_folder

PACKED = {
    "method": (lambda q: q.update(quant_method="awq"), "quant_method 'awq'"),
    "version": (lambda q: q.update(version=2), "version 2; packed version 1 is verified"),
    "no default": (lambda q: q.pop("default"), "are not tables"),
    "no scheme": (lambda q: q["default"].pop("bits"), "A scheme is bits"),
    "unknown field": (lambda q: q["default"].update(mask=True), "A scheme is bits"),
    "width": (lambda q: q["default"].update(bits=5), r"bits \(2, 3, 4, 8\)"),
    "float width": (lambda q: q["default"].update(bits=4.0), "A scheme is bits"),
    "no groups": (lambda q: q["default"].update(group_size=-1), "A scheme is bits"),
    "groups that do not divide": (lambda q: q["default"].update(group_size=48), "do not divide"),
    "exception for nothing": (lambda q: q["exceptions"].update(odd={}), "odd.codes: missing"),
    "odd exception": (lambda q: q["exceptions"].update(odd=3), "an exception is not a table"),
}
EXPORTED = {
    "format": (lambda q: q.update(format="int-quantized"), "format 'int-quantized'"),
    "no groups": (lambda q: q.update(config_groups=[]), "with config_groups"),
    "group field": (lambda q: group(q).update(format="x"), "group_0 must have"),
    "targets": (lambda q: group(q).update(targets="Linear"), "targets of group_0 are not names"),
    "no module": (lambda q: group(q)["targets"].append("Linear"), "no matrix of this model"),
    "twice": (lambda q: q["config_groups"].update(b=group(q)), "two groups target"),
    "weight field": (lambda q: weights(q).pop("actorder"), "weights of group_0 must have"),
    "activations": (lambda q: group(q).update(input_activations={}), "is not written here"),
    "act order": (lambda q: weights(q).update(actorder="group"), "is not written here"),
    "strategy": (lambda q: weights(q).update(strategy="channel"), "is not written here"),
    "width": (lambda q: weights(q).update(num_bits=3), r"bits \(4, 8\)"),
    "ignore": (lambda q: q.update(ignore="lm_head"), "ignore is not a list of names"),
    "ignored": (lambda q: q["ignore"].append(group(q)["targets"][0]), "quantized and in ignore"),
}


def group(quantization):
    return quantization["config_groups"]["group_0"]


def weights(quantization):
    return group(quantization)["weights"]


@pytest.mark.parametrize(
    ("format", "case"),
    [*(("packed", case) for case in PACKED), *(("compressed-tensors", case) for case in EXPORTED)],
)
def test_other_configs_are_refused_with_the_reason(artifact, tmp_path, format, case):
    folder = Folder(shutil.copytree(artifact(format), tmp_path / "a"))
    edit, message = (PACKED if format == "packed" else EXPORTED)[case]
    config = folder.json("config.json")
    edit(config["quantization_config"])
    folder.write_json("config.json", config)
    with pytest.raises(ArtifactError, match=message):
        open_folder(folder.path)


@pytest.mark.parametrize("value", ["a", -1, None, 3.5])
def test_a_config_that_transformers_refuses_is_told(artifact, tmp_path, value):
    folder = Folder(shutil.copytree(artifact(), tmp_path / "a"))
    folder.write_json("config.json", folder.json("config.json") | {"hidden_size": value})
    with pytest.raises(ArtifactError, match=r"config\.json|by config"):
        open_folder(folder.path)


def test_buffers_of_old_checkpoints_are_extra_unless_known(artifact, tmp_path):
    folder = Folder(shutil.copytree(artifact(), tmp_path / "a"))
    tensors = folder.tensors()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder.write(tensors | {name: tensors["model.norm.weight"].float()})
    with pytest.raises(ArtifactError, match=f"{name}: extra"):
        open_folder(folder.path)
    assert name in open_folder(folder.path, frozenset((name,))).block(0)

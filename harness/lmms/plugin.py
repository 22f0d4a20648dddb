"""Registers the model `vtbench` with lmms-eval, by the entry point group `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """Return what lmms-eval's registry reads."""
    return [ModelManifest(model_id="vtbench", simple_class_path="harness.lmms.model.VtBench")]

"""The entry point by which lmms-eval finds the model `acckv`."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """The model's name and where its class is."""
    return ModelManifest(model_id="acckv", chat_class_path="acckv_lmms_eval.model.AccKV")

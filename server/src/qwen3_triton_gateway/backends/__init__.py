"""What runs the model: Triton, or ONNX Runtime in this process. The choice is made here."""

from __future__ import annotations

from ..settings import Settings
from .base import Backend, ModelSpec

__all__ = ["Backend", "ModelSpec", "choose_backend"]


def choose_backend(settings: Settings) -> Backend:
    """Make the backend that the settings name, not yet connected."""
    if settings.model_dir is not None:
        from .onnx import OnnxBackend

        return OnnxBackend(settings.model_dir)
    from .replicas import ReplicatedBackend
    from .triton import TritonBackend

    tritons = [TritonBackend(url, settings.triton_model) for url in settings.triton_url]
    return tritons[0] if len(tritons) == 1 else ReplicatedBackend(tritons)

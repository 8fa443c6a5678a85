"""Models: wrapping Hugging Face models for decoding, loading checkpoints, and the LM head on chosen rows."""

from mdlm_fast.models.head import RowHead
from mdlm_fast.models.loading import load_model
from mdlm_fast.models.saving import save_model
from mdlm_fast.models.wrapper import MaskedDiffusionModel
from mdlm_fast.models.wrapping import wrap

__all__ = ["MaskedDiffusionModel", "RowHead", "load_model", "save_model", "wrap"]
